"""A network's variables as a file, and as a fingerprint.

The file is in safetensors format: arrays under their paths (`conv1.kernel`), nothing that
could be executed.
"""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import nnx

from dlc_jax.errors import InputError
from dlc_jax.utils.files import write_atomically

_Module = TypeVar("_Module", bound=nnx.Module)


def named_arrays(variables: nnx.State[Any, Any]) -> dict[str, np.ndarray]:
    """The arrays by their paths, sorted by path."""
    arrays = {
        ".".join(map(str, path)): np.ascontiguousarray(variable[...])
        for path, variable in nnx.to_flat_state(variables)
    }
    return dict(sorted(arrays.items()))


def fingerprint(params: nnx.State[Any, Any]) -> str:
    """The SHA-256, in hexadecimal, of the parameters' bytes in the order of their paths."""
    digest = hashlib.sha256()
    for array in named_arrays(params).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(path: Path, model: nnx.Module) -> None:
    """Writes parameters and statistics, atomically."""
    write_atomically(path, safetensors.numpy.save(named_arrays(_arrays_of(model))))


def load(path: Path, model: _Module) -> _Module:
    """A copy of `model` with the variables that `save` wrote.

    Raises:
      InputError: the file is missing, damaged, or belongs to another network.
    """
    try:
        arrays = safetensors.numpy.load(path.read_bytes())
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"can't read the parameters in {str(path)!r} ({error})") from error
    expected = _arrays_of(model)
    shapes = {name: array.shape for name, array in named_arrays(expected).items()}
    if shapes != {name: array.shape for name, array in arrays.items()}:
        raise InputError(f"the parameters in {str(path)!r} belong to another network")
    filled = [
        (key, variable.replace(jnp.asarray(arrays[".".join(map(str, key))])))
        for key, variable in nnx.to_flat_state(expected)
    ]
    graphdef, _, rest = nnx.split(model, _SAVED, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, nnx.from_flat_state(filled), rest)


_SAVED = nnx.Any(nnx.Param, nnx.BatchStat)


def _arrays_of(model: nnx.Module) -> nnx.State[Any, Any]:
    return nnx.state(model, _SAVED)
