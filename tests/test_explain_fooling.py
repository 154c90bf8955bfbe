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
from dlc_jax.data import Dataset, Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, fooling

DIGIT = (28, 28, 1)
SHAPE = (6, 6, 1)


class Small(models.Network):
    """Two linear layers, which are fast to compile."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        self.first = nnx.Param(jnp.asarray(rng.normal(size=(36, 16)), jnp.float32))
        self.second = nnx.Param(jnp.asarray(rng.normal(size=(16, 4)) / 2, jnp.float32))

    def stages(self, x: Any) -> OrderedDict[str, Any]:
        hidden = nnx.relu((x.reshape(len(x), 36) - 0.5) @ self.first[...])
        return OrderedDict(logits=hidden @ self.second[...])


def make_classifier(network: models.Network) -> ImageClassifier:
    """A classifier without normalization."""
    return ImageClassifier.from_model(
        network, Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))
    )


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return make_classifier(Small())


def probabilities(logits: Any) -> np.ndarray:
    """The softmax, in float64."""
    logits = np.asarray(logits, np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def confidences(classifier: ImageClassifier, images: Any) -> np.ndarray:
    """Probability of each image's class."""
    return probabilities(logits_of(classifier, images)).diagonal()


def distance_to_digits(images: Any, digits: Dataset) -> np.ndarray:
    """Distance of each image to the nearest training digit."""
    train = digits.train.images.reshape(4000, -1).astype(np.float32) / 255
    flat = np.asarray(images, np.float32).reshape(len(images), -1)
    squares = (flat**2).sum(1)[:, None] + (train**2).sum(1) - 2 * flat @ train.T
    return np.sqrt(squares.min(1))


def test_gradient_ascent_fools_all_classes_with_images_unlike_digits(
    lecture: ImageClassifier, digits: Dataset
) -> None:
    images = np.asarray(
        fooling.fooling_images_by_gradient(
            lecture, np.arange(10), key=jax.random.key(0), image_shape=DIGIT
        )
    )
    assert images.shape == (10, *DIGIT)
    assert images.min() >= 0
    assert images.max() <= 1
    assert confidences(lecture, images).min() >= 0.99
    test = digits.test.images.astype(np.float32) / 255
    # Farther from every training digit than 99 of 100 test digits are.
    limit = np.quantile(distance_to_digits(test, digits), 0.99)
    assert distance_to_digits(images, digits).min() > limit


@pytest.mark.parametrize("encoding", ["direct", pytest.param("cppn", marks=pytest.mark.slow)])
def test_evolution_fools_all_classes(
    classifier: ImageClassifier, encoding: fooling.EncodingName
) -> None:
    evolved = fooling.fooling_images_by_evolution(
        classifier, key=jax.random.key(0), image_shape=SHAPE, generations=200, encoding=encoding
    )
    elites, found, history, *_ = jax.device_get(evolved)
    assert elites.shape == (4, *SHAPE)
    assert elites.min() >= 0
    assert elites.max() <= 1
    assert found.min() >= 0.99
    np.testing.assert_allclose(found, confidences(classifier, elites), atol=1e-5)
    assert history.shape == (200, 4)
    np.testing.assert_array_equal(history[-1], found)
    assert (np.diff(history, axis=0) >= 0).all()
    assert history[0].min() < 0.99


@pytest.mark.slow
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(("encoding", "generations"), [("direct", 1000), ("cppn", 200)])
def test_evolution_fools_all_classes_of_the_lectures_network(
    lecture: ImageClassifier, encoding: fooling.EncodingName, generations: int
) -> None:
    elites, found, *_ = fooling.fooling_images_by_evolution(
        lecture,
        key=jax.random.key(0),
        image_shape=DIGIT,
        generations=generations,
        encoding=encoding,
    )
    # One class may end in a local optimum, which depends on the processor's rounding.
    lowest, *others = np.sort(found)
    assert lowest >= 0.95
    assert min(others) >= 0.99
    np.testing.assert_allclose(found, confidences(lecture, elites), atol=1e-5)


def test_elites_are_the_best_of_all_images() -> None:
    all_logits: list[np.ndarray] = []

    class Recording(Small):
        def stages(self, x: Any) -> Any:
            stages = super().stages(x)
            jax.debug.callback(
                lambda logits: all_logits.append(np.asarray(logits)), stages["logits"], ordered=True
            )
            return stages

    result = fooling.fooling_images_by_evolution(
        make_classifier(Recording()),
        key=jax.random.key(0),
        image_shape=SHAPE,
        generations=5,
        population_size=7,
    )
    jax.effects_barrier()
    assert [logits.shape for logits in all_logits[:6]] == [(7, 4)] * 6
    best = np.maximum.accumulate([probabilities(logits).max(0) for logits in all_logits[:6]])
    np.testing.assert_allclose(result.history, best[1:], rtol=1e-5)


@pytest.mark.parametrize("encoding", ["direct", pytest.param("cppn", marks=pytest.mark.slow)])
def test_resumed_evolution_equals_uninterrupted_evolution(
    classifier: ImageClassifier, encoding: fooling.EncodingName
) -> None:
    evolve = partial(
        fooling.fooling_images_by_evolution,
        classifier,
        key=jax.random.key(1),
        image_shape=SHAPE,
        population_size=10,
        encoding=encoding,
    )
    whole, first = evolve(generations=4), evolve(generations=2)
    rest = evolve(generations=2, resume_from=first)
    np.testing.assert_array_equal(rest.images, whole.images)
    np.testing.assert_array_equal(np.concatenate([first.history, rest.history]), whole.history)
    assert rest.generation == whole.generation == 4


def test_rate_and_distribution_of_polynomial_mutation() -> None:
    gray = np.full(400_000, 0.5)
    mutate = partial(fooling.polynomial_mutation, jax.random.key(0), gray)
    change = np.asarray(mutate(rate=0.25, strength=15)) - gray
    changed = change[change != 0]
    assert len(changed) / len(gray) == pytest.approx(0.25, abs=0.003)
    assert (changed > 0).mean() == pytest.approx(0.5, abs=0.007)
    # P(|change| > d) = (1 - d)^16
    for d in (0.02, 0.1, 0.3):
        assert (np.abs(changed) > d).mean() == pytest.approx((1 - d) ** 16, abs=0.007)
    edge = fooling.polynomial_mutation(jax.random.key(0), np.array([0.0, 1.0] * 99), rate=1.0)
    assert edge.min() == 0
    assert edge.max() == 1


def test_mutation_rate_halves_every_1000_generations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rates: list[float] = []
    monkeypatch.setattr(
        fooling, "polynomial_mutation", lambda key, pixels, rate: rates.append(float(rate))
    )
    for generation in (0, 999, 1000, 2500):
        fooling._mutate_pixels(jax.random.key(0), jnp.zeros(SHAPE), jnp.asarray(generation))
    assert rates == pytest.approx([0.1, 0.1, 0.05, 0.025])


def test_cppn_matches_a_loop(rng: np.random.Generator) -> None:
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
    network = fooling.CPPN(jax.tree.map(jnp.asarray, weights), jnp.asarray(functions))
    np.testing.assert_allclose(network.render(height, width), expected, rtol=1e-4)


@pytest.mark.slow
def test_results_are_the_same_under_jit_and_depend_on_the_key(classifier: ImageClassifier) -> None:
    def make(classifier: ImageClassifier, key: Any) -> list[Any]:
        given: dict[str, Any] = {"key": key, "image_shape": SHAPE}
        evolve = partial(
            fooling.fooling_images_by_evolution,
            classifier,
            **given,
            generations=4,
            population_size=10,
        )
        return [
            fooling.fooling_images_by_gradient(classifier, jnp.arange(3), **given, steps=5),
            *(evolve(encoding=encoding).images for encoding in ("direct", "cppn")),
        ]

    once, again, other = (
        jax.device_get(make(classifier, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    inside = jax.jit(make)(classifier, jax.random.key(0))
    for one, same, jitted, another in zip(once, again, inside, other, strict=True):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_allclose(one, jitted, atol=1e-5)
        assert (one != another).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoding": "neat"}, "no encoding 'neat'; choose from direct, cppn"),
        ({"generations": 0}, "generations is 0; give at least 1"),
        ({"population_size": 0}, "population_size is 0; give at least 1"),
        ({"image_shape": (40, 40, 1)}, "40x40x1"),
    ],
)
def test_invalid_arguments_of_evolution(
    classifier: ImageClassifier, change: dict[str, Any], message: str
) -> None:
    arguments: dict[str, Any] = {"image_shape": SHAPE, "key": jax.random.key(0)}
    with pytest.raises(InputError, match=message):
        fooling.fooling_images_by_evolution(classifier, **arguments | change)


@pytest.mark.parametrize(
    ("labels", "steps", "message"),
    [
        (np.arange(5), 5, "no class 4; choose from 0 to 3"),
        (np.zeros(0, int), 5, r"shape \(0,\)"),
        (np.arange(4), 0, "steps is 0; give at least 1"),
    ],
)
def test_invalid_arguments_of_gradient_ascent(
    classifier: ImageClassifier, labels: np.ndarray, steps: int, message: str
) -> None:
    key = jax.random.key(0)
    with pytest.raises(InputError, match=message):
        fooling.fooling_images_by_gradient(
            classifier, labels, key=key, image_shape=SHAPE, steps=steps
        )
