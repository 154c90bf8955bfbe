"""Variables of a network that are saved, but not trained."""

from typing import Any

from flax import nnx


class Buffer(nnx.BatchStat[Any]):
    """A variable that is saved with the network but not trained, like a buffer in PyTorch.

    Optimizers update `nnx.Param`, and `dlc_jax.models.parameters` saves `nnx.Param` and
    `nnx.BatchStat`, of which this is a subclass.

    Example:
      >>> class Shift(nnx.Module):
      ...     def __init__(self):
      ...         self.offset = Buffer(1.0)
      >>> nnx.state(Shift(), nnx.Param)
      State({})
    """
