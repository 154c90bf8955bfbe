import dataclasses
import functools
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
from flax import nnx

from dlc_jax import models, training
from dlc_jax.data import Dataset, Examples, Normalize
from dlc_jax.data.batching import Batch
from dlc_jax.errors import InputError
from dlc_jax.models import interop
from dlc_jax.nn.losses import cross_entropy

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


# One for all, since loading returns a copy.
@functools.cache
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
    [
        pytest.param("float64", 0.1, 1e-9, 1e-6, marks=pytest.mark.slow),
        ("float32", 0.01, 1e-5, 1e-3),
    ],
)
def test_losses_of_100_steps_equal_pytorch(
    digits: Dataset, dtype: str, learning_rate: float, first: float, last: float
) -> None:
    theirs = slides_network()
    weights = {name: tensor.numpy().copy() for name, tensor in theirs.state_dict().items()}
    normalize = Normalize.fit(digits.train.images)
    images = np.asarray(normalize(digits.train.images))
    labels = np.asarray(digits.train.labels)
    batches = [
        (images[start : start + 40].astype(dtype), labels[start : start + 40])
        for start in range(0, 4000, 40)
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
    model = interop.load_torch(model, weights)

    def loss(model: Any, examples: Examples) -> tuple[jax.Array, None]:
        return cross_entropy(model(examples.images), examples.labels), None

    task = training.Supervised(lambda key: model, loss, optax.sgd(learning_rate))
    state, step = task.init(jax.random.key(0)), jax.jit(task.step)
    wide = jax.tree.map(lambda leaf: leaf.astype(dtype), state.params)
    state = dataclasses.replace(state, params=wide)
    losses = []
    for images, labels in batches:
        examples = Examples(jnp.asarray(images), jnp.asarray(labels))
        state, metrics = step(state, Batch.from_examples(examples))
        losses.append(float(metrics["loss"].mean))
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


def test_layout_of_weights(weights: dict[str, Any]) -> None:
    model = interop.load_torch(lecture(), weights)
    np.testing.assert_array_equal(
        model.conv2.kernel[1, 2, 3, 4],  # type: ignore[attr-defined]
        weights["conv2.weight"][4, 3, 1, 2],
    )
    np.testing.assert_array_equal(
        model.fc1.kernel[5, 6],  # type: ignore[attr-defined]
        weights["fc1.weight"][6, 5],
    )


def test_load_torch_does_not_change_the_model(weights: dict[str, Any]) -> None:
    model = lecture()
    before = np.asarray(model.fc2.bias[...])  # type: ignore[attr-defined]
    interop.load_torch(model, weights)
    np.testing.assert_array_equal(model.fc2.bias[...], before)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"fc1.bias": None}, r"\(missing keys: fc1\.bias\)"),
        ({"fc3.weight": np.zeros((2, 2))}, r"\(unexpected keys: fc3\.weight\)"),
        (
            {"conv1.weight": np.zeros((32, 3, 5, 5))},
            r"conv1\.weight has shape \(32, 3, 5, 5\), but the network needs \(32, 1, 5, 5\);",
        ),
        (
            {"fc2.weight": np.zeros((1000, 200))},
            r"fc2\.weight has shape \(1000, 200\), but the network needs \(10, 200\)",
        ),
    ],
)
def test_wrong_tensors_raise(weights: dict[str, Any], change: dict[str, Any], named: str) -> None:
    changed = {name: value for name, value in (weights | change).items() if value is not None}
    with pytest.raises(InputError, match=named):
        interop.load_torch(lecture(), changed)


def assert_loaded(model: Any, weights: dict[str, Any]) -> None:
    """Every parameter is the weight of its name, in float32 and in Flax's layout."""
    for name, expected in weights.items():
        layer, kind = name.split(".")
        value = getattr(getattr(model, layer), "kernel" if kind == "weight" else "bias")[...]
        if kind == "weight":
            expected = np.moveaxis(expected, [0, 1], [-1, -2])
        assert value.dtype == jnp.float32
        np.testing.assert_array_equal(value, np.asarray(expected, np.float32))


def in_bfloat16(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: value.astype(jnp.bfloat16) for name, value in weights.items()}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_arrays_of_all_float_dtypes_become_float32(weights: dict[str, Any], dtype: str) -> None:
    given = {name: value.astype(jnp.dtype(dtype)) for name, value in weights.items()}
    assert_loaded(interop.load_torch(lecture(), given), given)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "float8_e4m3fn"])
def test_tensors_of_all_float_dtypes_become_float32(weights: dict[str, Any], dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    given = {name: torch.tensor(v).to(getattr(torch, dtype)) for name, v in weights.items()}
    expected = {name: tensor.float().numpy() for name, tensor in given.items()}
    assert_loaded(interop.load_torch(lecture(), given), expected)


def test_non_contiguous_tensors(weights: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    given = {name: torch.tensor(value) for name, value in weights.items()}
    given["conv2.weight"] = given["conv2.weight"].to(memory_format=torch.channels_last)
    given["fc1.weight"] = given["fc1.weight"].T.contiguous().T
    given["fc2.weight"] = given["fc2.weight"].to_sparse()
    given["fc1.bias"] = torch.nn.Parameter(given["fc1.bias"])
    assert_loaded(interop.load_torch(lecture(), given), weights)


def aligned(array: np.ndarray) -> np.ndarray:
    """A copy at an address that JAX takes over as it is, where it may."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_loaded_network_shares_no_memory_with_the_weights(
    weights: dict[str, Any], library: str
) -> None:
    memory = {name: aligned(value) for name, value in weights.items()}
    given: dict[str, Any] = memory
    if library == "torch":
        torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
        given = {name: torch.from_numpy(array) for name, array in memory.items()}
    model = interop.load_torch(lecture(), given)
    for array in memory.values():
        array.fill(0)
    assert_loaded(model, weights)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "student.network.module."]
)
def test_wrapper_prefixes_are_removed(weights: dict[str, Any], prefix: str) -> None:
    wrapped = {prefix + name: value for name, value in weights.items()}
    # What torch.optim.swa_utils.AveragedModel and batch normalisation count is no weight.
    counts = {"n_averaged": np.array(3), f"{prefix}conv1.num_batches_tracked": np.array(3)}
    assert_loaded(interop.load_torch(lecture(), wrapped | counts), weights)


def test_wrapper_names_inside_names_are_removed(weights: dict[str, Any]) -> None:
    wrapped = {
        name.replace("conv1", "conv1._orig_mod").replace("fc1", "fc1.module"): value
        for name, value in weights.items()
    }
    assert_loaded(interop.load_torch(lecture(), wrapped), weights)


@pytest.mark.parametrize(
    "checkpoint",
    [
        {"state_dict": "weights", "epoch": 3, "optimizer": {"param_groups": []}},
        {"model_state_dict": "weights", "loss": 0.1},
        {"model": "weights", "model_ema": {"module.fc1.bias": None}},
        {"model": {"state_dict": "weights"}},
        {"state_dict_ema": "weights", "epoch": 3},
    ],
)
def test_state_dict_in_a_checkpoint(weights: dict[str, Any], checkpoint: dict[str, Any]) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return weights if value == "weights" else value

    assert_loaded(interop.load_torch(lecture(), filled(checkpoint)), weights)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (None, "are of type NoneType; give a mapping from names to tensors"),
        ({}, "there are no tensors"),
        ({"epoch": 3}, "'epoch' is of type int"),
        ({"conv1.weight": np.zeros((32, 1, 5, 5), np.int8)}, r"missing keys: conv1\.bias"),
        ({name: np.zeros(s, np.int8) for name, s in SHAPES.items()}, r"conv1\.\w+ is of type int8"),
        (
            {
                f"{prefix}{name}": np.zeros(s)
                for name, s in SHAPES.items()
                for prefix in ("", "module.")
            },
            r"have conv1\.weight twice, as conv1\.weight and module\.conv1\.weight",
        ),
        (
            {"criterion.weight": np.zeros(10)}
            | {f"model.{n}": np.zeros(s) for n, s in SHAPES.items()},
            r"unexpected keys: criterion\.weight\)",
        ),
    ],
)
def test_other_values_raise(given: Any, told: str) -> None:
    with pytest.raises(InputError, match=rf"the PyTorch weights? .*{told}") as refused:
        interop.load_torch(lecture(), given)
    assert "\n" not in str(refused.value)


def test_module_instead_of_state_dict_raises() -> None:
    with pytest.raises(InputError, match=r"are a module, Sequential; give its state_dict\(\)"):
        interop.load_torch(lecture(), slides_network())


def test_meta_tensors_raise(weights: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    given = {name: torch.tensor(value, device="meta") for name, value in weights.items()}
    with pytest.raises(InputError, match=r"conv1\.bias has no values to read"):
        interop.load_torch(lecture(), given)


def save_safetensors(path: Path, arrays: dict[str, Any]) -> None:
    """Writes the format by hand, as safetensors's writer for NumPy does not know bfloat16."""
    kinds = {"float32": "F32", "bfloat16": "BF16"}
    header, data = {}, b""
    for name, array in arrays.items():
        place = [len(data), len(data) + array.nbytes]
        about = {"dtype": kinds[str(array.dtype)], "shape": array.shape, "data_offsets": place}
        header[name], data = about, data + array.tobytes()
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


# Some are given another name than their format's usual one.
@pytest.mark.parametrize("name", ["weights.safetensors", "weights.bin"])
def test_bfloat16_safetensors_without_pytorch(
    weights: dict[str, Any], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    halves = in_bfloat16(weights)
    save_safetensors(tmp_path / name, halves)
    assert_loaded(interop.load_torch(lecture(), tmp_path / name), halves)


def save_parts(folder: Path, weights: dict[str, Any]) -> Path:
    """Weights in two files and their index, as Hugging Face keeps large networks."""
    places: dict[str, str] = {}
    for number, names in enumerate((sorted(weights)[:4], sorted(weights)[4:]), 1):
        part = f"model-{number:05d}-of-00002.safetensors"
        save_safetensors(folder / part, {name: weights[name] for name in names})
        places |= dict.fromkeys(names, part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("named", ["index", "folder", "home"])
def test_sharded_weights(
    weights: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = save_parts(tmp_path, weights)
    monkeypatch.setenv("HOME", str(tmp_path))
    paths: dict[str, Path | str] = {"index": index, "folder": tmp_path, "home": f"~/{index.name}"}
    assert_loaded(interop.load_torch(lecture(), paths[named]), weights)


def test_one_file_of_sharded_weights_raises(weights: dict[str, Any], tmp_path: Path) -> None:
    save_parts(tmp_path, weights)
    with pytest.raises(
        InputError, match=r"00001-of-00002.*missing keys: fc1\.bias, fc1\.weight, fc2\.bias"
    ):
        interop.load_torch(lecture(), tmp_path / "model-00001-of-00002.safetensors")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda index: (index.parent / "model-00002-of-00002.safetensors").unlink(),
            "00002-of-00002",
        ),
        (lambda index: index.write_text("{"), r"can't read .*index\.json"),
        (lambda index: index.write_text("[]"), "no weight_map"),
        (lambda index: index.write_text('{"weight_map": {"fc1.bias": "../a.bin"}}'), "'../a.bin'"),
        (
            lambda index: index.write_text(
                '{"weight_map": {"fc9.bias": "model-00001-of-00002.safetensors"}}'
            ),
            r"00001-of-00002\.safetensors' lacks fc9\.bias",
        ),
        (lambda index: index.unlink(), "several files of weights"),
        (lambda index: [path.unlink() for path in index.parent.iterdir()], "no PyTorch weights"),
    ],
)
def test_invalid_index_raises(
    weights: dict[str, Any], spoil: Any, told: str, tmp_path: Path
) -> None:
    index = save_parts(tmp_path, weights)
    spoil(index)
    with pytest.raises(InputError, match=told):
        interop.load_torch(lecture(), index if index.exists() else tmp_path)


def test_safetensors_without_pytorch(weights: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(weights, path)
    model = interop.load_torch(lecture(), path)
    np.testing.assert_array_equal(model.fc1.bias[...], weights["fc1.bias"])  # type: ignore[attr-defined]


def test_pth_files(weights: dict[str, Any], tmp_path: Path) -> None:
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


def test_pth_files_with_code_raise(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    path, sprung = tmp_path / "weights.pth", tmp_path / "sprung"
    torch.save({"conv1.weight": Trap(sprung)}, path)
    with pytest.raises(
        InputError, match=r"can't read .*weights\.pth'.*objects other than tensors"
    ) as told:
        interop.load_torch(lecture(), path)
    assert "\n" not in str(told.value)
    assert not sprung.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_files_without_weights_raise(name: str, content: bytes | None, tmp_path: Path) -> None:
    if name.endswith("pth"):
        pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"can't read PyTorch weights from .*{name}"):
        interop.load_torch(lecture(), tmp_path / name)


def test_other_files_raise(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")
    torch.save({"epoch": 3}, tmp_path / "checkpoint.pth")
    with pytest.raises(InputError, match=r"checkpoint\.pth.*state_dict"):
        interop.load_torch(lecture(), tmp_path / "checkpoint.pth")
