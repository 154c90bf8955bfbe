import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlc_jax import training
from dlc_jax.data import Examples, Normalize
from dlc_jax.data.batching import Batch
from dlc_jax.errors import InputError
from dlc_jax.models import tc_problem
from dlc_jax.models.tc_problem import TC

IDENTITY = Normalize((0.0,), (1.0,))


def network(size: int = 6, seed: int = 0, **options: Any) -> TC:
    return TC(image_shape=(size, size, 1), num_classes=2, rngs=nnx.Rngs(seed), **options)


def positions(image: Any) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in np.argwhere(image[..., 0])]


def train(model: TC, examples: Examples, steps: int) -> tuple[nnx.Module, np.ndarray]:
    """The network after full-batch gradient descent, and the error of each step."""
    task = training.classification(lambda key: model, optax.sgd(0.3, momentum=0.9), IDENTITY)
    batch = Batch.from_examples(jax.tree.map(jnp.asarray, examples))

    @jax.jit
    def scan(state: training.TrainState) -> Any:
        return jax.lax.scan(lambda state, _: task.step(state, batch), state, length=steps)

    state, metrics = scan(task.init(jax.random.key(0)))
    return state.model, np.asarray(metrics["error"].mean)


def error(model: Any, examples: Examples) -> float:
    return float((model(jnp.asarray(examples.images)).argmax(1) != examples.labels).mean())


@pytest.mark.parametrize("size", [3, 6])
def test_eight_patterns_per_position(size: int) -> None:
    images, labels = tc_problem.patterns(size)
    count = 8 * (size - 2) ** 2
    assert images.shape == (count, size, size, 1)
    assert len(np.unique(images, axis=0)) == count
    assert np.bincount(labels).tolist() == [count // 2, count // 2]
    assert set(np.unique(images)) == {0, 1}
    assert (images.sum((1, 2, 3)) == 5).all()


def test_shapes_of_t_and_c() -> None:
    images, labels = tc_problem.patterns(3)
    (first_t, first_c), _ = images[:2], labels[:2]
    assert positions(first_t) == [(0, 0), (0, 1), (0, 2), (1, 1), (2, 1)]
    assert positions(first_c) == [(0, 1), (0, 2), (1, 1), (2, 1), (2, 2)]
    # "Differ from one another by a single square": one moves.
    assert (first_t != first_c).sum() == 2


def test_patterns_contain_all_rotations_and_shifts() -> None:
    images, labels = tc_problem.patterns(5)
    seen = {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}
    for image, label in zip(images[:8], labels[:8], strict=True):
        for down, right in itertools.product(range(3), repeat=2):
            moved = np.roll(image, (down, right), (0, 1))
            assert (moved.tobytes(), int(label)) in seen
            turned = np.ascontiguousarray(moved.transpose(1, 0, 2)[:, ::-1])
            assert (turned.tobytes(), int(label)) in seen


def test_pairwise_distances_are_the_same_for_t_and_c() -> None:
    images, labels = tc_problem.patterns(4)
    distances = [
        sorted(
            (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
            for a, b in itertools.combinations(positions(image), 2)
        )
        for image in images
    ]
    assert set(labels.tolist()) == {0, 1}
    assert all(each == distances[0] for each in distances)


def test_stages_equal_numpy(rng: np.random.Generator) -> None:
    model = network(5, features=3)
    image = rng.normal(size=(5, 5))
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    hidden_layer, output = (
        {name: np.asarray(value, np.float64) for name, value in params[layer].items()}
        for layer in ("hidden", "output")
    )
    around = np.pad(image, 2)
    hidden = np.zeros((7, 7, 3))
    for i, j, kind in np.ndindex(7, 7, 3):
        seen = around[i : i + 3, j : j + 3]
        total = (seen * hidden_layer["kernel"][:, :, 0, kind]).sum() + hidden_layer["bias"][kind]
        hidden[i, j, kind] = 1 / (1 + np.exp(-total))
    weights = output["kernel"][:, 0]
    z = sum(hidden[:, :, kind].sum() * weights[kind] for kind in range(3)) + output["bias"][0]
    stages = model.stages(jnp.asarray(image[None, :, :, None], jnp.float32))
    np.testing.assert_allclose(stages["hidden"][0], hidden, rtol=1e-5)
    np.testing.assert_allclose(stages["output"], [[1 / (1 + np.exp(-z))]], rtol=1e-5)
    np.testing.assert_allclose(stages["logits"], [[0, z]], rtol=1e-5)


def test_loss_is_half_the_squared_error() -> None:
    stages = {"output": jnp.array([[0.25], [0.9], [0.5]])}
    expected = [0.25**2 / 2, 0.1**2 / 2, 0.5**2 / 2]
    np.testing.assert_allclose(network().loss(stages, np.array([0, 1, 1])), expected, rtol=1e-6)


def test_logits_are_translation_invariant() -> None:
    images, _ = tc_problem.patterns(6)
    logits = np.asarray(network(seed=3)(jnp.asarray(images)))[:, 1].reshape(16, 8)
    np.testing.assert_allclose(logits, np.broadcast_to(logits[0], (16, 8)), rtol=1e-5)
    assert np.ptp(logits[0]) > 1e-3


# The result of some seeds depends on rounding, which differs without XLA optimizations.
@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 5))]
)
def test_training_reaches_zero_error(seed: int) -> None:
    examples = Examples(*tc_problem.patterns(6))
    model, errors = train(network(seed=seed), examples, 5000)
    assert errors[0] > 0.2
    assert error(model, examples) == 0
    # The error stays zero.
    assert not errors[-1000:].any()


def test_training_on_central_patterns_generalizes_to_other_positions() -> None:
    images, labels = tc_problem.patterns(6)
    middle = images[:, 2:4, 2:4, 0].sum((1, 2)) >= 2
    assert 8 < middle.sum() < 100
    model, _ = train(network(seed=0), Examples(images[middle], labels[middle]), 5000)
    assert error(model, Examples(images[~middle], labels[~middle])) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_shape": (2, 6, 1), "num_classes": 2}, "not 2x6"),
        ({"image_shape": (6, 6, 1), "num_classes": 10}, "not 10"),
    ],
)
def test_invalid_shapes_and_classes_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TC(rngs=nnx.Rngs(0), **arguments)
    with pytest.raises(InputError, match="not 2x2"):
        tc_problem.patterns(2)
