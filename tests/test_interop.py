from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dlc_jax import interop, models, training
from dlc_jax.data import Dataset, Examples, Normalise
from dlc_jax.errors import InputError

SHAPES = {
    "conv1.weight": (32, 1, 5, 5),
    "conv1.bias": (32,),
    "conv2.weight": (64, 32, 5, 5),
    "conv2.bias": (64,),
    "fc1.weight": (200, 256),
    "fc1.bias": (200,),
    "fc2.weight": (10, 200),
    "fc2.bias": (10,),
}


def lecture() -> nnx.Module:
    return models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))


@pytest.fixture
def weights(rng: np.random.Generator) -> dict[str, Any]:
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}


def slides_network() -> Any:
    """The network of the lecture's slide, in PyTorch, with its program's initial weights."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.manual_seed(0)
    nn = torch.nn
    # `nn.Sequential` in the slide's order of layers, with its names.
    layers = {
        "conv1": nn.Conv2d(1, 32, kernel_size=5),
        "pool1": nn.MaxPool2d(3),
        "relu1": nn.ReLU(),
        "conv2": nn.Conv2d(32, 64, kernel_size=5),
        "pool2": nn.MaxPool2d(2),
        "relu2": nn.ReLU(),
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(256, 200),
        "relu3": nn.ReLU(),
        "fc2": nn.Linear(200, 10),
    }
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    return model


def test_over_100_steps_on_real_digits_the_losses_are_pytorchs(digits: Dataset) -> None:
    theirs = slides_network()
    import torch

    # The weights are copied before PyTorch changes its own in place.
    model = interop.load_torch(
        lecture(), {name: tensor.clone() for name, tensor in theirs.state_dict().items()}
    )
    state = training.create_state(model, optax.sgd(0.1))
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    criterion = torch.nn.CrossEntropyLoss()
    normalise = Normalise.fit(np.asarray(digits.train.images))
    losses = []
    for step in range(100):
        start = step * 100 % 4000
        images, labels = (np.asarray(array)[start : start + 100] for array in digits.train)
        batch = Examples(normalise(images), labels)
        state, metrics = training.train_step(state, batch)
        pixels = torch.tensor(np.asarray(batch.images)).permute(0, 3, 1, 2)
        loss = criterion(theirs(pixels), torch.tensor(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append((float(metrics.loss), loss.item()))
    ours, expected = np.array(losses).T
    difference = np.abs(ours / expected - 1)
    assert difference[0] < 1e-5
    assert difference[99] < 1e-3
    # Both have learnt something by then, so that there is something to agree on.
    assert expected[99] < expected[0] / 2


def test_weights_are_laid_out_as_pytorch_reads_them(weights: dict[str, Any]) -> None:
    model = interop.load_torch(lecture(), weights)
    np.testing.assert_array_equal(
        model.conv2.kernel[1, 2, 3, 4],  # type: ignore[attr-defined]
        weights["conv2.weight"][4, 3, 1, 2],
    )
    np.testing.assert_array_equal(
        model.fc1.kernel[5, 6],  # type: ignore[attr-defined]
        weights["fc1.weight"][6, 5],
    )


def test_loading_returns_a_copy(weights: dict[str, Any]) -> None:
    model = lecture()
    before = np.asarray(model.fc2.bias[...])  # type: ignore[attr-defined]
    interop.load_torch(model, weights)
    np.testing.assert_array_equal(model.fc2.bias[...], before)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fc1.bias": None}, "lacks fc1.bias"),
        ({"fc3.weight": np.zeros((2, 2))}, r"but the network does not, fc3\.weight"),
        ({"conv1.weight": np.zeros((32, 3, 5, 5))}, r"conv1\.weight .*\(32, 3, 5, 5\)"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    weights: dict[str, Any], change: dict[str, Any], named: str
) -> None:
    changed = {name: value for name, value in (weights | change).items() if value is not None}
    with pytest.raises(InputError, match=named):
        interop.load_torch(lecture(), changed)


def test_half_precision_weights_become_the_networks_float32(weights: dict[str, Any]) -> None:
    halves = {name: jnp.asarray(value, jnp.bfloat16) for name, value in weights.items()}
    model = interop.load_torch(lecture(), halves)
    assert model.conv1.kernel.dtype == jnp.float32  # type: ignore[attr-defined]
