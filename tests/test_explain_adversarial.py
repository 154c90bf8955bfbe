from collections import OrderedDict
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import logits_of
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import Array

from dlc_jax import models
from dlc_jax.data import Dataset, Normalize
from dlc_jax.errors import InputError
from dlc_jax.explain import ImageClassifier, adversarial

IDENTITY = Normalize(np.zeros(1, np.float32), np.full(1, 255, np.float32))


class Small(models.Network):
    """A linear network of 6x6 pixels, plus a hidden layer times `nonlinearity`.

    All tests share its structure and the number of images, so that it is compiled once.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, nonlinearity: float) -> None:
        rng = np.random.default_rng(2)
        self.kernel, self.bias, self.nonlinearity, self.first, self.second = (
            nnx.Param(jnp.asarray(values, jnp.float32))
            for values in (
                kernel,
                bias,
                nonlinearity,
                rng.normal(size=(36, 8)),
                rng.normal(size=(8, 4)),
            )
        )

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        x = x.reshape(len(x), -1)
        linear = x @ self.kernel[...] + self.bias[...]
        hidden = nnx.relu((x - 0.5) @ self.first[...])
        return OrderedDict(logits=linear + self.nonlinearity[...] * (hidden @ self.second[...]))


def linear(scale: float = 1.0) -> ImageClassifier:
    """A linear network that never predicts two of its four classes."""
    # With this seed no image is very close to the decision boundary.
    kernel = np.random.default_rng(6).normal(size=(36, 4)) * [1, 1, 0, 0]
    return ImageClassifier.from_model(
        Small(scale * kernel / 6, np.array([0, 0, -1e6, -1e6]), 0.0), IDENTITY
    )


def nonlinear(seed: int = 1) -> ImageClassifier:
    kernel = np.random.default_rng(seed).normal(size=(36, 4))
    return ImageClassifier.from_model(Small(kernel / 6, np.zeros(4), 1.0), IDENTITY)


def normals(classifier: ImageClassifier) -> np.ndarray:
    """Normals of the linear network's decision boundary, for both labels, [2, 6, 6, 1]."""
    kernel = np.asarray(classifier.variables["kernel"][...], np.float64)
    to_second = (kernel[:, 1] - kernel[:, 0]).reshape(6, 6, 1)
    return np.stack([to_second, -to_second])


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    return nonlinear()


@pytest.fixture(scope="module")
def examples(classifier: ImageClassifier) -> tuple[np.ndarray, np.ndarray]:
    """20 images and their predicted classes."""
    pixels = np.random.default_rng(0).uniform(-0.5, 1.5, (20, 6, 6, 1)).clip(0, 1)
    pixels = pixels.astype(np.float32)
    return pixels, np.asarray(logits_of(classifier, pixels)).argmax(1)


@settings(deadline=None, max_examples=20)
@given(epsilon=st.floats(0, 1, width=32))
def test_fgsm_stays_within_epsilon_and_the_range_of_pixels(
    classifier: ImageClassifier, examples: Any, epsilon: float
) -> None:
    pixels, labels = examples
    attack = adversarial.fast_gradient_sign(classifier, pixels, labels, epsilon=epsilon)
    made = np.asarray(attack.pixels)
    change = made - pixels
    assert np.abs(change).max() <= epsilon + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    # The change is exactly epsilon where it is not clipped.
    room = (pixels >= epsilon) & (pixels <= 1 - epsilon)
    moved = np.abs(change[room])
    assert ((moved < 1e-6) | (np.abs(moved - epsilon) < 1e-6)).all()


@settings(deadline=None, max_examples=20)
@given(epsilon=st.floats(0, 2, width=32), norm=st.sampled_from(["inf", "2"]))
def test_pgd_stays_in_its_ball_and_the_range_of_pixels(
    classifier: ImageClassifier, examples: Any, epsilon: float, norm: adversarial.Norm
) -> None:
    pixels, labels = examples
    attack = adversarial.projected_gradient_descent(
        classifier, pixels, labels, key=jax.random.key(0), epsilon=epsilon, norm=norm, steps=5
    )
    made = np.asarray(attack.pixels)
    change = (made - pixels).reshape(len(pixels), -1)
    distances = np.linalg.norm(change, ord={"inf": np.inf, "2": 2}[norm], axis=1)
    assert distances.max() <= epsilon * (1 + 1e-5) + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.fixture
def gray(rng: np.random.Generator) -> np.ndarray:
    """20 images whose pixels are far from 0 and 1."""
    return rng.uniform(0.3, 0.7, (20, 6, 6, 1)).astype(np.float32)


# With the second scale, the gradient of the cross-entropy underflows to zero in float32.
@pytest.mark.parametrize("scale", [1, 1000])
def test_fgsm_of_a_linear_network_matches_the_closed_form(scale: float, gray: np.ndarray) -> None:
    classifier = linear(scale)
    labels = np.asarray(logits_of(classifier, gray)).argmax(1)
    attack = adversarial.fast_gradient_sign(classifier, gray, labels, epsilon=0.1)
    expected = gray + 0.1 * np.sign(normals(classifier)[labels])
    np.testing.assert_allclose(attack.pixels, expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_pgd_of_a_linear_network_with_long_steps_matches_the_closed_form(
    norm: adversarial.Norm, gray: np.ndarray
) -> None:
    classifier = linear()
    labels = np.arange(20) % 2
    attack = adversarial.projected_gradient_descent(
        classifier,
        gray,
        labels,
        key=jax.random.key(0),
        epsilon=0.1,
        norm=norm,
        steps=5,
        step_size=1000.0,  # so that the start does not matter
    )
    normal = normals(classifier)[labels]
    length = np.sqrt((normal**2).sum((1, 2, 3), keepdims=True))
    direction = np.sign(normal) if norm == "inf" else normal / length
    np.testing.assert_allclose(attack.pixels, gray + 0.1 * direction, atol=1e-4)


class FirstPixels(models.Network):
    """A network whose logits are the first three values."""

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        return OrderedDict(logits=x.reshape(len(x), -1)[:, :3])


def test_pgd_starts_are_uniform_in_the_ball() -> None:
    # Steps are negligible; the volume of a ball grows with the cube of its radius.
    gray = np.full((20_000, 1, 1, 3), 0.5, np.float32)
    attack = adversarial.projected_gradient_descent(
        ImageClassifier.from_model(FirstPixels(), IDENTITY),
        gray,
        np.zeros(len(gray), int),
        key=jax.random.key(0),
        epsilon=0.4,
        norm="2",
        steps=1,
        step_size=1e-9,
    )
    distance = np.asarray(attack.l2_distance)
    for part in (0.5, 0.75):
        share = (distance < part * 0.4).mean()
        assert share == pytest.approx(part**3, abs=0.012)  # about four standard errors
    np.testing.assert_allclose((np.asarray(attack.pixels) - gray).mean((0, 1, 2)), 0, atol=0.006)


def exact_distance(image: np.ndarray, normal: np.ndarray, gap: float) -> float:
    """Norm of the smallest change of an image with `(normal * change).sum() == gap`.

    The changed image is a step along the normal, clipped to [0, 1] (by Lagrange's conditions).
    """

    def change(step: float) -> np.ndarray:
        return (image + step * normal).clip(0, 1) - image

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        enough = (normal * change(middle)).sum() >= gap
        low, high = (low, middle) if enough else (middle, high)
    return float(np.linalg.norm(change(high)))


@pytest.mark.parametrize("pixels", ["inside", "at the borders"])
def test_lbfgs_attack_finds_the_nearest_point_of_a_linear_decision_boundary(
    pixels: str, gray: np.ndarray, rng: np.random.Generator
) -> None:
    classifier = linear(4.0)
    if pixels == "at the borders":
        gray = (3 * rng.uniform(size=gray.shape) - 1).clip(0, 1).astype(np.float32)
    logits = np.asarray(logits_of(classifier, gray), np.float64)
    labels = logits.argmax(1)
    attack = jax.device_get(adversarial.lbfgs_attack(classifier, gray, labels))
    assert attack.success.all()
    assert attack.pixels.min() >= 0
    assert attack.pixels.max() <= 1
    gaps = np.abs(logits[:, 0] - logits[:, 1])
    exact = [
        exact_distance(image.astype(np.float64), normals(classifier)[label], gap)
        for image, label, gap in zip(gray, labels, gaps, strict=True)
    ]
    ratios = np.asarray(attack.l2_distance) / exact
    assert ratios.min() > 0.999
    assert ratios.max() < 1.02


def test_lbfgs_perturbations_are_smaller_than_those_of_fgsm(
    classifier: ImageClassifier, examples: Any
) -> None:
    pixels, labels = examples
    attack = jax.device_get(adversarial.lbfgs_attack(classifier, pixels, labels))
    assert attack.success.mean() >= 0.95
    smallest = np.full(len(pixels), np.inf)
    for epsilon in np.linspace(0.01, 1, 100).tolist():
        sign = jax.device_get(
            adversarial.fast_gradient_sign(classifier, pixels, labels, epsilon=epsilon)
        )
        smallest = np.minimum(smallest, np.where(sign.success, sign.l2_distance, np.inf))
    assert (attack.l2_distance < smallest).mean() >= 0.95
    both = attack.success & np.isfinite(smallest)
    assert attack.l2_distance[both].mean() < 0.8 * smallest[both].mean()


def test_lbfgs_attack_reaches_given_targets(classifier: ImageClassifier, examples: Any) -> None:
    pixels, labels = examples
    targets = (labels + 1) % 4
    search = partial(adversarial.lbfgs_attack, classifier, pixels, labels)
    attack = jax.device_get(search(targets=targets))
    reached = np.asarray(logits_of(classifier, attack.pixels)).argmax(1) == targets
    np.testing.assert_array_equal(attack.success, reached)
    assert reached.mean() >= 0.9
    # Images are unchanged if the target is not reached, or is already predicted.
    assert (attack.l2_distance[~reached] == 0).all()
    unchanged = jax.device_get(search(targets=labels))
    assert unchanged.success.all()
    np.testing.assert_array_equal(unchanged.pixels, pixels)


def test_pgd_at_epsilon_0_3_leaves_less_than_5_percent_correct(
    lecture: ImageClassifier, digits: Dataset
) -> None:
    pixels = np.asarray(digits.test.images[:200], np.float32) / 255
    labels = np.asarray(digits.test.labels[:200])
    assert (np.asarray(logits_of(lecture, pixels)).argmax(1) == labels).mean() > 0.93
    attack = adversarial.projected_gradient_descent(
        lecture, pixels, labels, key=jax.random.key(0), epsilon=0.3, steps=10
    )
    assert (np.asarray(logits_of(lecture, attack.pixels)).argmax(1) == labels).mean() < 0.05


def test_attack_result_and_summary(classifier: ImageClassifier, examples: Any) -> None:
    pixels, labels = examples
    made = adversarial.fast_gradient_sign(classifier, pixels, labels, epsilon=0.15)
    attack = jax.device_get(made)
    logits = np.asarray(logits_of(classifier, attack.pixels), np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    change = (attack.pixels - pixels).reshape(len(pixels), -1)
    success = logits.argmax(1) != labels
    confidence = (odds / odds.sum(1, keepdims=True)).max(1)
    distance = np.linalg.norm(change, axis=1)
    assert 0 < success.sum() < len(success)
    np.testing.assert_array_equal(attack.success, success)
    np.testing.assert_allclose(attack.confidence, confidence, rtol=1e-4)
    np.testing.assert_allclose(attack.l2_distance, distance, rtol=1e-5)
    np.testing.assert_allclose(attack.linf_distance, np.abs(change).max(1), rtol=1e-5)
    expected = [success.mean(), *(of[success].mean() for of in (confidence, distance))]
    report = jax.device_get(adversarial.summarize_attack(made))
    np.testing.assert_allclose(report[:3], expected, rtol=1e-4)
    assert float(report.linf_distance) == pytest.approx(np.abs(change).max(1)[success].mean())


def test_transfer_errors(classifier: ImageClassifier, examples: Any) -> None:
    pixels, labels = examples
    classifiers = [classifier, ImageClassifier.from_model(FirstPixels(), IDENTITY)]
    labels = labels % 3
    attack = adversarial.fast_gradient_sign(classifier, pixels, labels, epsilon=0.2)
    table = np.asarray(adversarial.transfer_errors(classifiers, [pixels, attack.pixels], labels))
    expected = [
        [
            (np.asarray(logits_of(tested, images)).argmax(1) != labels).mean()
            for tested in classifiers
        ]
        for images in (pixels, attack.pixels)
    ]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert table[0, 1] != table[1, 0]
    # The error of the attacked network itself is the success rate.
    assert table[1, 0] == pytest.approx(np.asarray(attack.success).mean())
    assert table[1, 0] > table[0, 0]


@pytest.mark.slow
def test_attacks_are_the_same_under_jit_and_depend_on_the_key(
    classifier: ImageClassifier, examples: Any
) -> None:
    def attacks(classifier: ImageClassifier, pixels: Any, labels: Any, key: Any) -> list[Any]:
        given = classifier, pixels, labels
        pgd = partial(adversarial.projected_gradient_descent, *given, key=key, steps=5)
        made = [
            adversarial.fast_gradient_sign(*given, epsilon=0.1),
            pgd(epsilon=0.1),
            pgd(epsilon=0.5, norm="2"),
            adversarial.lbfgs_attack(*given),
        ]
        return [attack.pixels for attack in made]

    pixels, labels = examples
    once, again, other = (
        jax.device_get(attacks(classifier, pixels, labels, jax.random.key(seed)))
        for seed in (0, 0, 1)
    )
    inside = jax.jit(attacks)(classifier, pixels, labels, jax.random.key(0))
    for one, same, jitted in zip(once, again, inside, strict=True):
        np.testing.assert_array_equal(one, same)
        np.testing.assert_allclose(one, jitted, atol=1e-4)
    for one, random in zip(once[1:3], other[1:3], strict=True):
        assert (one != random).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixels": np.zeros((0, 6, 6, 1)), "labels": np.zeros(0, int)}, "at least one"),
        ({"pixels": np.zeros((6, 6, 1))}, r"\[batch, height, width, channels\]"),
        (
            {"labels": np.zeros(3, int)},
            r"give 2 integers, one class for each image, not int64 of shape \(3,\)",
        ),
        ({"labels": np.array([0, 4])}, "no class 4; choose from 0 to 3"),
        ({"pixels": np.full((2, 6, 6, 1), 255.0)}, r"255; scale them to \[0, 1\]"),
        ({"pixels": np.zeros((2, 5, 5, 1))}, "5x5x1"),
        ({"epsilon": -1.0}, "epsilon is -1.0; give 0 or more"),
        ({"norm": "1"}, "no norm '1'; choose from inf, 2"),
        ({"steps": 0}, "steps is 0; give at least 1"),
    ],
)
def test_invalid_arguments_of_attacks(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "pixels": np.zeros((2, 6, 6, 1)),
        "labels": np.zeros(2, int),
        "key": jax.random.key(0),
        "epsilon": 0.1,
    }
    with pytest.raises(InputError, match=message):
        adversarial.projected_gradient_descent(linear(), **arguments | change)


def test_invalid_arguments_of_lbfgs_attack() -> None:
    pixels, labels = np.zeros((2, 6, 6, 1)), np.zeros(2, int)
    search = partial(adversarial.lbfgs_attack, linear(), pixels, labels)
    with pytest.raises(InputError, match="search_steps is 0; give at least 1"):
        search(search_steps=0)
    with pytest.raises(InputError, match="no class 5; choose from 0 to 3"):
        search(targets=np.array([1, 5]))
    with pytest.raises(InputError, match=r"c_range is \(1.0, 0.1\); give two numbers above 0"):
        search(c_range=(1.0, 0.1))
    with pytest.raises(InputError, match="0 classifiers and 1 sets of images"):
        adversarial.transfer_errors([], [pixels], labels)
