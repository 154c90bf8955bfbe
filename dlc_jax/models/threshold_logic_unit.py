"""Threshold logic units, the first artificial neurons (McCulloch and Pitts 1943).

"A logical calculus of the ideas immanent in nervous activity", Bulletin of Mathematical Biophysics
5. Nets of such units compute logical functions; nothing is learned.

A unit has excitatory and inhibitory synapses and a threshold. It fires if the number of active
excitatory synapses reaches the threshold and no inhibitory synapse is active (absolute inhibition,
as in the paper; negative weights came later).

Our choices:

- There is no time: the layers of a net are computed one after the other, where in the paper a unit
  fires a moment after its inputs.
- A threshold may be 0, so that a single unit computes NOT; in the paper it would need an input that
  is always active.
- The nets are our own. That of XOR counts the active inputs.
- As a network for images, the inputs are the pixels of all channels, active if above 0, and the two
  classes are false and true.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn.buffer import Buffer
from dlc_jax.typing import AnyArray


def fires(
    inputs: Bool[AnyArray, "batch inputs"],
    synapses: Int[AnyArray, "inputs units"],
    thresholds: Int[AnyArray, " units"],
) -> Bool[Array, "batch units"]:
    """Returns the units that fire.

    Args:
      inputs: The active inputs.
      synapses: Number of synapses from each input to each unit, negative if inhibitory.
      thresholds: Number of active excitatory synapses that a unit needs.

    Example:
      >>> fires(np.array([[True, False], [True, True]]), np.array([[1], [1]]), np.array([2]))
      Array([[False],
             [ True]], dtype=bool)
    """
    # In float32, sums of integers are exact up to 2^24.
    active, synapses = (jnp.array(array, jnp.float32) for array in (inputs, synapses))
    excitation = active @ jnp.maximum(synapses, 0)
    inhibition = active @ jnp.maximum(-synapses, 0)
    return (excitation >= jnp.array(thresholds)) & (inhibition == 0)


class Units(nnx.Module):
    """A layer of threshold logic units.

    Args:
      synapses: As for `fires`.
      thresholds: As for `fires`.
    """

    def __init__(
        self, synapses: Int[np.ndarray, "inputs units"], thresholds: Int[np.ndarray, " units"]
    ) -> None:
        self.synapses = Buffer(jnp.array(synapses, jnp.float32))
        self.thresholds = Buffer(jnp.array(thresholds, jnp.float32))

    def __call__(self, inputs: Bool[AnyArray, "batch inputs"]) -> Bool[Array, "batch units"]:
        """Returns the units that fire."""
        return fires(inputs, self.synapses[...], self.thresholds[...])


def and_net(inputs: int) -> dict[str, Units]:
    """Returns a single unit, which fires if all inputs are active."""
    return {"and": _unit([1] * inputs, inputs)}


def or_net(inputs: int) -> dict[str, Units]:
    """Returns a single unit, which fires if any input is active."""
    return {"or": _unit([1] * inputs, 1)}


def not_net(inputs: int) -> dict[str, Units]:
    """Returns a single unit, which fires if no input is active: NOT, or NOR of several inputs."""
    return {"not": _unit([-1] * inputs, 0)}


def xor_net(inputs: int) -> dict[str, Units]:
    """Returns three layers, whose last unit fires if an odd number of inputs is active.

    Unit k-1 of "at_least" fires if at least k inputs are active. The units of "exactly" fire if
    exactly 1, 3, 5, ... inputs are active: they are inhibited by the unit for one more. "or" joins
    them. For two inputs, "exactly" is a single unit: OR and not AND.
    """
    counts = np.arange(1, inputs + 1)
    at_least = Units(np.ones((inputs, inputs), int), counts)
    odd = counts[::2]
    exactly = np.equal.outer(counts, odd).astype(int) - np.equal.outer(counts, odd + 1)
    return {
        "at_least": at_least,
        "exactly": Units(exactly, np.ones(len(odd), int)),
        "or": _unit([1] * len(odd), 1),
    }


NETS: dict[str, Callable[[int], dict[str, Units]]] = {
    "and": and_net,
    "or": or_net,
    "not": not_net,
    "xor": xor_net,
}


class ThresholdLogicUnit(Network):
    """A net of threshold logic units that computes a function of the pixels of an image.

    It has no trainable parameters.

    Args:
      image_shape: Height, width and channels of the images, such as (1, 2, 1) for two inputs.
      num_classes: 2 (false and true).
      rngs: Not used.
      dtype: Dtype of the stages.
      function: "and", "or", "not" or "xor"; see `and_net` and the others.

    Raises:
      InputError: There is no such function, no input, or the number of classes is not two.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] = (1, 2, 1),
        num_classes: int = 2,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        function: str = "xor",
    ) -> None:
        del rngs
        inputs = int(np.prod(image_shape))
        if function not in NETS:
            raise InputError(
                f"there is no threshold logic function {function!r}; choose from {', '.join(NETS)}"
            )
        if inputs < 1:
            raise InputError(f"images of shape {image_shape} have no pixels; give at least one")
        if num_classes != 2:
            raise InputError(
                f"threshold logic units have 2 classes (false and true), not {num_classes}"
            )
        self.dtype = dtype
        self.layers = nnx.Dict(NETS[function](inputs))

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the inputs, the layers of units, and the logits, all 0 or 1.

        These are "inputs" [batch, height * width * channels], the layers of the net by name,
        [batch, units], and "logits" [batch, 2].
        """
        active = jnp.asarray(x).reshape(len(x), -1) > 0
        stages = OrderedDict(inputs=active)
        for name, layer in self.layers.items():
            active = stages[name] = layer(active)
        stages["logits"] = jnp.concatenate([~active, active], 1)
        return OrderedDict((name, stage.astype(self.dtype)) for name, stage in stages.items())


def _unit(synapses: Sequence[int], threshold: int) -> Units:
    return Units(np.array(synapses)[:, None], np.array([threshold]))
