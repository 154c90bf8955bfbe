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
from dlc_jax.data import Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, saliency
from dlc_jax.explain.relu_rules import ReluRule, override_relu_gradient
from dlc_jax.nn import layers

RULES: tuple[ReluRule, ...] = ("gradient", "deconvnet", "guided")
IDENTITY = Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))

# Two layers by hand: inputs 1, -1 and 2, multiplied by FIRST, rectified, and multiplied by SECOND.
# The inputs of the first rectifier are 1, -2 and 2, and its gradients 3, 4 and -5.
X, FIRST, SECOND = (np.array(values, np.float32) for values in ([1, -1, 2], [1, 2, 1], [3, 4, -5]))
BY_HAND = {"gradient": [3, 0, -5], "deconvnet": [3, 8, 0], "guided": [3, 0, 0]}


def two_layers(x: Array, rectifier: Any = jax.nn.relu) -> Array:
    return jnp.sum(SECOND * rectifier(FIRST * x))


def inside_scan(x: Array) -> Array:
    # The second step multiplies by 1, so that its rectifier changes nothing.
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
def test_gradients_of_each_rule_match_computation_by_hand(rule: ReluRule, program: str) -> None:
    function = override_relu_gradient(PROGRAMS[program], rule)
    for gradient in (jax.grad(function), jax.jit(jax.grad(function))):
        np.testing.assert_array_equal(gradient(X), BY_HAND[rule])
    batch = jax.vmap(jax.grad(function))(jnp.stack([X, -X]))
    np.testing.assert_array_equal(batch[0], BY_HAND[rule])
    np.testing.assert_array_equal(function(X), two_layers(jnp.asarray(X)))


def test_rules_apply_inside_scan() -> None:
    # Both steps' inputs of the second element are not positive, of the first and third they are.
    expected = {"gradient": [3, 0, -5], "deconvnet": [3, 8, 0], "guided": [3, 0, 0]}
    for rule in RULES:
        result = jax.grad(override_relu_gradient(inside_scan, rule))(jnp.asarray(X))
        np.testing.assert_array_equal(result, expected[rule])


@pytest.mark.parametrize("approximate", [False, True])
@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rules_apply_to_gelu(approximate: bool, jitted: bool, dtype: Any) -> None:
    gelu = partial(jax.nn.gelu, approximate=approximate)
    function = partial(two_layers, rectifier=jax.jit(gelu) if jitted else gelu)
    x = jnp.asarray(X, dtype)
    for rule in ("deconvnet", "guided"):
        changed = override_relu_gradient(function, rule)
        np.testing.assert_array_equal(jax.grad(changed)(x), BY_HAND[rule])
        np.testing.assert_allclose(changed(x), function(x), rtol=1e-6)
    assert np.abs(jax.grad(function)(x) - jnp.asarray(BY_HAND["gradient"])).max() > 0.05


def test_other_operations_keep_their_gradients() -> None:
    def others(x: Array) -> Array:
        powers = jnp.tanh(x) * jax.nn.sigmoid(x) + jax.scipy.special.erfc(x) * x
        pooled = ops.max_pool(x.reshape(1, 4, 4, 1), (2, 2)).sum()
        kernel = jnp.arange(-4.0, 5).reshape(3, 3, 1, 1)
        return powers.sum() + pooled + ops.conv2d(x.reshape(1, 4, 4, 1), kernel).sum()

    x = jnp.sin(jnp.arange(16.0))
    expected = jax.jit(jax.grad(others))(x)
    for rule in RULES:
        result = jax.jit(jax.grad(override_relu_gradient(others, rule)))(x)
        np.testing.assert_allclose(result, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "shape", "options", "rule"),
    [
        ("lecture", (28, 28, 1), {}, "deconvnet"),
        ("lecture", (28, 28, 1), {}, "guided"),
        # Its activation function is GELU, which has its own test.
        pytest.param(
            "airbench", (32, 32, 3), {"widths": (8, 8, 8)}, "guided", marks=pytest.mark.slow
        ),
    ],
)
def test_rules_match_replaced_activation_functions(
    name: str, shape: Any, options: Any, rule: ReluRule, monkeypatch: pytest.MonkeyPatch
) -> None:
    normalize = Normalize(np.full(shape[2], 100, np.float32), np.full(shape[2], 50, np.float32))
    model = models.create(name, image_shape=shape, num_classes=10, rngs=nnx.Rngs(0), **options)
    classifier = ImageClassifier.from_model(model, normalize)
    pixels = np.random.default_rng(1).uniform(size=(3, *shape)).astype(np.float32)
    labels = np.array([0, 4, 9])
    result = jax.jit(saliency.input_gradient, static_argnames="rule")(
        classifier, pixels, labels, rule=rule
    )

    gelu = partial(jax.nn.gelu, approximate=False)
    for module in (nnx, jax.nn):
        monkeypatch.setattr(module, "relu", by_hand(jax.nn.relu, rule))
    for module in (nnx, jax.nn, layers):
        monkeypatch.setattr(module, "gelu", by_hand(gelu, rule))

    @jax.jit
    def gradient(pixels: Array) -> Array:
        def total(pixels: Array) -> Array:
            # Not `classifier.logits`, which JAX has cached with the original functions.
            return classifier.stages_inline(pixels)["logits"][np.arange(3), labels].sum()

        return jax.grad(total)(pixels)

    expected = gradient(pixels)
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(result, expected, atol=1e-5 * scale)


def by_hand(activation: Any, rule: str) -> Any:
    """A rectifier with the backward pass of a rule."""

    @jax.custom_vjp
    def rectifier(x: Array) -> Array:
        return activation(x)

    def backward(x: Array, grad: Array) -> tuple[Array]:
        positive = grad * (grad > 0)
        return (positive * (x > 0) if rule == "guided" else positive,)

    rectifier.defvjp(lambda x: (activation(x), x), backward)
    return lambda x, **_: rectifier(x)


class Exact(Normalize):
    """No normalization, in the precision of the pixels."""

    def __call__(self, images: Any) -> Array:
        return images / 255


class Convolved(models.Network):
    """Convolution, pooling, ReLU and a linear layer, in float64."""

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


def test_gradients_match_finite_differences(rng: np.random.Generator) -> None:
    with jax.enable_x64(True):
        classifier = ImageClassifier.from_model(Convolved(), Exact(np.zeros(2), np.ones(2)))
        pixels, labels = rng.uniform(size=(2, 8, 8, 2)), np.array([2, 0])
        result = np.asarray(saliency.input_gradient(classifier, pixels, labels))
        assert result.dtype == np.float64
        step = 1e-6
        changes = step * np.eye(pixels[0].size).reshape(-1, *pixels[0].shape)
        for i, label in enumerate(labels):
            above, below = (
                np.asarray(logits_of(classifier, pixels[i] + sign * changes))[:, label]
                for sign in (1, -1)
            )
            differences = ((above - below) / (2 * step)).reshape(pixels[i].shape)
            np.testing.assert_allclose(result[i], differences, rtol=1e-6, atol=1e-8)


def test_saliency_map_is_the_largest_absolute_gradient_of_the_channels(
    rng: np.random.Generator,
) -> None:
    with jax.enable_x64(True):
        classifier = ImageClassifier.from_model(Convolved(), Exact(np.zeros(2), np.ones(2)))
        pixels, labels = rng.uniform(size=(2, 8, 8, 2)), np.array([1, 2])
        gradient = np.asarray(saliency.input_gradient(classifier, pixels, labels))
        result = jax.jit(saliency.saliency_map)(classifier, pixels, labels)
        np.testing.assert_allclose(result, np.maximum(gradient.max(-1), -gradient.min(-1)))


def test_results_are_the_same_under_jit(rng: np.random.Generator) -> None:
    def every(classifier: ImageClassifier, pixels: Any) -> list[Any]:
        return [
            saliency.saliency_map(classifier, pixels, np.array([2, 1]), rule=rule) for rule in RULES
        ]

    classifier = ImageClassifier.from_model(Convolved(), Exact(np.zeros(2), np.ones(2)))
    pixels = rng.uniform(size=(2, 8, 8, 2)).astype(np.float32)
    for result, expected in zip(
        every(classifier, pixels), jax.jit(every)(classifier, pixels), strict=True
    ):
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
def test_invalid_arguments(pixels: Any, labels: Any, rule: Any, match: str) -> None:
    model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
    with pytest.raises(InputError, match=match):
        saliency.input_gradient(
            ImageClassifier.from_model(model, IDENTITY), pixels, labels, rule=rule
        )
