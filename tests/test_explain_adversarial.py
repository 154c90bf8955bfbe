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
from dlc_jax.data import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.explain import View, adversarial

# Leaves pixels as they are.
UNCHANGED = Normalise(np.zeros(1, np.float32), np.full(1, 255, np.float32))


class Small(models.Network):
    """Logits of 6x6 pixels that are linear, of which closed forms are known, or else bent.

    All tests share its structure and the number of images, and so the compiled programs.
    """

    def __init__(self, kernel: np.ndarray, bias: np.ndarray, bent: float) -> None:
        rng = np.random.default_rng(2)
        self.kernel, self.bias, self.bent, self.first, self.second = (
            nnx.Param(jnp.asarray(values, jnp.float32))
            for values in (kernel, bias, bent, rng.normal(size=(36, 8)), rng.normal(size=(8, 4)))
        )

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        x = x.reshape(len(x), -1)
        linear = x @ self.kernel[...] + self.bias[...]
        hidden = nnx.relu((x - 0.5) @ self.first[...])
        return OrderedDict(logits=linear + self.bent[...] * (hidden @ self.second[...]))


def linear(scale: float = 1.0) -> View:
    """Two of its four classes are out of the question."""
    # With these weights no image is all but on the hyperplane.
    kernel = np.random.default_rng(6).normal(size=(36, 4)) * [1, 1, 0, 0]
    return View.of(Small(scale * kernel / 6, np.array([0, 0, -1e6, -1e6]), 0.0), UNCHANGED)


def bent(seed: int = 1) -> View:
    kernel = np.random.default_rng(seed).normal(size=(36, 4))
    return View.of(Small(kernel / 6, np.zeros(4), 1.0), UNCHANGED)


def normals(view: View) -> np.ndarray:
    """For each label of the linear network the way to the other class, [2, 6, 6, 1]."""
    kernel = np.asarray(view.variables["kernel"][...], np.float64)
    to_second = (kernel[:, 1] - kernel[:, 0]).reshape(6, 6, 1)
    return np.stack([to_second, -to_second])


@pytest.fixture(scope="module")
def view() -> View:
    return bent()


@pytest.fixture(scope="module")
def right(view: View) -> tuple[np.ndarray, np.ndarray]:
    """20 images, from black to white, and the classes that the network takes them for."""
    pixels = np.random.default_rng(0).uniform(-0.5, 1.5, (20, 6, 6, 1)).clip(0, 1)
    pixels = pixels.astype(np.float32)
    return pixels, np.asarray(logits_of(view, pixels)).argmax(1)


@settings(deadline=None, max_examples=20)
@given(epsilon=st.floats(0, 1, width=32))
def test_fgsm_stays_within_epsilon_and_the_box(view: View, right: Any, epsilon: float) -> None:
    pixels, labels = right
    attack = adversarial.fast_gradient_sign(view, pixels, labels, epsilon=epsilon)
    made = np.asarray(attack.pixels)
    change = made - pixels
    assert np.abs(change).max() <= epsilon + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1
    # Not less either, wherever the box has room for a whole step, up or down.
    room = (pixels >= epsilon) & (pixels <= 1 - epsilon)
    moved = np.abs(change[room])
    assert ((moved < 1e-6) | (np.abs(moved - epsilon) < 1e-6)).all()


@settings(deadline=None, max_examples=20)
@given(epsilon=st.floats(0, 2, width=32), norm=st.sampled_from(["inf", "2"]))
def test_pgd_stays_in_its_ball_and_the_box(
    view: View, right: Any, epsilon: float, norm: str
) -> None:
    pixels, labels = right
    attack = adversarial.projected_gradient_descent(
        view, pixels, labels, key=jax.random.key(0), epsilon=epsilon, norm=norm, steps=5
    )
    made = np.asarray(attack.pixels)
    change = (made - pixels).reshape(len(pixels), -1)
    distances = np.linalg.norm(change, ord={"inf": np.inf, "2": 2}[norm], axis=1)
    assert distances.max() <= epsilon * (1 + 1e-5) + 1e-6
    assert made.min() >= 0
    assert made.max() <= 1


@pytest.fixture
def grey(rng: np.random.Generator) -> np.ndarray:
    """20 images with room up and down."""
    return rng.uniform(0.3, 0.7, (20, 6, 6, 1)).astype(np.float32)


# The second is so sure of everything that its cross-entropy's gradient is zero in float32.
@pytest.mark.parametrize("scale", [1, 1000])
def test_fgsm_of_a_linear_network_has_its_closed_form(scale: float, grey: np.ndarray) -> None:
    view = linear(scale)
    labels = np.asarray(logits_of(view, grey)).argmax(1)
    attack = adversarial.fast_gradient_sign(view, grey, labels, epsilon=0.1)
    expected = grey + 0.1 * np.sign(normals(view)[labels])
    np.testing.assert_allclose(attack.pixels, expected, atol=1e-6)


@pytest.mark.parametrize("norm", ["inf", "2"])
def test_long_steps_of_pgd_of_a_linear_network_have_their_closed_form(
    norm: str, grey: np.ndarray
) -> None:
    view = linear()
    labels = np.arange(20) % 2
    attack = adversarial.projected_gradient_descent(
        view,
        grey,
        labels,
        key=jax.random.key(0),
        epsilon=0.1,
        norm=norm,
        steps=5,
        step_size=1000.0,  # beside which the start is nothing
    )
    normal = normals(view)[labels]
    length = np.sqrt((normal**2).sum((1, 2, 3), keepdims=True))
    direction = np.sign(normal) if norm == "inf" else normal / length
    np.testing.assert_allclose(attack.pixels, grey + 0.1 * direction, atol=1e-4)


class FirstPixels(models.Network):
    """The first three values are the logits."""

    def stages(self, x: Array) -> OrderedDict[str, Array]:
        return OrderedDict(logits=x.reshape(len(x), -1)[:, :3])


def test_starts_of_pgd_are_uniform_in_the_ball() -> None:
    # Without steps worth the name; in 3 dimensions an eighth of a ball is within half its radius.
    grey = np.full((20_000, 1, 1, 3), 0.5, np.float32)
    attack = adversarial.projected_gradient_descent(
        View.of(FirstPixels(), UNCHANGED),
        grey,
        np.zeros(len(grey), int),
        key=jax.random.key(0),
        epsilon=0.4,
        norm="2",
        steps=1,
        step_size=1e-9,
    )
    distance = np.asarray(attack.distance_2)
    for part in (0.5, 0.75):
        share = (distance < part * 0.4).mean()
        assert share == pytest.approx(part**3, abs=0.012)  # about four standard errors
    np.testing.assert_allclose((np.asarray(attack.pixels) - grey).mean((0, 1, 2)), 0, atol=0.006)


def exact_distance(image: np.ndarray, normal: np.ndarray, gap: float) -> float:
    """How far it is to where `normal` times the change makes good the gap, within the box.

    The nearest point is a step along the normal, clipped to the box (by Lagrange's conditions).
    """

    def change(step: float) -> np.ndarray:
        return (image + step * normal).clip(0, 1) - image

    low, high = 0.0, 1e3
    for _ in range(60):
        middle = (low + high) / 2
        enough = (normal * change(middle)).sum() >= gap
        low, high = (low, middle) if enough else (middle, high)
    return float(np.linalg.norm(change(high)))


@pytest.mark.parametrize("where", ["inside the box", "also at black and white"])
def test_smallest_perturbation_of_a_linear_network_reaches_the_hyperplane(
    where: str, grey: np.ndarray, rng: np.random.Generator
) -> None:
    view = linear(4.0)
    if where == "also at black and white":
        grey = (3 * rng.uniform(size=grey.shape) - 1).clip(0, 1).astype(np.float32)
    logits = np.asarray(logits_of(view, grey), np.float64)
    labels = logits.argmax(1)
    attack = jax.device_get(adversarial.smallest_perturbation(view, grey, labels))
    assert attack.success.all()
    assert attack.pixels.min() >= 0
    assert attack.pixels.max() <= 1
    gaps = np.abs(logits[:, 0] - logits[:, 1])
    exact = [
        exact_distance(image.astype(np.float64), normals(view)[label], gap)
        for image, label, gap in zip(grey, labels, gaps, strict=True)
    ]
    ratios = np.asarray(attack.distance_2) / exact
    assert ratios.min() > 0.999
    assert ratios.max() < 1.02


def test_smallest_perturbation_is_smaller_than_that_of_the_gradients_sign(
    view: View, right: Any
) -> None:
    pixels, labels = right
    attack = jax.device_get(adversarial.smallest_perturbation(view, pixels, labels))
    assert attack.success.mean() >= 0.95
    smallest = np.full(len(pixels), np.inf)
    for epsilon in np.linspace(0.01, 1, 100).tolist():
        sign = jax.device_get(adversarial.fast_gradient_sign(view, pixels, labels, epsilon=epsilon))
        smallest = np.minimum(smallest, np.where(sign.success, sign.distance_2, np.inf))
    assert (attack.distance_2 < smallest).mean() >= 0.95
    both = attack.success & np.isfinite(smallest)
    assert attack.distance_2[both].mean() < 0.8 * smallest[both].mean()


def test_smallest_perturbation_reaches_the_targets_that_it_is_given(view: View, right: Any) -> None:
    pixels, labels = right
    targets = (labels + 1) % 4
    search = partial(adversarial.smallest_perturbation, view, pixels, labels)
    attack = jax.device_get(search(targets=targets))
    reached = np.asarray(logits_of(view, attack.pixels)).argmax(1) == targets
    np.testing.assert_array_equal(attack.success, reached)
    assert reached.mean() >= 0.9
    # Where it is not reached, nothing is changed; and where it was, nothing has to be.
    assert (attack.distance_2[~reached] == 0).all()
    unchanged = jax.device_get(search(targets=labels))
    assert unchanged.success.all()
    np.testing.assert_array_equal(unchanged.pixels, pixels)


def test_pgd_at_epsilon_0_3_leaves_under_5_percent_right(lecture: View, digits: Dataset) -> None:
    pixels = np.asarray(digits.test.images[:200], np.float32) / 255
    labels = np.asarray(digits.test.labels[:200])
    assert (np.asarray(logits_of(lecture, pixels)).argmax(1) == labels).mean() > 0.93
    attack = adversarial.projected_gradient_descent(
        lecture, pixels, labels, key=jax.random.key(0), epsilon=0.3, steps=10
    )
    assert (np.asarray(logits_of(lecture, attack.pixels)).argmax(1) == labels).mean() < 0.05


def test_an_attack_says_what_became_of_its_images(view: View, right: Any) -> None:
    pixels, labels = right
    made = adversarial.fast_gradient_sign(view, pixels, labels, epsilon=0.15)
    attack = jax.device_get(made)
    logits = np.asarray(logits_of(view, attack.pixels), np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    change = (attack.pixels - pixels).reshape(len(pixels), -1)
    success = logits.argmax(1) != labels
    confidence = (odds / odds.sum(1, keepdims=True)).max(1)
    distance = np.linalg.norm(change, axis=1)
    assert 0 < success.sum() < len(success)
    np.testing.assert_array_equal(attack.success, success)
    np.testing.assert_allclose(attack.confidence, confidence, rtol=1e-4)
    np.testing.assert_allclose(attack.distance_2, distance, rtol=1e-5)
    np.testing.assert_allclose(attack.distance_inf, np.abs(change).max(1), rtol=1e-5)
    expected = [success.mean(), *(of[success].mean() for of in (confidence, distance))]
    report = jax.device_get(adversarial.report(made))
    np.testing.assert_allclose(report[:3], expected, rtol=1e-4)
    assert float(report.distance_inf) == pytest.approx(np.abs(change).max(1)[success].mean())


def test_transfer_is_each_networks_error_on_the_images_made_for_each(
    view: View, right: Any
) -> None:
    pixels, labels = right
    views = [view, View.of(FirstPixels(), UNCHANGED)]
    labels = labels % 3
    attack = adversarial.fast_gradient_sign(view, pixels, labels, epsilon=0.2)
    table = np.asarray(adversarial.transfer(views, [pixels, attack.pixels], labels))
    expected = [
        [(np.asarray(logits_of(tested, images)).argmax(1) != labels).mean() for tested in views]
        for images in (pixels, attack.pixels)
    ]
    np.testing.assert_allclose(table, expected, atol=1e-6)
    assert table[0, 1] != table[1, 0]
    # To itself an attack carries over as often as it succeeds.
    assert table[1, 0] == pytest.approx(np.asarray(attack.success).mean())
    assert table[1, 0] > table[0, 0]


@pytest.mark.slow
def test_attacks_are_the_same_inside_jit_and_for_the_same_key(view: View, right: Any) -> None:
    def attacks(view: View, pixels: Any, labels: Any, key: Any) -> list[Any]:
        given = view, pixels, labels
        pgd = partial(adversarial.projected_gradient_descent, *given, key=key, steps=5)
        made = [
            adversarial.fast_gradient_sign(*given, epsilon=0.1),
            pgd(epsilon=0.1),
            pgd(epsilon=0.5, norm="2"),
            adversarial.smallest_perturbation(*given),
        ]
        return [attack.pixels for attack in made]

    pixels, labels = right
    once, again, other = (
        jax.device_get(attacks(view, pixels, labels, jax.random.key(seed))) for seed in (0, 0, 1)
    )
    inside = jax.jit(attacks)(view, pixels, labels, jax.random.key(0))
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
        ({"labels": np.zeros(3, int)}, r"2 images.*\(3,\)"),
        ({"labels": np.array([0, 4])}, "no class 4; choose from 0 to 3"),
        ({"pixels": np.full((2, 6, 6, 1), 255.0)}, "255; scale them to go from 0 to 1"),
        ({"pixels": np.zeros((2, 5, 5, 1))}, "5x5x1"),
        ({"epsilon": -1.0}, "epsilon is -1.0; give 0 or more"),
        ({"norm": "1"}, "no norm '1'; choose from inf, 2"),
        ({"steps": 0}, "steps is 0; give at least 1"),
    ],
)
def test_what_does_not_suit_an_attack_is_named(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "pixels": np.zeros((2, 6, 6, 1)),
        "labels": np.zeros(2, int),
        "key": jax.random.key(0),
        "epsilon": 0.1,
    }
    with pytest.raises(InputError, match=message):
        adversarial.projected_gradient_descent(linear(), **arguments | change)


def test_what_does_not_suit_the_smallest_perturbation_is_named() -> None:
    pixels, labels = np.zeros((2, 6, 6, 1)), np.zeros(2, int)
    search = partial(adversarial.smallest_perturbation, linear(), pixels, labels)
    with pytest.raises(InputError, match="rounds is 0; give at least 1"):
        search(rounds=0)
    with pytest.raises(InputError, match="no class 5; choose from 0 to 3"):
        search(targets=np.array([1, 5]))
    with pytest.raises(InputError, match=r"weights are 1.0 and 0.1; give two above 0"):
        search(weights=(1.0, 0.1))
    with pytest.raises(InputError, match="0 networks and 1 sets of images"):
        adversarial.transfer([], [pixels], labels)
