"""Types used throughout the package."""

from typing import TypeAlias

import jax
import numpy as np

# Arrays that jitted functions accept.
AnyArray: TypeAlias = jax.Array | np.ndarray
