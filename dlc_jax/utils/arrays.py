"""Ownership of arrays."""

from typing import Any

import numpy as np


def owned_copy(leaf: Any) -> Any:
    """Copies a NumPy array, which its owner may change later; returns other values unchanged.

    JAX computes in the background and may share a NumPy array's memory.

    Example:
      >>> array = np.zeros(2)
      >>> copy = owned_copy(array)
      >>> array[0] = 1
      >>> copy
      array([0., 0.])
    """
    return np.array(leaf) if isinstance(leaf, np.ndarray) else leaf
