"""The convnets of a deep learning lecture as pure functions in JAX.

Submodules are imported on first use, so that `import dlc_jax` costs little more than
`import jax`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlc_jax import data, errors, explain, models, nn, ops, runs, sharding, training, utils

__version__ = "0.2.0.dev0"
__all__ = [
    "data",
    "errors",
    "explain",
    "models",
    "nn",
    "ops",
    "runs",
    "sharding",
    "training",
    "utils",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"dlc_jax.{name}")
    raise AttributeError(f"module 'dlc_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
