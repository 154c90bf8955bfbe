"""Weights from PyTorch."""

import os
import pickle
from collections.abc import Mapping
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
# [out, in] to [in, out].
_TRANSPOSE = {4: (2, 3, 1, 0), 2: (1, 0)}
# What PyTorch calls the variables of a layer.
_VARIABLES = {
    "kernel": "weight",
    "scale": "weight",
    "slope": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
# BatchNorm's count of steps, which is used there only where no momentum is given.
_IGNORED = "num_batches_tracked"

# What reading a file that is missing, cut off, or not what its name says ends with.
_UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    ValueError,
    pickle.UnpicklingError,
    safetensors.SafetensorError,
)


def load_torch(model: Model, state_dict: Mapping[str, Any] | str | os.PathLike[str]) -> Model:
    """The network with the weights of its PyTorch counterpart.

    Args:
      model: the network; it is not changed. For the networks that torchvision has too, the
        names are torchvision's; otherwise its layers bear the names of PyTorch's.
      state_dict: arrays or tensors by PyTorch's names, as `torch_model.state_dict()`; or a
        file of them, in safetensors format or as PyTorch saves it (`.pth`, of which only
        tensors are read, and which needs PyTorch).

    Returns:
      A copy of `model` that computes what the PyTorch network does.

    Raises:
      InputError: a tensor is missing, superfluous, or of the wrong shape, or the file can't
        be read.
    """
    if isinstance(state_dict, str | os.PathLike):
        state_dict = _read(Path(state_dict))
    tensors = {name: t for name, t in state_dict.items() if not name.endswith(_IGNORED)}
    graphdef, known, rest = nnx.split(model, nnx.Any(nnx.Param, nnx.BatchStat), ...)  # type: ignore[misc]
    by_path = dict(nnx.to_flat_state(known))
    prefixes = model.torch_names() if isinstance(model, Network) else {}
    expected = {_torch_name(path, prefixes): path for path in by_path}
    _check_names(type(model).__name__, list(expected), list(tensors))
    for name, path in expected.items():
        variable, value = by_path[path], _to_numpy(tensors[name])
        if value.ndim in _TRANSPOSE:
            value = value.transpose(_TRANSPOSE[value.ndim])
        if value.shape != variable.shape:
            raise InputError(
                f"the PyTorch weight {name} has shape {np.shape(tensors[name])}, which does "
                f"not fit the network's {'.'.join(map(str, path))} of shape {variable.shape}"
            )
        by_path[path] = variable.replace(jnp.asarray(value, variable.dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(by_path.items()), rest)


def _check_names(network: str, expected: list[str], given: list[str]) -> None:
    for problem, names in {
        "lack": [name for name in expected if name not in given],
        "have, but the network does not,": [name for name in given if name not in expected],
    }.items():
        if names:
            raise InputError(
                f"the PyTorch weights {problem} {_some(names)}; {network} takes {_some(expected)}"
            )


def _some(names: list[str], most: int = 8) -> str:
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


def _read(path: Path) -> Mapping[str, Any]:
    """The tensors in a file, by name."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.flax import load_file

            return load_file(path)
        return _read_pickled_tensors(path)
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"can't read PyTorch weights from {str(path)!r} ({reason})") from error


def _read_pickled_tensors(path: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"reading {str(path)!r} needs PyTorch (pip install 'dlc-jax[torch]'); "
            "safetensors files do not"
        ) from None
    # Nothing but tensors and plain containers is unpickled.
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping) or not all(hasattr(t, "shape") for t in loaded.values()):
        raise InputError(f"{str(path)!r} does not hold tensors by their names (a state_dict)")
    return loaded


def _to_numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
