"""The convnets of a deep learning lecture as pure functions in JAX.

Submodules are imported on first use, so that `import dlc_jax` costs little more than
`import jax`.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlc_jax import (
        data,
        environment,
        errors,
        experiment,
        explain,
        interop,
        layers,
        losses,
        models,
        ops,
        parameters,
        plots,
        recipes,
        runs,
        sharding,
        training,
    )

__version__ = "0.1.0"
__all__ = [
    "data",
    "environment",
    "errors",
    "experiment",
    "explain",
    "interop",
    "layers",
    "losses",
    "models",
    "ops",
    "parameters",
    "plots",
    "recipes",
    "runs",
    "sharding",
    "training",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"dlc_jax.{name}")
    raise AttributeError(f"module 'dlc_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
