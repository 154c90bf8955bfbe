"""Training that diverged: numbers that are no longer finite."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Bool

from dlc_jax.errors import InputError


class DivergedError(InputError):
    """A loss or another metric, or an array of the state, is not finite."""

    raised_on_all_processes = True


def is_finite(tree: Any) -> Bool[Array, ""]:
    """Returns whether all floating-point numbers of a pytree are finite.

    Example:
      >>> import jax.numpy as jnp
      >>> bool(is_finite({"a": jnp.ones(3), "b": jnp.array([1, 2])}))
      True
      >>> bool(is_finite(jnp.array([1.0, jnp.inf])))
      False
    """
    finite = [
        jnp.isfinite(leaf).all()
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.stack(finite).all() if finite else jnp.bool_(True)


def check_metrics(metrics: Mapping[str, np.ndarray], first_step: int, when: str) -> None:
    """Raises `DivergedError` unless the metrics of some steps are finite.

    Args:
      metrics: Values by name, [steps, *networks].
      first_step: Number of the first of these steps, from 1.
      when: The epoch, in words, such as "epoch 3".
    """
    for name, values in metrics.items():
        broken = np.argwhere(~np.isfinite(values))
        if len(broken):
            step, *network = broken[0]
            raise _diverged(
                f"the {name}{_of(network)} became {values[tuple(broken[0])]} at step "
                f"{first_step + step} ({when})"
            )


def check_test_metrics(metrics: Mapping[str, np.ndarray], when: str) -> None:
    """Raises `DivergedError` unless test metrics, [*networks], are finite."""
    for name, values in metrics.items():
        broken = np.argwhere(~np.isfinite(values))
        if len(broken):
            value = np.asarray(values)[tuple(broken[0])]
            raise _diverged(f"the test {name}{_of(broken[0])} is {value} {when}")


def check_state(state: Any, when: str) -> None:
    """Raises a `DivergedError` with the name of an array of a state that is not finite."""
    networks = np.ndim(state.step)
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            continue
        values = np.asarray(leaf)
        broken = np.argwhere(~np.isfinite(values))
        if len(broken):
            name = jax.tree_util.keystr(path, simple=True, separator=".").removesuffix(".value")
            value = values[tuple(broken[0])]
            raise _diverged(f"{name}{_of(broken[0][:networks])} is {value} {when}")


def _of(network: Any) -> str:
    return f" of network {network[0] + 1}" if len(network) else ""


def _diverged(what: str) -> DivergedError:
    return DivergedError(f"{what}; try a smaller learning rate")
