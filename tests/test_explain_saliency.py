import dataclasses
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import logits_of
from flax import nnx
from jax import Array, lax

from dlc_jax import models, ops
from dlc_jax.data import Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, saliency
from dlc_jax.explain.rectifiers import Rule, with_rectifiers
from dlc_jax.nn import layers

RULES: tuple[Rule, ...] = ("gradient", "deconvnet", "guided")
UNCHANGED = Normalise(np.zeros(1, np.float32), np.full(1, 255, np.float32))

# Two layers by hand: hidden inputs 1, -1 and 2; output weights 3, 4 and -5. Before the first
# rectifier: 1*1 = 1, 2*-1 = -2, 1*2 = 2; so that what comes back there is 3, 4 and -5.
X, FIRST, SECOND = (np.array(values, np.float32) for values in ([1, -1, 2], [1, 2, 1], [3, 4, -5]))
BY_HAND = {"gradient": [3, 0, -5], "deconvnet": [3, 8, 0], "guided": [3, 0, 0]}


def two_layers(x: Array, rectifier: Any = jax.nn.relu) -> Array:
    return jnp.sum(SECOND * rectifier(FIRST * x))


def inside_scan(x: Array) -> Array:
    # The second of two steps multiplies by 1, and rectifies what is not negative any more.
    def step(carry: Array, factors: Array) -> tuple[Array, Array]:
        carry = jax.nn.relu(factors * carry)
        return carry, carry.sum()

    factors = jnp.stack([jnp.asarray(FIRST), jnp.ones(3)])
    return jnp.sum(SECOND * lax.scan(step, x, factors)[0])


def inside_cond(x: Array) -> Array:
    return lax.cond(x[0] > 0, two_layers, lambda x: 0 * x.sum(), x)


PROGRAMS: dict[str, Callable[..., Any]] = {
    "plain": two_layers,
    "jit": jax.jit(two_layers),
    "checkpoint": jax.checkpoint(two_layers),
    "cond": inside_cond,
}


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("rule", RULES)
def test_what_each_rule_hands_back_is_what_one_computes_by_hand(rule: Rule, program: str) -> None:
    function = with_rectifiers(PROGRAMS[program], rule)
    for gradient in (jax.grad(function), jax.jit(jax.grad(function))):
        np.testing.assert_array_equal(gradient(X), BY_HAND[rule])
    batch = jax.vmap(jax.grad(function))(jnp.stack([X, -X]))
    np.testing.assert_array_equal(batch[0], BY_HAND[rule])
    np.testing.assert_array_equal(function(X), two_layers(jnp.asarray(X)))


def test_rules_reach_into_scans() -> None:
    # Both steps' inputs of the second element are not positive, of the first and third they are.
    expected = {"gradient": [3, 0, -5], "deconvnet": [3, 8, 0], "guided": [3, 0, 0]}
    for rule in RULES:
        result = jax.grad(with_rectifiers(inside_scan, rule))(jnp.asarray(X))
        np.testing.assert_array_equal(result, expected[rule])


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_is_taken_for_a_rectifier(approximate: bool, jitted: bool, dtype: Any) -> None:
    gelu = partial(jax.nn.gelu, approximate=approximate)
    function = partial(two_layers, rectifier=jax.jit(gelu) if jitted else gelu)
    x = jnp.asarray(X, dtype)
    for rule in ("deconvnet", "guided"):
        changed = with_rectifiers(function, rule)
        np.testing.assert_array_equal(jax.grad(changed)(x), BY_HAND[rule])
        np.testing.assert_allclose(changed(x), function(x), rtol=1e-6)
    assert np.abs(jax.grad(function)(x) - jnp.asarray(BY_HAND["gradient"])).max() > 0.05


def test_what_is_no_rectifier_keeps_its_gradient() -> None:
    def others(x: Array) -> Array:
        powers = jnp.tanh(x) * jax.nn.sigmoid(x) + jax.scipy.special.erfc(x) * x
        pooled = ops.max_pool(x.reshape(1, 4, 4, 1), (2, 2)).sum()
        kernel = jnp.arange(-4.0, 5).reshape(3, 3, 1, 1)
        return powers.sum() + pooled + ops.conv2d(x.reshape(1, 4, 4, 1), kernel).sum()

    x = jnp.sin(jnp.arange(16.0))
    expected = jax.jit(jax.grad(others))(x)
    for rule in RULES:
        result = jax.jit(jax.grad(with_rectifiers(others, rule)))(x)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "options", "rule"),
    [
        ("lecture", (28, 28, 1), {}, "deconvnet"),
        ("lecture", (28, 28, 1), {}, "guided"),
        # Its activation is GELU, whose rules have a test of their own.
        pytest.param(
            "airbench", (32, 32, 3), {"widths": (8, 8, 8)}, "guided", marks=pytest.mark.slow
        ),
    ],
)
def test_a_networks_rules_are_those_of_its_rectifiers_replaced_by_hand(
    name: str, shape: Any, options: Any, rule: Rule, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalise = Normalise(np.full(shape[2], 100, np.float32), np.full(shape[2], 50, np.float32))
    model = models.create(name, image_shape=shape, num_classes=10, rngs=nnx.Rngs(0), **options)
    view = View.of(model, normalise)
    pixels = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    labels = np.array([0, 4, 9])
    result = jax.jit(saliency.gradient, static_argnames="rule")(view, pixels, labels, rule=rule)

    gelu = partial(jax.nn.gelu, approximate=False)
    for module in (nnx, jax.nn):
        monkeypatch.setattr(module, "relu", by_hand(jax.nn.relu, rule))
    for module in (nnx, jax.nn, layers):
        monkeypatch.setattr(module, "gelu", by_hand(gelu, rule))

    @jax.jit
    def gradient(pixels: Array) -> Array:
        def total(pixels: Array) -> Array:
            # Not `view.logits`, which was traced before the rectifiers were replaced.
            return view.traced_stages(pixels)["logits"][np.arange(3), labels].sum()

        return jax.grad(total)(pixels)

    expected = gradient(pixels)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(result, expected, atol=1e-5 * scale)


def by_hand(activation: Any, rule: str) -> Any:
    """A rectifier with the backward pass of a rule, as its paper's figure has it."""

    @jax.custom_vjp
    def rectifier(x: Array) -> Array:
        return activation(x)

    def backward(x: Array, grad: Array) -> tuple[Array]:
        handed_on = grad * (grad > 0)
        return (handed_on * (x > 0) if rule == "guided" else handed_on,)

    rectifier.defvjp(lambda x: (activation(x), x), backward)
    return lambda x, **_: rectifier(x)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Exact(Normalise):
    """The pixels as they are, in their own precision."""

    def __call__(self, images: Any) -> Array:
        return images / 255


class Convolved(models.Network):
    """Convolution, pooling, rectifier and a linear layer, in float64."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.kernel, self.weights = (
            nnx.Param(jnp.asarray(rng.normal(size=shape))) for shape in ((3, 3, 2, 5), (45, 3))
        )

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        x = x.astype(self.kernel[...].dtype)
        y = ops.max_pool(ops.conv2d(x, self.kernel[...], padding="VALID"), (2, 2))
        y = jax.nn.relu(y)
        return OrderedDict(conv=y, logits=y.reshape(len(y), -1) @ self.weights[...])


def test_plain_gradients_are_finite_differences(rng: np.random.Generator) -> None:
    with jax.enable_x64(True):
        view = View.of(Convolved(), Exact(np.zeros(2), np.ones(2)))
        pixels, labels = rng.uniform(size=(2, 8, 8, 2)), np.array([2, 0])
        result = np.asarray(saliency.gradient(view, pixels, labels))
        assert result.dtype == np.float64
        step = 1e-6
        changes = step * np.eye(pixels[0].size).reshape(-1, *pixels[0].shape)
        for i, label in enumerate(labels):
            above, below = (
                np.asarray(logits_of(view, pixels[i] + sign * changes))[:, label]
                for sign in (1, -1)
            )
            differences = ((above - below) / (2 * step)).reshape(pixels[i].shape)
            np.testing.assert_allclose(result[i], differences, rtol=1e-6, atol=1e-8)


def test_saliency_is_the_largest_absolute_gradient_of_a_pixels_channels(
    rng: np.random.Generator,
) -> None:
    with jax.enable_x64(True):
        view = View.of(Convolved(), Exact(np.zeros(2), np.ones(2)))
        pixels, labels = rng.uniform(size=(2, 8, 8, 2)), np.array([1, 2])
        gradient = np.asarray(saliency.gradient(view, pixels, labels))
        result = jax.jit(saliency.saliency)(view, pixels, labels)
        np.testing.assert_allclose(result, np.maximum(gradient.max(-1), -gradient.min(-1)))


def test_everything_is_the_same_under_jit(rng: np.random.Generator) -> None:
    def every(view: View, pixels: Any) -> list[Any]:
        return [saliency.saliency(view, pixels, np.array([2, 1]), rule=rule) for rule in RULES]

    view = View.of(Convolved(), Exact(np.zeros(2), np.ones(2)))
    pixels = rng.uniform(size=(2, 8, 8, 2)).astype(np.float32)
    for result, expected in zip(every(view, pixels), jax.jit(every)(view, pixels), strict=True):
        largest = float(np.asarray(expected).max())
        np.testing.assert_allclose(result, expected, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("pixels", "labels", "rule", "match"),
    [
        (np.ones((0, 28, 28, 1)), np.zeros(0, int), "gradient", "at least one image"),
        (np.ones((28, 28, 1)), np.zeros(1, int), "gradient", "batch, height, width, channels"),
        (np.ones((1, 27, 28, 1)), np.zeros(1, int), "gradient", "27x28x1"),
        (np.ones((2, 28, 28, 1)), np.zeros(1, int), "gradient", "2 integers"),
        (np.ones((1, 28, 28, 1)), np.zeros(1), "gradient", "float64"),
        (np.ones((1, 28, 28, 1)), np.full(1, 10), "gradient", "no class 10; choose from 0 to 9"),
        (np.ones((1, 28, 28, 1)), np.zeros(1, int), "guide", "'guide'; choose from gradient"),
    ],
)
def test_what_does_not_suit_is_named(pixels: Any, labels: Any, rule: Any, match: str) -> None:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=match):
        saliency.gradient(View.of(model, UNCHANGED), pixels, labels, rule=rule)
