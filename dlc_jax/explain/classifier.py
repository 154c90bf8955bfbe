"""A trained network as something to look into: a function of pixels, and nothing else."""

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

from dlc_jax.data.dataset import AnyArray, Normalise, unshared
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network

if TYPE_CHECKING:
    from dlc_jax.runs.folder import Run

# Pixels go from 0 to 1 here, whatever a network was trained on.
Pixels: TypeAlias = Float[AnyArray, "batch height width channels"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class View:
    """A network in evaluation mode, as a function of pixels from 0 to 1.

    It is a pytree, so that it can be handed to a jitted function, and views of networks of one
    structure can be stacked.

    Attributes:
      variables: parameters and statistics.
      normalise: what the network's images were normalised by.
      graphdef: the network's structure.
    """

    variables: Any
    normalise: Normalise
    graphdef: nnx.GraphDef[Network] = field(metadata={"static": True})

    @classmethod
    def of(cls, model: nnx.Module, normalise: Normalise) -> "View":
        """The view of a network.

        Args:
          model: the network, a `dlc_jax.models.Network`; it is not changed.
          normalise: what its images were normalised by, on a scale from 0 to 255.

        Raises:
          InputError: it is another module.
        """
        if not isinstance(model, Network):
            raise InputError(
                f"{type(model).__name__} has no stages to look into; give a dlc_jax.models.Network"
            )
        quiet = nnx.clone(model)
        quiet.eval()
        graphdef, variables = nnx.split(quiet)
        variables = jax.tree.map(unshared, variables)
        return cls(variables, normalise, graphdef)

    @classmethod
    def of_run(cls, run: "Run") -> "View":
        """The view of a run's network.

        Raises:
          InputError: its parameters are missing or damaged.
        """
        return cls.of(run.model(), run.config.normalise)

    @property
    def mean_pixels(self) -> Float[Array, " channels"]:
        """The training images' mean, from 0 to 1, which is zero after normalisation."""
        return jnp.asarray(self.normalise.mean) / 255

    def stages(self, pixels: Pixels) -> OrderedDict[str, Array]:
        """The activations after each stage, by name; the last one is "logits".

        Args:
          pixels: from 0 to 1.
        """
        return _stages(self, pixels)

    def traced_stages(self, pixels: Pixels) -> OrderedDict[str, Array]:
        """The same, operation by operation: a stage's value is then one of the traced equations'.

        Args:
          pixels: from 0 to 1.
        """
        model = nnx.merge(self.graphdef, self.variables, copy=True)
        return model.stages(self.normalise(255 * pixels))

    def logits(self, pixels: Pixels) -> Float[Array, "batch classes"]:
        """The network's output.

        Args:
          pixels: from 0 to 1.
        """
        return _stage(self, pixels, stage="logits")

    def activations(self, pixels: Pixels, stage: str) -> Float[Array, "batch *positions maps"]:
        """What one stage makes of images.

        Args:
          pixels: from 0 to 1.
          stage: its name, as `stages` has it.

        Raises:
          InputError: the network has no such stage.
        """
        return _stage(self, pixels, stage=stage)

    def stage_shapes(self, image_shape: tuple[int, int, int]) -> OrderedDict[str, tuple[int, ...]]:
        """The shape of each stage's activations for one image.

        Args:
          image_shape: height, width and channels.
        """
        image = jax.ShapeDtypeStruct((1, *image_shape), np.float32)
        stages = jax.eval_shape(self.stages, image)
        return OrderedDict((name, stage.shape[1:]) for name, stage in stages.items())


# Compiled as a whole, what a caller does not ask for left out.
@jax.jit
def _stages(view: View, pixels: Array) -> OrderedDict[str, Array]:
    return view.traced_stages(pixels)


@partial(jax.jit, static_argnames="stage")
def _stage(view: View, pixels: Array, *, stage: str) -> Array:
    stages = view.traced_stages(pixels)
    if stage not in stages:
        raise InputError(f"there is no stage {stage!r}; choose from {', '.join(stages)}")
    return stages[stage]
