"""What all networks here have in common."""

from collections import OrderedDict
from collections.abc import Mapping

from flax import nnx
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data.dataset import AnyArray
from dlc_jax.nn.losses import cross_entropy


class Network(nnx.Module):
    """A network that shows its intermediate stages by name.

    A network defines `stages`; the rest follows from it. What an analysis does not use of the
    stages, `jit` does not compute.
    """

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """The activations after each stage, in their order, by name.

        Args:
          x: normalised images.

        Returns:
          Feature maps [batch, height, width, channels] and vectors [batch, features]; the last
          is "logits", [batch, classes]. (`jax.jit` keeps the order of an OrderedDict, while it
          returns a dict in the order of its keys.)
        """
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """The logits of a batch of normalised images."""
        return self.stages(x)["logits"]

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, ""]:
        """What training minimises: unless a network says otherwise, the mean cross-entropy.

        Args:
          stages: what `stages` returned.
          labels: the right classes.
          label_smoothing: see `dlc_jax.nn.losses.cross_entropy`.
        """
        return cross_entropy(stages["logits"], labels, label_smoothing)

    def prepared(
        self, images: Float[Array, "images height width channels"], key: PRNGKeyArray
    ) -> "Network":
        """The network with what it learns of images alone, before it is trained on labels.

        Most networks learn nothing so, and are returned as they are.

        Args:
          images: normalised training images.
          key: of the random numbers that it needs.
        """
        del images, key
        return self

    def torch_names(self) -> dict[str, str]:
        """Where PyTorch's name of a layer differs: beginnings of our names, and of theirs."""
        return {}
