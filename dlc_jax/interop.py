"""Weights from PyTorch."""

from collections.abc import Mapping
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from flax import nnx

from dlc_jax.errors import InputError

Model = TypeVar("Model", bound=nnx.Module)

# PyTorch's layout of a `weight` by its number of axes: Conv2d's OIHW to HWIO, Linear's
# [out, in] to [in, out].
_TRANSPOSE = {4: (2, 3, 1, 0), 2: (1, 0)}


def load_torch(model: Model, state_dict: Mapping[str, Any]) -> Model:
    """The network with the weights of its PyTorch counterpart.

    Args:
      model: the network; it is not changed. Its layers bear the names of PyTorch's.
      state_dict: arrays or tensors by PyTorch's names, as `torch_model.state_dict()`.

    Returns:
      A copy of `model` that computes what the PyTorch network does.

    Raises:
      InputError: a tensor is missing, superfluous, or of the wrong shape.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    flat = nnx.to_flat_state(params)
    expected = {_torch_name(path): path for path, _ in flat}
    for problem, names in {
        "lacks": sorted(expected.keys() - state_dict.keys()),
        "has, but the network does not,": sorted(state_dict.keys() - expected.keys()),
    }.items():
        if names:
            raise InputError(
                f"the PyTorch weights {problem} {', '.join(names)}; "
                f"{type(model).__name__} takes {', '.join(expected)}"
            )
    by_path = dict(flat)
    for name, path in expected.items():
        variable = by_path[path]
        value = _to_numpy(state_dict[name])
        if value.ndim in _TRANSPOSE:
            value = value.transpose(_TRANSPOSE[value.ndim])
        if value.shape != variable.shape:
            raise InputError(
                f"the PyTorch weight {name} has shape {np.shape(state_dict[name])}, which does "
                f"not fit the network's {'.'.join(map(str, path))} of shape {variable.shape}"
            )
        by_path[path] = variable.replace(jnp.asarray(value, variable.dtype))
    return nnx.merge(graphdef, nnx.from_flat_state(by_path.items()), rest)


def _torch_name(path: tuple[Any, ...]) -> str:
    *layers, variable = map(str, path)
    return ".".join([*layers, {"kernel": "weight", "scale": "weight"}.get(variable, variable)])


def _to_numpy(tensor: Any) -> np.ndarray:
    return np.asarray(tensor.detach().cpu() if hasattr(tensor, "detach") else tensor)
