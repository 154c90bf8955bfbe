"""Weights from PyTorch."""

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

# PyTorch's layout of a `weight` by its number of axes: Conv2d's OIHW to HWIO, Linear's
# [out, in] to [in, out]; and the way back.
_TRANSPOSE = {4: (2, 3, 1, 0), 2: (1, 0)}
_BACK = {4: (3, 2, 0, 1), 2: (1, 0)}
# What PyTorch calls the variables of a layer.
_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# Entries without weights: BatchNorm's count of steps, which is used only where no momentum is
# given; how many states `AveragedModel` has averaged; a module's own extra state.
_IGNORED = {"num_batches_tracked", "n_averaged", "_extra_state"}
# What wrappers put into the names of the module that they wrap, at any depth: DataParallel and
# DistributedDataParallel, torch.compile, FSDP, activation checkpointing, Lightning Fabric.
_WRAPPERS = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}
# Where checkpoints keep a network's state_dict, the trained weights before averages of them.
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
# What safetensors calls the floating-point types.
_FLOATS: dict[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": jnp.bfloat16,
    "F8_E4M3": jnp.float8_e4m3fn,
    "F8_E5M2": jnp.float8_e5m2,
}
# The files of a folder of weights, as Hugging Face names them, in the order of preference.
_IN_FOLDERS = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "*.safetensors.index.json",
    "*.safetensors",
)

# What reading a file that is missing, cut off, or not what its name says ends with.
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
    """The network with the weights of its PyTorch counterpart.

    Names may have the prefixes of wrappers, as `module.` of `DataParallel`, `_orig_mod.` of
    `torch.compile` or `model.` of Lightning; these are taken off. Weights of any floating-point
    type become the network's own, which is float32.

    Args:
      model: the network; it is not changed. For the networks that torchvision has too, the
        names are torchvision's; otherwise its layers bear the names of PyTorch's.
      state_dict: arrays or tensors by PyTorch's names, as `torch_model.state_dict()`; or a
        checkpoint that holds them under a usual name such as `state_dict` (trained weights are
        preferred to averages of them); or a file of either, in safetensors format, as an index
        of several such files, or as PyTorch saves it (`.pth`, of which only tensors and plain
        values are read, and which needs PyTorch); or a folder of such files.

    Returns:
      A copy of `model` that computes what the PyTorch network does. It shares no memory with
      `state_dict`.

    Raises:
      InputError: a tensor is missing, superfluous, not of floating-point numbers, or of the
        wrong shape, or the file can't be read.
    """
    given = "the PyTorch weights"
    if isinstance(state_dict, str | os.PathLike):
        file = Path(state_dict).expanduser()
        given, state_dict = f"{given} in {str(file)!r}", _read(file)
    graphdef, known, rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)  # type: ignore[misc]
    by_path = dict(nnx.to_flat_state(known))
    prefixes = model.torch_names() if isinstance(model, Network) else {}
    expected = {_torch_name(path, prefixes): path for path in by_path}
    tensors = _unwrapped(_tensors_in(given, state_dict), expected)
    _check_names(given, type(model).__name__, list(expected), list(tensors))
    for name, path in expected.items():
        variable = by_path[path]
        value = _to_numpy(name, tensors[name])
        if value.ndim in _TRANSPOSE:
            value = value.transpose(_TRANSPOSE[value.ndim])
        if value.shape != variable.shape:
            wanted = tuple(variable.shape[axis] for axis in _BACK.get(len(variable.shape), ()))
            raise InputError(
                f"the PyTorch weight {name} has shape {tuple(tensors[name].shape)}, but the "
                f"network's is {wanted or variable.shape}; create the network with the same "
                "options, such as num_classes, or give other weights"
            )
        # A copy, which nobody else can change.
        by_path[path] = variable.replace(jnp.asarray(np.array(value, variable.dtype, order="C")))
    return nnx.merge(graphdef, nnx.from_flat_state(by_path.items()), rest)


def _tensors_in(given: str, state_dict: Any) -> dict[str, Any]:
    """The tensors by their names, out of a state_dict or a checkpoint that holds one."""
    if hasattr(state_dict, "state_dict"):
        raise InputError(
            f"{given} are a module, {type(state_dict).__name__}; give its state_dict() instead"
        )
    if not isinstance(state_dict, Mapping):
        raise InputError(
            f"{given} are a {type(state_dict).__name__}; give tensors by their names, as "
            "torch_model.state_dict() has them, or the path of a file"
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
    strange = [name for name, entry in entries.items() if not _is_array(entry)]
    if strange or not entries:
        what = ", ".join(f"{name!r} is a {type(entries[name]).__name__}" for name in strange[:3])
        raise InputError(
            f"{given} are not tensors by their names (a state_dict): {what or 'there are none'}; "
            "give what torch_model.state_dict() returned"
        )
    return {str(name): entry for name, entry in entries.items()}


def _is_array(entry: Any) -> bool:
    return hasattr(entry, "shape") and hasattr(entry, "dtype")


def _unwrapped(tensors: dict[str, Any], expected: Iterable[str]) -> dict[str, Any]:
    """The tensors under the names that they had before wrappers added theirs."""
    if set(tensors) == set(expected):
        return tensors
    own = {part for name in expected for part in name.split(".")}
    names = {
        name: ".".join(part for part in name.split(".") if part in own or part not in _WRAPPERS)
        for name in tensors
    }
    prefix = _prefix(names.values(), set(expected))
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


def _prefix(names: Iterable[str], expected: set[str]) -> str:
    """What stands before most of the expected names, as where a module holds the network."""
    counts = Counter({"": 0})
    for name in names:
        ends = [0, *(dot.end() for dot in re.finditer(r"\.", name))]
        counts.update(name[:end] for end in ends if name[end:] in expected)
    # The first of those that are as frequent, which is none at all where that is one of them.
    return max(counts, key=counts.__getitem__)


def _check_names(given: str, network: str, expected: list[str], names: list[str]) -> None:
    for problem, wrong in {
        "lack": [name for name in expected if name not in names],
        "have, but the network does not,": [name for name in names if name not in expected],
    }.items():
        if wrong:
            raise InputError(f"{given} {problem} {_some(wrong)}; {network} takes {_some(expected)}")


def _some(names: Iterable[str], most: int = 8) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _torch_name(path: tuple[Any, ...], prefixes: Mapping[str, str]) -> str:
    *layers, variable = map(str, path)
    layer = ".".join(layers)
    for ours, theirs in prefixes.items():
        if f"{layer}.".startswith(f"{ours}."):
            layer = theirs + layer[len(ours) :]
            break
    return f"{layer}.{_VARIABLES.get(variable, variable)}"


def _read(path: Path) -> Any:
    """What a file, or a folder of files, holds."""
    try:
        if path.is_dir():
            path = _in_folder(path)
        if path.suffix == ".json":
            return _read_parts(path)
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
    """Why a file can't be read, in one line."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in text:
        found = re.search(r"GLOBAL ([\w.]+)", text)
        held = f", such as {found[1]}," if found else ""
        return (
            f"it holds objects beside tensors{held} which are not read, since they could run "
            "code; save torch_model.state_dict() alone"
        )
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = text.splitlines()
    if not lines or not re.search("[a-z]{3}", lines[0]):
        return "it is not a file that PyTorch saved"
    return lines[0].strip().rstrip(".")


def _in_folder(folder: Path) -> Path:
    """The file in a folder that holds the weights, or the index of those that do."""
    for pattern in _IN_FOLDERS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            raise InputError(
                f"there are several files of weights in {str(folder)!r}: "
                f"{_some(path.name for path in found)}; name one of them"
            )
        if found:
            return found[0]
    raise InputError(
        f"there are no PyTorch weights in {str(folder)!r}, such as model.safetensors; name a file"
    )


def _read_parts(path: Path) -> dict[str, Any]:
    """The tensors of all the files that an index names."""
    index = json.loads(path.read_text("utf-8"))
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise InputError(
            f"{str(path)!r} is no index of PyTorch weights, as it has no weight_map; name another"
        )
    tensors: dict[str, Any] = {}
    for part in sorted(set(places.values())):
        if Path(part).name != part:
            raise InputError(f"the index {str(path)!r} names {part!r}, which is not beside it")
        inside = _read(path.with_name(part))
        names = [name for name, place in places.items() if place == part]
        if lacking := [name for name in names if name not in inside]:
            raise InputError(
                f"{str(path.with_name(part))!r} lacks {_some(lacking)}, which {path.name} says "
                "is in it; fetch both anew"
            )
        tensors |= {name: inside[name] for name in names}
    return tensors


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins as those do, with the length of a JSON object and the object."""
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _read_safetensors(path: Path) -> dict[str, Any]:
    """The tensors of a file, bfloat16 ones too, for which NumPy has no type of its own."""
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
    # Nothing but tensors and plain containers is unpickled.
    return torch.load(path, map_location="cpu", weights_only=True)


def _to_numpy(name: str, tensor: Any) -> np.ndarray:
    """The values of a tensor of PyTorch, or of an array, maybe in its own memory."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if not kind.startswith(("float", "bfloat")):
        raise InputError(
            f"the PyTorch weight {name} is of type {kind}; give weights of floating-point numbers"
        )
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            tensor = tensor.to_dense() if getattr(tensor, "is_sparse", False) else tensor
            # NumPy knows neither bfloat16 nor the types of 8 bits; float32 holds all their values.
            tensor = (tensor if kind in ("float64", "float16") else tensor.float()).numpy()
        return np.asarray(tensor)
    except (TypeError, RuntimeError, NotImplementedError) as error:
        raise InputError(
            f"the PyTorch weight {name} has no values to read ({_reason(error)})"
        ) from error
