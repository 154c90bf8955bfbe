"""A trained network as a function of pixels from 0 to 1."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float

from dlc_jax.data.normalization import Normalize
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.typing import AnyArray
from dlc_jax.utils.arrays import owned_copy

if TYPE_CHECKING:
    from dlc_jax.runs.folder import Run

# Images with pixels from 0 to 1.
Pixels: TypeAlias = Float[AnyArray, "batch height width channels"]
# Height, width and channels.
ImageShape: TypeAlias = tuple[int, int, int]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ImageClassifier:
    """A network in evaluation mode that takes images with pixels from 0 to 1.

    It is a pytree, so it can be passed to jitted functions.

    Attributes:
      variables: Parameters and batch statistics.
      normalize: Normalization of the network's inputs, on pixels from 0 to 255.
      graphdef: Structure of the network.

    Example:
      >>> import numpy as np
      >>> from flax import nnx
      >>> from dlc_jax import models
      >>> from dlc_jax.data import Normalize
      >>> model = models.create("tc", image_shape=(6, 6, 1), num_classes=2, rngs=nnx.Rngs(0))
      >>> classifier = ImageClassifier.from_model(model, Normalize((0,), (255,)))
      >>> classifier.logits(np.zeros((3, 6, 6, 1))).shape
      (3, 2)
    """

    variables: Any
    normalize: Normalize = field(metadata={"static": True})
    graphdef: nnx.GraphDef[Network] = field(metadata={"static": True})

    @classmethod
    def from_model(cls, model: nnx.Module, normalize: Normalize) -> "ImageClassifier":
        """Creates a classifier from a network, which is not changed.

        Args:
          model: The network, a `dlc_jax.models.Network`.
          normalize: Normalization of its inputs, on pixels from 0 to 255.

        Raises:
          InputError: The model is not a `dlc_jax.models.Network`.
        """
        if not isinstance(model, Network):
            raise InputError(
                f"{type(model).__name__} has no stages to explain; give a dlc_jax.models.Network"
            )
        model = nnx.clone(model)
        model.eval()
        graphdef, variables = nnx.split(model)
        return cls(jax.tree.map(owned_copy, variables), normalize, graphdef)

    @classmethod
    def from_run(cls, run: "Run") -> "ImageClassifier":
        """Creates a classifier from a run's network.

        Args:
          run: The run.

        Raises:
          InputError: The run's parameters are missing or damaged.
        """
        return cls.from_model(run.load_model(), run.config.normalize)

    @property
    def pixel_mean(self) -> Float[Array, " channels"]:
        """Mean of the training images, from 0 to 1."""
        return jnp.asarray(self.normalize.mean, jnp.float32) / 255

    def stages(self, pixels: Pixels) -> OrderedDict[str, Array]:
        """Returns the activations of all stages, by name and in order; the last one is "logits".

        Args:
          pixels: Images with pixels from 0 to 1.
        """
        return _stages(self, pixels)

    def stages_inline(self, pixels: Pixels) -> OrderedDict[str, Array]:
        """Returns `stages` without `jax.jit`, so that they are variables of the caller's jaxpr.

        Args:
          pixels: Images with pixels from 0 to 1.
        """
        model = nnx.merge(self.graphdef, self.variables, copy=True)
        return model.stages(self.normalize(255 * pixels))

    def logits(self, pixels: Pixels) -> Float[Array, "batch classes"]:
        """Returns the logits of a batch of images.

        Args:
          pixels: Images with pixels from 0 to 1.
        """
        return _activations(self, pixels, stage="logits")

    def probabilities(self, pixels: Pixels) -> Float[Array, "batch classes"]:
        """Returns the softmax of the logits.

        Args:
          pixels: Images with pixels from 0 to 1.
        """
        return _probabilities(self, pixels)

    def activations(self, pixels: Pixels, stage: str) -> Float[Array, "batch *positions maps"]:
        """Returns the activations of one stage.

        Args:
          pixels: Images with pixels from 0 to 1.
          stage: Name of the stage, a key of `stages`.

        Raises:
          InputError: The network has no such stage.
        """
        return _activations(self, pixels, stage=stage)

    def stage_shapes(self, image_shape: ImageShape) -> OrderedDict[str, tuple[int, ...]]:
        """Returns the shapes of all stages' activations for one image, without computing them.

        Args:
          image_shape: Height, width and channels.
        """
        image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        stages = jax.eval_shape(self.stages, image)
        return OrderedDict((name, stage.shape[1:]) for name, stage in stages.items())

    def accepts(self, image_shape: ImageShape) -> bool:
        """Returns whether the network can be applied to images of a shape, without running it.

        Most convolutional networks accept all images that are large enough. A network that
        flattens its feature maps, such as `lecture`, accepts one shape only.

        Args:
          image_shape: Height, width and channels.
        """
        try:
            shapes = self.stage_shapes(image_shape)
        except (TypeError, ValueError):  # raised by layers for inputs of a wrong shape
            return False
        return all(math.prod(shape) > 0 for shape in shapes.values())


# XLA removes the stages that a jitted caller does not use.
@jax.jit
def _stages(classifier: ImageClassifier, pixels: Array) -> OrderedDict[str, Array]:
    return classifier.stages_inline(pixels)


@partial(jax.jit, static_argnames="stage")
def _activations(classifier: ImageClassifier, pixels: Array, *, stage: str) -> Array:
    stages = classifier.stages_inline(pixels)
    if stage not in stages:
        raise InputError(f"there is no stage {stage!r}; choose from {', '.join(stages)}")
    return stages[stage]


@jax.jit
def _probabilities(classifier: ImageClassifier, pixels: Array) -> Array:
    return jax.nn.softmax(classifier.logits(pixels))
