"""The T-C problem: classify a T and a C at any position and in four rotations.

Rumelhart, Hinton and Williams 1986, "Learning internal representations by error propagation"
(Parallel Distributed Processing, volume 1, chapter 8), on a problem of Minsky and Papert. The
network has hidden units with 3x3 receptive fields and shared weights: a convolution, trained by
back-propagation.

Our choices, where the paper leaves them open:

- The retina has 6x6 pixels by default, and contains the 3x3 box of a pattern completely.
- Receptive fields are centered on each pixel of the retina and on the pixels around it (full
  padding), so that each overlap of a field and a pattern occurs at each position.
- The weights of the output unit are shared like those of the hidden units, so the output does not
  depend on the position of the pattern.
- There are two feature maps. A single map can solve the problem, but training failed from about one
  in ten of the initial weights that we tried.
- Initial weights are uniform on ±1 (hidden units) and ±0.5 (output unit). The initial bias of
  hidden units is -3: with 0, the many units on the background saturate the output unit.
- An output above one half means C.
"""

import itertools
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Float, Int

from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers
from dlc_jax.nn.losses import check_no_label_smoothing
from dlc_jax.typing import AnyArray

# T and C, each of five pixels, four of which are the same.
_PATTERNS = (("###", ".#.", ".#."), (".##", ".#.", ".##"))
_SIDE = 3  # height and width of a pattern
_FIELD = 3  # height and width of a receptive field


def patterns(
    size: int,
) -> tuple[Float[np.ndarray, "patterns size size 1"], Int[np.ndarray, " patterns"]]:
    """Creates all T's (class 0) and C's (class 1), in four rotations at each position.

    Args:
      size: Height and width of the images.

    Returns:
      8 * (size - 2)^2 images of 0 and 1 in float32, and their labels. T and C alternate.

    Raises:
      InputError: The images are smaller than a pattern.

    Example:
      >>> images, labels = patterns(3)
      >>> images[0, :, :, 0]
      array([[1., 1., 1.],
             [0., 1., 0.],
             [0., 1., 0.]], dtype=float32)
    """
    if size < _SIDE:
        raise InputError(f"T-C patterns need images of at least 3x3, not {size}x{size}")
    boxes = [
        np.rot90(np.array([[mark == "#" for mark in row] for row in pattern]), quarters)
        for quarters in range(4)
        for pattern in _PATTERNS
    ]
    images = []
    for row, column in itertools.product(range(size - _SIDE + 1), repeat=2):
        margins = [(start, size - _SIDE - start) for start in (row, column)]
        images += [np.pad(box, margins) for box in boxes]
    labels = np.arange(len(images), dtype=np.int32) % len(_PATTERNS)
    return np.array(images, np.float32)[..., None], labels


class TC(Network):
    """A 3x3 convolution, summed over positions, and an output unit.

    Args:
      image_shape: Height, width and channels of the images, at least 3x3.
      num_classes: 2 (T and C).
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      features: Number of feature maps of hidden units.

    Raises:
      InputError: The images are smaller than a pattern, or there are not two classes.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] = (6, 6, 1),
        num_classes: int = 2,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        features: int = 2,
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < _SIDE:
            raise InputError(f"the T-C network needs images of at least 3x3, not {height}x{width}")
        if num_classes != 2:
            raise InputError(f"the T-C network has 2 classes, not {num_classes}")
        self.hidden = layers.Conv(
            channels,
            features,
            (_FIELD, _FIELD),
            padding=2,
            kernel_init=layers.uniform(1.0),
            bias_init=nnx.initializers.constant(-3.0),
            dtype=dtype,
            rngs=rngs,
        )
        init = layers.uniform(0.5)
        self.output = layers.Linear(
            features, 1, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs
        )

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns the logistic units and the logits.

        These are "hidden" [batch, height + 2, width + 2, features], "output" [batch, 1], the
        probability of a C, and "logits" [batch, 2], of which the first is 0.
        """
        stages: OrderedDict[str, Array] = OrderedDict()
        x = stages["hidden"] = nnx.sigmoid(self.hidden(x))
        x = self.output(x.sum((1, 2)))
        stages["output"] = nnx.sigmoid(x)
        stages["logits"] = jnp.concatenate([jnp.zeros_like(x), x], 1)
        return stages

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns (t - o)^2 / 2, where t is 0 for a T and 1 for a C, and o is the output.

        The paper sums it over the patterns.

        Args:
          stages: The result of `stages`.
          labels: The true classes.
          label_smoothing: Not supported.
        """
        check_no_label_smoothing(type(self).__name__, label_smoothing)
        output = stages["output"][:, 0]
        output = output.astype(jnp.promote_types(output.dtype, jnp.float32))
        return jnp.square(jnp.asarray(labels) - output) / 2
