"""The perceptron (Rosenblatt 1958).

"The perceptron: a probabilistic model for information storage and organization in the brain",
Psychological Review 65(6), and its hardware, the Mark I: a retina of 20x20 S-units (sensory) and
512 A-units (association), each wired at random to some of the S-units, and R-units (response) that
read the A-units. Only the weights from A-units to R-units are learned.

The learning rule is error correction: if the response is wrong, the weights from active A-units
increase for the correct response and decrease for the wrong one. It converges on linearly separable
activities (Novikoff 1962, "On convergence proofs on perceptrons").

Our choices:

- S-units are the central 20x20 pixels, averaged over the channels and thresholded at the mean of
  the darkest and the brightest of them. (MNIST digits of up to 20x20 pixels are centered by
  mass, so a few lose an edge.)
- The numbers of excitatory and inhibitory connections of an A-unit and its threshold were chosen on
  held-out training digits; S-units are drawn without replacement.
- There is one R-unit per class, and the one with the largest input responds (the first among
  equals). After an error, the weights of the correct R-unit increase and those of the responding
  one decrease. With two classes this is Rosenblatt's single R-unit, with the difference as weights.
- The weights of R-units start at zero, and R-units have no thresholds.
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

_RETINA = 20  # height and width of the retina


class Perceptron(Network):
    """S-units, A-units wired to them at random, and one R-unit per class.

    `update` is Rosenblatt's learning rule. SGD on `loss`, on single images with a learning rate
    of 1, is the same.

    Args:
      image_shape: Height, width and channels of the images, at least 20x20.
      num_classes: Number of R-units.
      rngs: Random number generators of the wiring.
      dtype: Dtype of the computation.
      association_units: Number of A-units.
      excitatory: Number of excitatory connections of an A-unit.
      inhibitory: Number of inhibitory connections of an A-unit.
      threshold: An A-unit is active if active excitatory connections exceed active inhibitory
        ones by at least this number.

    Raises:
      InputError: The images are smaller than 20x20, or an A-unit has more connections than there
        are S-units.
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
                f"the perceptron needs images of at least 20x20, not {height}x{width}; enlarge or "
                "pad them"
            )
        if min(excitatory, inhibitory) < 0 or excitatory + inhibitory > _RETINA**2:
            raise InputError(
                f"an A-unit can't have {excitatory} + {inhibitory} connections to 400 S-units; "
                "choose 0 to 400 in total"
            )
        self.dtype, self.threshold = dtype, threshold
        keys = jax.random.split(rngs.params(), association_units)
        draw = jax.vmap(_connections, in_axes=(0, None, None), out_axes=1)
        self.wiring = Buffer(draw(keys, excitatory, inhibitory))
        self.weights = nnx.Param(jnp.zeros((association_units, num_classes), jnp.float32))

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the S-units, the A-units, and the inputs of the R-units.

        These are "s" [batch, 20, 20, 1] and "a" [batch, association_units], 0 or 1, and "logits"
        [batch, classes].
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
        """Returns the largest logit minus the label's logit.

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
    """Applies the error correction rule to each image in turn.

    Args:
      model: The network, which is not changed.
      images: Images, normalized or not.
      labels: The true classes.

    Returns:
      The network after the last image, and the number of corrections.

    Example:
      >>> model = Perceptron(image_shape=(20, 20, 1), num_classes=2, rngs=nnx.Rngs(0))
      >>> images = jnp.eye(20).reshape(1, 20, 20, 1)
      >>> model, corrections = update(model, images, jnp.array([1]))
      >>> int(corrections), int(model(images).argmax())
      (1, 1)
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
    """Applies the error correction rule to each row of activities in turn.

    Args:
      weights: Weights from A-units to R-units.
      activities: Activities of the A-units.
      labels: The true classes.

    Returns:
      The weights after the last row, and the number of corrections.

    Example:
      >>> weights, corrections = correct(jnp.zeros((1, 2)), jnp.ones((3, 1)), jnp.array([1, 1, 1]))
      >>> weights, int(corrections)
      (Array([[-1.,  1.]], dtype=float32), 1)
    """

    def step(weights: Array, example: tuple[Array, Array]) -> tuple[Array, Array]:
        active, label = example
        response = (active @ weights).argmax()
        wrong = response != label
        change = jnp.where(wrong, active, 0)
        return weights.at[:, label].add(change).at[:, response].add(-change), wrong

    labels = mask_negative_labels(owned_copy(labels), weights.shape[1])
    examples = jnp.asarray(owned_copy(activities), weights.dtype), labels
    weights, wrong = lax.scan(step, weights, examples)
    return weights, wrong.sum()


def retina(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 20 20 1"]:
    """Returns the S-units: the central 20x20 pixels, thresholded to 0 or 1.

    The threshold is the mean of their minimum and maximum, so the result does not depend on the
    normalization of the image. It is 0 for constant images.

    Args:
      x: Images of at least 20x20 pixels.

    Example:
      >>> retina(jnp.eye(28).reshape(1, 28, 28, 1)).sum()
      Array(20., dtype=float32)
    """
    top, left = ((size - _RETINA) // 2 for size in x.shape[1:3])
    grey = x[:, top : top + _RETINA, left : left + _RETINA].mean(3, keepdims=True)
    minimum, maximum = (f((1, 2, 3), keepdims=True) for f in (grey.min, grey.max))
    return (grey > (minimum + maximum) / 2).astype(x.dtype)


def _connections(
    key: PRNGKeyArray, excitatory: int, inhibitory: int
) -> Float[Array, " s_units=400"]:
    """Connections of an A-unit: 1 if excitatory, -1 if inhibitory, else 0."""
    signs = jnp.zeros(_RETINA**2, jnp.float32).at[:excitatory].set(1)
    return jax.random.permutation(key, signs.at[excitatory : excitatory + inhibitory].set(-1))
