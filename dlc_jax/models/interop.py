"""Loading PyTorch weights."""

import json
import os
import pickle
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from dlc_jax.errors import InputError
from dlc_jax.models.network import Network

Model = TypeVar("Model", bound=nnx.Module)

# Transpositions from PyTorch's layout, by number of axes, and back: OIHW to HWIO (Conv2d),
# [out, in] to [in, out] (Linear).
_TRANSPOSE = {4: (2, 3, 1, 0), 2: (1, 0)}
_INVERSE_TRANSPOSE = {4: (3, 2, 0, 1), 2: (1, 0)}
# PyTorch's names of a layer's variables.
_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Entries without weights: the step counters of BatchNorm and `AveragedModel`, and extra state of
# modules.
_IGNORED = {"num_batches_tracked", "n_averaged", "_extra_state"}
# Parts that wrappers add to names: DataParallel and DistributedDataParallel, torch.compile, FSDP,
# activation checkpointing, Lightning Fabric.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# Keys of the state_dict in checkpoints. Trained weights are preferred to averages (EMA).
_STATE_DICTS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "network",
    "net",
    "weights",
    "params",
    "state_dict_ema",
    "ema_state_dict",
    "model_ema",
    "params_ema",
    "ema",
)
# Floating-point types of safetensors.
_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
# File names of Hugging Face, in order of preference.
_FILE_PATTERNS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.safetensors.index.json",
    "*.safetensors",
)

# Raised for files that are missing, truncated, or of another format.
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    UserWarning,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)


def load_torch(model: Model, state_dict: Mapping[str, Any] | str | os.PathLike[str]) -> Model:
    """Returns a network with the weights of a PyTorch network.

    Prefixes that wrappers add to names, such as `module.` (DataParallel), `_orig_mod.`
    (`torch.compile`) or `model.` (Lightning), are removed. Weights are converted to the dtype of
    the network's parameters, float32.

    Args:
      model: The network, which is not changed. Its parameters are matched by the names of
        PyTorch's layers; for networks of torchvision, by torchvision's names.
      state_dict: Arrays or tensors by PyTorch's names, as `torch_model.state_dict()` returns them;
        a checkpoint that contains them under a common key such as `state_dict`; or the path of a
        file or of a folder with such a file. Files are safetensors, an index of several
        safetensors, or PyTorch's (`.pth`). The latter need PyTorch, and only their tensors and
        plain values are read.

    Returns:
      A copy of `model` with these weights, which shares no memory with `state_dict`.

    Raises:
      InputError: A tensor is missing, unexpected, not of floating-point numbers, or of the wrong
        shape, or the file can't be read.

    Example:
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> weights = {"weight": np.ones((3, 2)), "bias": np.zeros(3)}
      >>> load_torch(model, weights)(jnp.ones((1, 2)))
      Array([[2., 2., 2.]], dtype=float32)
    """
    given = "the PyTorch weights"
    if isinstance(state_dict, str | os.PathLike):
        file = Path(state_dict).expanduser()
        given, state_dict = f"{given} in {str(file)!r}", _read(file)
    graphdef, known, rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)  # type: ignore[misc]
    by_path = dict(nnx.to_flat_state(known))
    prefixes = model.torch_names() if isinstance(model, Network) else {}
    expected = {_torch_name(path, prefixes): path for path in by_path}
    tensors = _remove_wrappers(_tensors_in(given, state_dict), expected)
    _check_names(given, type(model).__name__, list(expected), list(tensors))
    for name, path in expected.items():
        variable = by_path[path]
        value = _to_numpy(name, tensors[name])
        if value.ndim in _TRANSPOSE:
            value = value.transpose(_TRANSPOSE[value.ndim])
        if value.shape != variable.shape:
            expected_shape = tuple(
                variable.shape[axis] for axis in _INVERSE_TRANSPOSE.get(len(variable.shape), ())
            )
            raise InputError(
                f"the PyTorch weight {name} has shape {tuple(tensors[name].shape)}, but the "
                f"network needs {expected_shape or variable.shape}; create the network with the "
                "same options, such as num_classes, or give other weights"
            )
        # A copy, which shares no memory with the tensor.
        by_path[path] = variable.replace(jnp.asarray(np.array(value, variable.dtype, order="C")))
    return nnx.merge(graphdef, nnx.from_flat_state(by_path.items()), rest)


def _tensors_in(given: str, state_dict: Any) -> dict[str, Any]:
    """Returns the tensors by name, from a state_dict or a checkpoint that holds one."""
    if hasattr(state_dict, "state_dict"):
        raise InputError(
            f"{given} are a module, {type(state_dict).__name__}; give its state_dict() instead"
        )
    if not isinstance(state_dict, Mapping):
        raise InputError(
            f"{given} are of type {type(state_dict).__name__}; give a mapping from names to "
            "tensors, such as torch_model.state_dict(), or the path of a file"
        )
    for key in _STATE_DICTS:
        inner = state_dict.get(key)
        if isinstance(inner, Mapping) or hasattr(inner, "state_dict"):
            return _tensors_in(given, inner)
    entries = {
        name: entry
        for name, entry in state_dict.items()
        if not (isinstance(name, str) and name.rpartition(".")[2] in _IGNORED)
    }
    others = [name for name, entry in entries.items() if not _is_array(entry)]
    if others or not entries:
        kinds = [f"{name!r} is of type {type(entries[name]).__name__}" for name in others[:3]]
        raise InputError(
            f"{given} are not a mapping from names to tensors (a state_dict): "
            f"{', '.join(kinds) or 'there are no tensors'}; give torch_model.state_dict()"
        )
    return {str(name): entry for name, entry in entries.items()}


def _is_array(entry: Any) -> bool:
    return hasattr(entry, "shape") and hasattr(entry, "dtype")


def _remove_wrappers(tensors: dict[str, Any], expected: Iterable[str]) -> dict[str, Any]:
    """Returns the tensors by names without the parts that wrappers add."""
    if set(tensors) == set(expected):
        return tensors
    own = {part for name in expected for part in name.split(".")}
    names = {
        name: ".".join(part for part in name.split(".") if part in own or part not in _WRAPPERS)
        for name in tensors
    }
    prefix = _common_prefix(names.values(), set(expected))
    names = {name: inner.removeprefix(prefix) for name, inner in names.items()}
    by_name: dict[str, str] = {}
    for name, inner in names.items():
        if inner in by_name:
            raise InputError(
                f"the PyTorch weights have {inner} twice, as {by_name[inner]} and {name}; "
                "give one of them"
            )
        by_name[inner] = name
    return {inner: tensors[name] for inner, name in by_name.items()}


def _common_prefix(names: Iterable[str], expected: set[str]) -> str:
    """The most frequent prefix of the expected names, such as that of a surrounding module."""
    counts = Counter({"": 0})
    for name in names:
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        counts.update(name[:end] for end in ends if name[end:] in expected)
    # max() returns the first of equally frequent prefixes, so "" is preferred.
    return max(counts, key=counts.__getitem__)


def _check_names(given: str, network: str, expected: list[str], names: list[str]) -> None:
    missing = [name for name in expected if name not in names]
    unexpected = [name for name in names if name not in expected]
    problems = [f"missing keys: {_join(missing)}"] if missing else []
    if unexpected:
        problems.append(f"unexpected keys: {_join(unexpected)}")
    if problems:
        raise InputError(
            f"{given} do not match {network} ({'; '.join(problems)}); give the weights of a "
            "network with the same layers"
        )


def _join(names: Iterable[str], max_names: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def _torch_name(path: tuple[Any, ...], prefixes: Mapping[str, str]) -> str:
    *layers, variable = map(str, path)
    layer = ".".join(layers)
    for ours, theirs in prefixes.items():
        if f"{layer}.".startswith(f"{ours}."):
            layer = theirs + layer[len(ours) :]
            break
    return ".".join(filter(None, (layer, _VARIABLES.get(variable, variable))))


def _read(path: Path) -> Any:
    """Reads a file or a folder of files."""
    try:
        if path.is_dir():
            path = _find_in_folder(path)
        if path.suffix == ".json":
            return _read_index(path)
        if path.suffix == ".safetensors" or _is_safetensors(path):
            return _read_safetensors(path)
        return _read_pickled_tensors(path)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(
            f"can't read PyTorch weights from {str(path)!r} ({_reason(error)})"
        ) from error


def _reason(error: Exception) -> str:
    """The reason why a file can't be read, in one line."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        found = re.search(r"GLOBAL ([\w.]+)", text)
        example = f", such as {found[1]}," if found else ""
        return (
            f"it holds objects other than tensors{example} which could run code and are not "
            "read; save torch_model.state_dict() alone"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = text.splitlines()
    if not lines or not re.search("[a-z]{3}", lines[0]):
        return "it is not a file that PyTorch saved"
    return lines[0].strip().rstrip(".")


def _find_in_folder(folder: Path) -> Path:
    """Returns the file of weights in a folder, or the index of several files."""
    for pattern in _FILE_PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise InputError(
                f"there are several files of weights in {str(folder)!r}: "
                f"{_join(path.name for path in found)}; give the path of one of them"
            )
        if found:
            return found[0]
    raise InputError(
        f"there are no PyTorch weights in {str(folder)!r}, such as model.safetensors; give the "
        "path of a file"
    )


def _read_index(path: Path) -> dict[str, Any]:
    """Reads the tensors of all files that an index names."""
    index = json.loads(path.read_text("utf-8"))
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(p, str) for p in weight_map.values()):
        raise InputError(
            f"{str(path)!r} is not an index of PyTorch weights: it has no weight_map; give another "
            "file"
        )
    tensors: dict[str, Any] = {}
    for part in sorted(set(weight_map.values())):
        if Path(part).name != part:
            raise InputError(
                f"the index {str(path)!r} names {part!r}, which is not in its folder; move all "
                "files into the folder and correct the index"
            )
        inside = _read(path.with_name(part))
        names = [name for name, file in weight_map.items() if file == part]
        if missing := [name for name in names if name not in inside]:
            raise InputError(
                f"{str(path.with_name(part))!r} lacks {_join(missing)}, which {path.name} lists; "
                "download both files again"
            )
        tensors |= {name: inside[name] for name in names}
    return tensors


def _is_safetensors(path: Path) -> bool:
    """Whether a file starts like safetensors: with the length of a JSON object, and the object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a file, including types that NumPy lacks, such as bfloat16."""
    tensors = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        kind = entry["dtype"]
        if kind not in _FLOATS:
            if name.rpartition(".")[2] in _IGNORED:
                continue
            raise InputError(
                f"the PyTorch weight {name} in {str(path)!r} is of type {kind}; give weights of "
                "floating-point numbers"
            )
        tensors[name] = np.frombuffer(entry["data"], np.dtype(_FLOATS[kind])).reshape(
            entry["shape"]
        )
    return tensors


def _read_pickled_tensors(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"reading {str(path)!r} needs PyTorch (pip install 'dlc-jax[torch]'); "
            "safetensors files do not"
        ) from None
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_numpy(name: str, tensor: Any) -> np.ndarray:
    """Returns the values of a tensor or array, which may share its memory."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if not kind.startswith(("float", "bfloat")):
        raise InputError(
            f"the PyTorch weight {name} is of type {kind}; give weights of floating-point numbers"
        )
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = tensor.to_dense() if getattr(tensor, "is_sparse", False) else tensor
            # NumPy lacks bfloat16 and 8-bit types; float32 represents their values exactly.
            tensor = (tensor if kind in ("float64", "float16") else tensor.float()).numpy()
        return np.asarray(tensor)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the PyTorch weight {name} has no values to read ({_reason(error)})"
        ) from error
