"""What belongs to a network and is never trained."""

from typing import Any

from flax import nnx


class Fixed(nnx.BatchStat[Any]):
    """A variable that is drawn or set once and saved with the network, but not trained.

    Training changes `nnx.Param` alone, and `dlc_jax.models.parameters` saves that and
    `nnx.BatchStat`: so it is a kind of the latter.
    """
