"""Parameters of a network as a safetensors file.

The file contains arrays by their paths, such as `conv1.kernel`, and no code.
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
    """Returns the arrays of a state by their paths, sorted by path.

    Args:
      variables: A state of a module, from `nnx.state`.

    Example:
      >>> list(named_arrays(nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))))
      ['bias', 'kernel']
    """
    arrays = {
        ".".join(map(str, path)): np.ascontiguousarray(variable[...])
        for path, variable in nnx.to_flat_state(variables)
    }
    return dict(sorted(arrays.items()))


def fingerprint(params: nnx.State[Any, Any]) -> str:
    """Returns the SHA-256 hash of the arrays' bytes, in the order of their paths.

    Args:
      params: A state of a module, from `nnx.state`.

    Example:
      >>> layer = nnx.Linear(2, 3, kernel_init=nnx.initializers.zeros, rngs=nnx.Rngs(0))
      >>> fingerprint(nnx.state(layer))[:8]
      '6db65fd5'
    """
    digest = hashlib.sha256()
    for array in named_arrays(params).values():
        digest.update(array.tobytes())
    return digest.hexdigest()


def save(path: Path, model: nnx.Module) -> None:
    """Writes a network's `nnx.Param` and `nnx.BatchStat` variables to a file, atomically.

    Args:
      path: The file.
      model: The network.

    Example:
      >>> import tempfile
      >>> model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "linear.safetensors"
      ...     save(path, model)
      ...     loaded = load(path, nnx.Linear(2, 3, rngs=nnx.Rngs(1)))
      >>> bool((loaded.kernel[...] == model.kernel[...]).all())
      True
    """
    write_atomically(path, safetensors.numpy.save(named_arrays(_arrays_of(model))))


def load(path: Path, model: _Module) -> _Module:
    """Returns a copy of a network with the variables that `save` wrote.

    Args:
      path: The file.
      model: The network, which may be abstract (see `dlc_jax.models.create_abstract`).

    Raises:
      InputError: The file is missing, damaged, or of another network.
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
