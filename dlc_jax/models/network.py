"""Base class of the networks."""

from collections import OrderedDict
from collections.abc import Mapping

from flax import nnx
from jax import Array
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.nn.losses import cross_entropy
from dlc_jax.typing import AnyArray


class Network(nnx.Module):
    """A classifier of images that returns its intermediate activations by name.

    A subclass defines `stages`, and may override the other methods. Inside `jax.jit`, stages
    that are not used are not computed.
    """

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the activations after each stage, in order, by name.

        Args:
          x: Normalized images.

        Returns:
          Feature maps [batch, height, width, channels] and vectors [batch, features]. The last
          is "logits", [batch, classes]. (`jax.jit` sorts the keys of a dict, but not those of an
          OrderedDict.)
        """
        raise NotImplementedError

    def __call__(
        self, x: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch classes"]:
        """Returns the logits of a batch of normalized images."""
        return self.stages(x)["logits"]

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the training loss of each example; by default, the cross-entropy.

        Args:
          stages: The result of `stages`.
          labels: The true classes.
          label_smoothing: See `dlc_jax.nn.cross_entropy`.
        """
        return cross_entropy(stages["logits"], labels, label_smoothing)

    def init_from_data(
        self, images: Float[Array, "images height width channels"], key: PRNGKeyArray
    ) -> "Network":
        """Returns the network with variables that are initialized from unlabeled images.

        Most networks have no such variables and are returned unchanged.

        Args:
          images: Normalized training images.
          key: PRNG key.
        """
        del images, key
        return self

    def torch_names(self) -> dict[str, str]:
        """Returns a mapping from prefixes of parameter names to PyTorch's prefixes."""
        return {}


def check_stem(network: str, stem: str, image_shape: tuple[int, int, int]) -> None:
    """Raises an InputError if there is no such stem, or if the images are too small for it."""
    if stem not in ("imagenet", "small"):
        raise InputError(f"{network} has no stem {stem!r}; choose from imagenet, small")
    height, width, _ = image_shape
    if stem == "imagenet" and min(height, width) < 32:
        raise InputError(
            f"{network} with the ImageNet stem needs images of at least 32x32, not "
            f'{height}x{width}; use stem="small"'
        )
