"""Threshold logic units: the first artificial neurons, and the logic that they compute.

McCulloch and Pitts 1943, "A logical calculus of the ideas immanent in nervous activity",
Bulletin of Mathematical Biophysics 5. New was the neuron as an element of logic: it fires or it
does not, by the number of active synapses, and nets of such neurons compute what a proposition
says. Nothing is learned.

A unit has excitatory synapses, inhibitory ones, and a threshold. It fires when at least as many
excitatory synapses are active as its threshold says and no inhibitory one is: as in the paper's
theory, a single active inhibitory synapse prevents it. Threshold units with negative weights,
which inhibition only weakens, came later.

What is ours:

- Time is left out. In the paper a unit fires a moment after its inputs; here the layers of a net
  are computed one after the other.
- A threshold may be 0. Such a unit fires unless it is inhibited, and so computes NOT; the
  paper's would need an input that is always active.
- The nets below, and that of XOR above all: it is true when an odd number of inputs are, which
  it finds by counting them.
- As a network for images, its inputs are the pixels (all channels), on where they are above 0,
  and its two classes are false and true.
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
    """Which units fire.

    Args:
      inputs: which inputs are active.
      synapses: how many synapses each unit has from each input; a negative number says that
        they inhibit.
      thresholds: how many excitatory synapses must be active, at least.
    """
    # Counts in float32, in which sums of whole numbers are exact up to 2^24.
    active, synapses = (jnp.array(array, jnp.float32) for array in (inputs, synapses))
    excitation = active @ jnp.maximum(synapses, 0)
    inhibition = active @ jnp.maximum(-synapses, 0)
    return (excitation >= jnp.array(thresholds)) & (inhibition == 0)


class Units(nnx.Module):
    """A layer of threshold logic units.

    Args:
      synapses: [inputs, units], as for `fires`.
      thresholds: [units].
    """

    def __init__(
        self, synapses: Int[np.ndarray, "inputs units"], thresholds: Int[np.ndarray, " units"]
    ) -> None:
        self.synapses = Buffer(jnp.array(synapses, jnp.float32))
        self.thresholds = Buffer(jnp.array(thresholds, jnp.float32))

    def __call__(self, inputs: Bool[AnyArray, "batch inputs"]) -> Bool[Array, "batch units"]:
        """Which units fire."""
        return fires(inputs, self.synapses[...], self.thresholds[...])


def and_net(inputs: int) -> dict[str, Units]:
    """One unit, "and": it fires when all inputs are active."""
    return {"and": _unit([1] * inputs, inputs)}


def or_net(inputs: int) -> dict[str, Units]:
    """One unit, "or": it fires when any input is active."""
    return {"or": _unit([1] * inputs, 1)}


def not_net(inputs: int) -> dict[str, Units]:
    """One unit, "not": it fires when no input is active. Of one input it is the negation."""
    return {"not": _unit([-1] * inputs, 0)}


def xor_net(inputs: int) -> dict[str, Units]:
    """Three layers that find whether an odd number of inputs are active.

    Of "at_least" unit k-1 fires when k inputs or more are active, for k from 1 on; of "exactly"
    those fire whose number, which is odd, is that of the active inputs: it is inhibited by the
    unit for one more. "or" joins them. Of two inputs, "exactly" is a single unit: OR and not AND.
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
    """A net of threshold logic units that computes a function of an image's pixels.

    It has nothing to train.

    Args:
      image_shape: height, width and channels of the images; as (1, 2, 1) for two inputs.
      num_classes: 2: false and true.
      rngs: not used, since nothing is drawn.
      dtype: of its stages.
      function: "and", "or", "not" or "xor"; see `and_net` and the others.

    Raises:
      InputError: there is no such function, there are no inputs, or the classes are not two.
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
                f"no net of threshold logic units computes {function!r} here; "
                f"choose {', '.join(NETS)}"
            )
        if inputs < 1:
            raise InputError(f"images of shape {image_shape} have no pixels; give at least one")
        if num_classes != 2:
            raise InputError(
                f"threshold logic units tell false from true, 2 classes, not {num_classes}"
            )
        self.dtype = dtype
        self.layers = nnx.Dict(NETS[function](inputs))

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Each layer of units, 1 where they fire and 0 elsewhere, and the logits.

        They are "inputs" [batch, height * width * channels], the layers of the net under their
        names, [batch, units], and "logits" [batch, 2]: 1 for what is the case, and 0 for what
        is not.
        """
        active = jnp.asarray(x).reshape(len(x), -1) > 0
        stages = OrderedDict(inputs=active)
        for name, layer in self.layers.items():
            active = stages[name] = layer(active)
        stages["logits"] = jnp.concatenate([~active, active], 1)
        return OrderedDict((name, stage.astype(self.dtype)) for name, stage in stages.items())


def _unit(synapses: Sequence[int], threshold: int) -> Units:
    return Units(np.array(synapses)[:, None], np.array([threshold]))
