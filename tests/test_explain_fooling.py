import math
from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import logits_of
from flax import nnx

from dlc_jax import models
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, fooling

DIGIT = (28, 28, 1)
SHAPE = (6, 6, 1)


class Small(models.Network):
    """Dense, which takes little to compile."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.first = nnx.Param(jnp.asarray(rng.normal(size=(36, 16)), jnp.float32))
        self.second = nnx.Param(jnp.asarray(rng.normal(size=(16, 4)) / 2, jnp.float32))

    def stages(self, x: Any) -> OrderedDict[str, Any]:
        hidden = nnx.relu((x.reshape(len(x), 36) - 0.5) @ self.first[...])
        return OrderedDict(logits=hidden @ self.second[...])


def view_of(network: models.Network) -> View:
    """Of a network that takes pixels as they are."""
    return View.of(network, Normalise(np.zeros(1, np.float32), np.full(1, 255, np.float32)))


@pytest.fixture(scope="module")
def view() -> View:
    return view_of(Small())


def probabilities(logits: Any) -> np.ndarray:
    """The softmax, in float64."""
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def confidences(view: View, images: Any) -> np.ndarray:
    """The probability of each image's own class."""
    return probabilities(logits_of(view, images)).diagonal()


def strangeness(images: Any, digits: Dataset) -> np.ndarray:
    """How far each image is from the nearest training digit."""
    train = digits.train.images.reshape(4000, -1).astype(np.float32) / 255
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    squares = (flat**2).sum(1)[:, None] + (train**2).sum(1) - 2 * flat @ train.T
    return np.sqrt(squares.min(1))


def test_gradient_ascent_fools_for_every_class_with_what_is_like_no_digit(
    lecture: View, digits: Dataset
) -> None:
    images = np.asarray(
        fooling.by_gradient(lecture, np.arange(10), key=jax.random.key(0), image_shape=DIGIT)
    )
    assert images.shape == (10, *DIGIT)
    assert images.min() >= 0
    assert images.max() <= 1
    assert confidences(lecture, images).min() >= 0.99
    test = digits.test.images.astype(np.float32) / 255
    # Farther from every training digit than 99 of 100 test digits are.
    limit = np.quantile(strangeness(test, digits), 0.99)
    assert strangeness(images, digits).min() > limit


@pytest.mark.parametrize("encoding", ["direct", pytest.param("cppn", marks=pytest.mark.slow)])
def test_evolution_fools_for_every_class(view: View, encoding: str) -> None:
    evolved = fooling.by_evolution(
        view, key=jax.random.key(0), image_shape=SHAPE, generations=200, encoding=encoding
    )
    elites, found, history, *_ = jax.device_get(evolved)
    assert elites.shape == (4, *SHAPE)
    assert elites.min() >= 0
    assert elites.max() <= 1
    assert found.min() >= 0.99
    np.testing.assert_allclose(found, confidences(view, elites), atol=1e-5)
    assert history.shape == (200, 4)
    np.testing.assert_array_equal(history[-1], found)
    assert (np.diff(history, axis=0) >= 0).all()
    assert history[0].min() < 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("encoding", "generations"), [("direct", 1000), ("cppn", 200)])
def test_evolution_fools_the_lectures_network_for_every_class(
    lecture: View, encoding: str, generations: int
) -> None:
    elites, found, *_ = fooling.by_evolution(
        lecture,
        key=jax.random.key(0),
        image_shape=DIGIT,
        generations=generations,
        encoding=encoding,
    )
    # One of the patterns may end in a local optimum, which one depends on the processor's rounding.
    least, *others = np.sort(found)
    assert least >= 0.95
    assert min(others) >= 0.99
    np.testing.assert_allclose(found, confidences(lecture, elites), atol=1e-5)


def test_every_class_ends_with_the_image_that_suited_it_best_of_all_seen() -> None:
    # A network that shows what evolution has it look at.
    seen: list[np.ndarray] = []

    class Watched(Small):
        def stages(self, x: Any) -> Any:
            stages = super().stages(x)
            jax.debug.callback(
                lambda logits: seen.append(np.asarray(logits)), stages["logits"], ordered=True
            )
            return stages

    result = fooling.by_evolution(
        view_of(Watched()), key=jax.random.key(0), image_shape=SHAPE, generations=5, population=7
    )
    jax.effects_barrier()
    assert [logits.shape for logits in seen[:6]] == [(7, 4)] * 6
    best = np.maximum.accumulate([probabilities(logits).max(0) for logits in seen[:6]])
    np.testing.assert_allclose(result.history, best[1:], rtol=1e-5)


@pytest.mark.parametrize("encoding", ["direct", pytest.param("cppn", marks=pytest.mark.slow)])
def test_evolution_that_goes_on_is_that_of_all_generations_at_once(
    view: View, encoding: str
) -> None:
    evolve = partial(
        fooling.by_evolution,
        view,
        key=jax.random.key(1),
        image_shape=SHAPE,
        population=10,
        encoding=encoding,
    )
    at_once, begun = evolve(generations=4), evolve(generations=2)
    rest = evolve(generations=2, start=begun)
    np.testing.assert_array_equal(rest.elites, at_once.elites)
    np.testing.assert_array_equal(np.concatenate([begun.history, rest.history]), at_once.history)
    assert rest.generation == at_once.generation == 4


def test_polynomial_mutation_has_its_rate_and_its_distribution() -> None:
    grey = np.full(400_000, 0.5)
    mutate = partial(fooling.polynomial_mutation, jax.random.key(0), grey)
    change = np.asarray(mutate(rate=0.25, strength=15)) - grey
    changed = change[change != 0]
    assert len(changed) / len(grey) == pytest.approx(0.25, abs=0.003)
    assert (changed > 0).mean() == pytest.approx(0.5, abs=0.007)
    # P(|change| > d) = (1 - d)^16
    for d in (0.02, 0.1, 0.3):
        assert (np.abs(changed) > d).mean() == pytest.approx((1 - d) ** 16, abs=0.007)
    edge = fooling.polynomial_mutation(jax.random.key(0), np.array([0.0, 1.0] * 99), rate=1.0)
    assert edge.min() == 0
    assert edge.max() == 1


def test_the_rate_of_mutation_halves_every_1000_generations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        fooling, "polynomial_mutation", lambda key, pixels, rate: rates.append(float(rate))
    )
    for generation in (0, 999, 1000, 2500):
        fooling._mutate_pixels(jax.random.key(0), jnp.zeros(SHAPE), jnp.asarray(generation))
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_a_pattern_network_draws_what_its_nodes_compute(rng: np.random.Generator) -> None:
    height, width = 3, 5
    weights = tuple(rng.normal(size=size) for size in ((4, 4), (4, 4), (4, 2)))
    functions = np.array([[0, 1, 2, 3], [3, 2, 1, 0]])
    by_number = [math.sin, lambda x: 1 / (1 + math.exp(-x)), lambda x: math.exp(-x * x), float]
    expected = np.zeros((height, width, 2))
    for row in range(height):
        for column in range(width):
            y, x = -1 + 2 * row / (height - 1), -1 + 2 * column / (width - 1)
            values = [x, y, math.hypot(x, y), 1.0]
            for layer in range(2):
                values = [
                    by_number[functions[layer, j]](
                        sum(values[i] * weights[layer][i, j] for i in range(4))
                    )
                    for j in range(4)
                ]
            for channel in range(2):
                total = sum(values[i] * weights[2][i, channel] for i in range(4))
                expected[row, column, channel] = 1 / (1 + math.exp(-total))
    network = fooling.PatternNetwork(jax.tree.map(jnp.asarray, weights), jnp.asarray(functions))
    np.testing.assert_allclose(network.render(height, width), expected, rtol=1e-4)


@pytest.mark.slow
def test_images_are_the_same_inside_jit_and_for_the_same_key(view: View) -> None:
    def make(view: View, key: Any) -> list[Any]:
        given: dict[str, Any] = {"key": key, "image_shape": SHAPE}
        evolve = partial(fooling.by_evolution, view, **given, generations=4, population=10)
        return [
            fooling.by_gradient(view, jnp.arange(3), **given, steps=5),
            *(evolve(encoding=encoding).elites for encoding in ("direct", "cppn")),
        ]

    once, again, other = (jax.device_get(make(view, jax.random.key(seed))) for seed in (0, 0, 1))
    inside = jax.jit(make)(view, jax.random.key(0))
    for one, same, jitted, another in zip(once, again, inside, other, strict=True):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_allclose(one, jitted, atol=1e-5)
        assert (one != another).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "neat"}, "no encoding 'neat'; choose from direct, cppn"),
        ({"generations": 0}, "generations is 0; give at least 1"),
        ({"population": 0}, "population is 0; give at least 1"),
        ({"image_shape": (40, 40, 1)}, "40x40x1"),
    ],
)
def test_what_does_not_suit_evolution_is_named(
    view: View, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"image_shape": SHAPE, "key": jax.random.key(0)}
    with pytest.raises(InputError, match=message):
        fooling.by_evolution(view, **arguments | change)


@pytest.mark.parametrize(
    ("labels", "steps", "message"),
    [
        (np.arange(5), 5, "no class 4; choose from 0 to 3"),
        (np.zeros(0, int), 5, r"shape \(0,\)"),
        (np.arange(4), 0, "steps is 0; give at least 1"),
    ],
)
def test_what_does_not_suit_gradient_ascent_is_named(
    view: View, labels: np.ndarray, steps: int, message: str
) -> None:
    key = jax.random.key(0)
    with pytest.raises(InputError, match=message):
        fooling.by_gradient(view, labels, key=key, image_shape=SHAPE, steps=steps)
