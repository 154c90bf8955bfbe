"""The perceptron: the first network that learned from examples to tell figures apart.

Rosenblatt 1958, "The perceptron: a probabilistic model for information storage and organization
in the brain", Psychological Review 65(6), and the machine that was built on it, the Mark I:
a retina of 20x20 S-units (photocells) and 512 A-units (association units), each wired at random
to some of the S-units, and R-units (responses) on top. New was that the connections from the
A-units to the R-units change with experience; they alone do.

The rule of learning is error correction: nothing changes while the response is right; when it is
wrong, the A-units that are active get more weight for the right response and less for the wrong
one. On activities that can be told apart it comes to an end: Novikoff 1962, "On convergence
proofs on perceptrons".

What is ours:

- How an image becomes S-units: the 20x20 pixels at its centre, averaged over the channels, are on
  where they are above the middle between the image's darkest and brightest pixel. (MNIST centres
  digits of at most 20x20 pixels by their centre of mass, so that a few lose an edge.)
- The numbers of excitatory and inhibitory connections of an A-unit and its threshold, which were
  chosen on training digits that were held out; S-units are drawn without replacement.
- Several classes: one R-unit a class, of which the one with the largest input responds. Of two
  with the same the first does. At an error the right R-unit is reinforced, and the one that
  responded weakened by as much. For two classes that is Rosenblatt's single R-unit, its weights
  being the differences of ours.
- R-units begin with weights of zero and have no thresholds.
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn.buffer import Buffer
from dlc_jax.nn.losses import check_no_label_smoothing, mask_negative_labels
from dlc_jax.typing import AnyArray
from dlc_jax.utils.arrays import owned_copy

_RETINA = 20  # S-units, of a side


class Perceptron(Network):
    """S-units, A-units wired to them at random, and an R-unit a class.

    `update` trains it as Rosenblatt did. Its `loss` makes of plain gradient descent at a
    learning rate of 1, on one image at a time, the same.

    Args:
      image_shape: height, width and channels of the images, at least 20x20.
      num_classes: the number of R-units.
      rngs: where the wiring comes from.
      dtype: what it computes in.
      association_units: the number of A-units.
      excitatory: to how many S-units an A-unit is connected that excite it.
      inhibitory: to how many S-units it is connected that inhibit it.
      threshold: by how many the S-units that excite must exceed those that inhibit, at least,
        for an A-unit to be active.

    Raises:
      InputError: the images are under 20x20, or an A-unit has more connections than there are
        S-units.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        association_units: int = 512,
        excitatory: int = 5,
        inhibitory: int = 3,
        threshold: int = 2,
    ) -> None:
        height, width, _ = image_shape
        if min(height, width) < _RETINA:
            raise InputError(
                f"the perceptron's retina is 20x20, and the images only {height}x{width}; "
                "enlarge or pad them"
            )
        if min(excitatory, inhibitory) < 0 or excitatory + inhibitory > _RETINA**2:
            raise InputError(
                f"an A-unit can't have {excitatory} + {inhibitory} connections to 400 S-units; "
                "choose at most 400"
            )
        self.dtype, self.threshold = dtype, threshold
        keys = jax.random.split(rngs.params(), association_units)
        draw = jax.vmap(_connections, in_axes=(0, None, None), out_axes=1)
        self.wiring = Buffer(draw(keys, excitatory, inhibitory))
        self.weights = nnx.Param(jnp.zeros((association_units, num_classes), jnp.float32))

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """The three kinds of units.

        They are "s" [batch, 20, 20, 1] and "a" [batch, association_units], 1 where a unit is
        on and 0 elsewhere, and "logits" [batch, classes], the R-units' inputs.
        """
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["s"] = retina(x).astype(self.dtype)
        excitement = x.reshape(len(x), -1) @ self.wiring[...].astype(self.dtype)
        x = stages["a"] = (excitement >= self.threshold).astype(self.dtype)
        stages["logits"] = x @ self.weights[...].astype(self.dtype)
        return stages

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns the largest logit less that of the label.

        Its gradient is minus the correction that `update` makes.

        Args:
          stages: The result of `stages`.
          labels: The true classes.
          label_smoothing: Not supported.
        """
        check_no_label_smoothing(type(self).__name__, label_smoothing)
        logits = stages["logits"]
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        # By index, since the gradient of a maximum is shared among equal logits.
        chosen = jnp.stack([logits.argmax(1), mask_negative_labels(labels, logits.shape[1])], 1)
        largest, of_label = jnp.take_along_axis(logits, chosen, 1).T
        return largest - of_label


@jax.jit
def update(
    model: Perceptron,
    images: Float[AnyArray, "images height width channels"],
    labels: Int[AnyArray, " images"],
) -> tuple[Perceptron, Int[Array, ""]]:
    """Shows images one after the other, each followed by a correction if the response is wrong.

    One call on a training split is one epoch; it is a scan on the device.

    Args:
      model: the network; it is not changed.
      images: normalised or not; see `retina`.
      labels: the right classes.

    Returns:
      The network after the last image, and how many corrections were made.
    """
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    activities = model.stages(jnp.asarray(images))["a"]
    weights, corrections = correct(params["weights"][...], activities, labels)
    params["weights"] = params["weights"].replace(weights)
    return nnx.merge(graphdef, params, rest), corrections


def correct(
    weights: Float[Array, "inputs classes"],
    activities: Float[AnyArray, "images inputs"],
    labels: Int[AnyArray, " images"],
) -> tuple[Float[Array, "inputs classes"], Int[Array, ""]]:
    """The rule of error correction, for each row of activities in turn.

    Args:
      weights: from A-units to R-units.
      activities: of the A-units.
      labels: the right classes.

    Returns:
      The weights after the last row, and how many corrections were made.
    """

    def show(weights: Array, example: tuple[Array, Array]) -> tuple[Array, Array]:
        active, label = example
        response = (active @ weights).argmax()
        wrong = response != label
        change = jnp.where(wrong, active, 0)
        return weights.at[:, label].add(change).at[:, response].add(-change), wrong

    labels = mask_negative_labels(owned_copy(labels), weights.shape[1])
    examples = jnp.asarray(owned_copy(activities), weights.dtype), labels
    weights, wrong = lax.scan(show, weights, examples)
    return weights, wrong.sum()


def retina(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 20 20 1"]:
    """The S-units: 1 where the centre of an image is brighter than its middle grey, else 0.

    The middle is that between the darkest and the brightest of the 20x20 pixels at the centre;
    so it does not matter how the image was normalised. An image of a single grey is all off.

    Args:
      x: images of at least 20x20 pixels; of an odd margin the smaller half is cut off at the
        top and on the left.
    """
    top, left = ((size - _RETINA) // 2 for size in x.shape[1:3])
    grey = x[:, top : top + _RETINA, left : left + _RETINA].mean(3, keepdims=True)
    darkest, brightest = (f((1, 2, 3), keepdims=True) for f in (grey.min, grey.max))
    return (grey > (darkest + brightest) / 2).astype(x.dtype)


def _connections(
    key: PRNGKeyArray, excitatory: int, inhibitory: int
) -> Float[Array, " s_units=400"]:
    """An A-unit's connections: 1 to some S-units, -1 to others."""
    signs = jnp.zeros(_RETINA**2, jnp.float32).at[:excitatory].set(1)
    return jax.random.permutation(key, signs.at[excitatory : excitatory + inhibitory].set(-1))
