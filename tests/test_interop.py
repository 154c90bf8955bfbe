import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
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
    torch.set_num_threads(1)  # its threads would spin while JAX computes
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


# At the lecture's learning rate of 0.1 the first hundred steps multiply any difference
# about a million times: in float32 PyTorch's losses, computed once with and once without
# oneDNN, differ at step 100 by 2e-3 to 2e-1. So the lecture's own rate is held to the
# tolerance in float64, and float32 at a rate at which rounding stays small.
@pytest.mark.parametrize(
    ("dtype", "learning_rate", "first", "last"),
    [("float64", 0.1, 1e-9, 1e-6), ("float32", 0.01, 1e-5, 1e-3)],
)
def test_over_100_steps_on_real_digits_the_losses_are_pytorchs(
    digits: Dataset, dtype: str, learning_rate: float, first: float, last: float
) -> None:
    theirs = slides_network()
    weights = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    normalise = Normalise.fit(digits.train.images)
    images = np.asarray(normalise(digits.train.images))
    batches = [
        (images[start : start + 100].astype(dtype), np.asarray(digits.train.labels)[start:][:100])
        for start in (step * 100 % 4000 for step in range(100))
    ]
    with jax.enable_x64(dtype == "float64"):
        ours = our_losses(weights, batches, dtype, learning_rate)
    expected = pytorch_losses(theirs, batches, dtype, learning_rate)
    difference = np.abs(np.array(ours) / np.array(expected) - 1)
    assert difference[0] <= first
    assert difference[99] <= last
    # Both have learnt something by then, so that there is something to agree on.
    assert expected[99] < 0.8 * expected[0]


def our_losses(weights: Any, batches: Any, dtype: str, learning_rate: float) -> list[float]:
    model = models.create(
        "lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0), dtype=dtype
    )
    state = training.create_state(interop.load_torch(model, weights), optax.sgd(learning_rate))
    wide = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
    state = dataclasses.replace(state, params=wide)
    losses = []
    for images, labels in batches:
        state, metrics = training.train_step(state, Examples(jnp.asarray(images), labels))
        losses.append(float(metrics.loss))
    return losses


def pytorch_losses(model: Any, batches: Any, dtype: str, learning_rate: float) -> list[float]:
    import torch

    model = model.to(getattr(torch, dtype))
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    criterion = torch.nn.CrossEntropyLoss()
    losses = []
    for images, labels in batches:
        pixels = torch.tensor(images).permute(0, 3, 1, 2)
        loss = criterion(model(pixels), torch.tensor(labels).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


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
        ({"fc1.bias": None}, "lack fc1.bias"),
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


def test_safetensors_files_are_read_without_pytorch(
    weights: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(weights, path)
    model = interop.load_torch(lecture(), path)
    np.testing.assert_array_equal(model.fc1.bias[...], weights["fc1.bias"])  # type: ignore[attr-defined]


def test_pytorchs_own_files_are_read(weights: dict[str, Any], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    path = tmp_path / "weights.pth"
    torch.save({name: torch.tensor(value) for name, value in weights.items()}, path)
    model = interop.load_torch(lecture(), str(path))
    np.testing.assert_array_equal(model.fc1.bias[...], weights["fc1.bias"])  # type: ignore[attr-defined]


class Trap:
    """What is pickled of it makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    torch.save({"conv1.weight": Trap(sprung)}, path)
    with pytest.raises(InputError, match=r"can't read PyTorch weights from .*weights\.pth"):
        interop.load_torch(lecture(), path)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_files_that_hold_no_weights_are_named(
    name: str, content: bytes | None, tmp_path: Path
) -> None:
    if name.endswith("pth"):
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"can't read PyTorch weights from .*{name}"):
        interop.load_torch(lecture(), tmp_path / name)


def test_a_file_of_something_else_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint\.pth.*state_dict"):
        interop.load_torch(lecture(), tmp_path / "checkpoint.pth")
