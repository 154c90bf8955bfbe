"""The T-C problem: to tell a T from a C, whichever way it is turned and wherever it stands.

Rumelhart, Hinton and Williams 1986, "Learning internal representations by error propagation"
(Parallel Distributed Processing, volume 1, chapter 8), where the problem, which is Minsky and
Papert's, has a section of its own. New was the network: hidden units that see 3x3 squares of a
retina each, and whose weights are kept equal while they learn, so that all look for the same
thing. It is a convolution trained by back-propagation.

Where the paper leaves something open, or we are not sure of what it chose, this is ours:

- The size of the retina, 6x6 squares unless told otherwise. A pattern stands wherever its box
  of 3x3 squares lies on the retina as a whole.
- A receptive field is centred on each square of the retina and on the squares just outside of
  it, all of them dark; so every way in which a field can overlap a pattern occurs, at the
  retina's edges too.
- The output unit gives the hidden units of one kind a weight in common, as they have weights in
  common: what the network says of a pattern does not depend on where it stands.
- There are two kinds of hidden units. One kind can solve the problem, but from about one in
  ten of the initial weights that were tried it did not get there.
- The initial weights: of the hidden units uniform on ±1, of the output unit on ±0.5. Hidden
  units begin with a bias of -3. So the many that see only the dark are nearly off; with a bias
  of 0 their sum saturates the output unit before anything is learned.
- The output unit stands for C when it is above one half, and for T below.
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

# Five squares each, and they differ in a single one.
_PATTERNS = (("###", ".#.", ".#."), (".##", ".#.", ".##"))
_SIDE = 3  # squares, of a pattern's box
_FIELD = 3  # squares, of a receptive field


def patterns(
    size: int,
) -> tuple[Float[np.ndarray, "patterns size size 1"], Int[np.ndarray, " patterns"]]:
    """All T's (class 0) and C's (class 1), in four rotations at each position.

    Args:
      size: the side of the retina in squares.

    Returns:
      Images of dtype float32, [8 * (size - 2)^2, size, size, 1], 1 in a pattern's squares and 0
      elsewhere; and their classes. T and C take turns; the position changes last.

    Raises:
      InputError: the retina is smaller than a pattern.
    """
    if size < _SIDE:
        raise InputError(f"a retina of {size}x{size} squares is too small; it needs 3x3")
    boxes = [
        np.rot90(np.array([[square == "#" for square in row] for row in pattern]), quarters)
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
    """Hidden units with 3x3 fields and common weights, and a unit that reads all of them.

    Args:
      image_shape: height, width and channels of the retina, at least 3x3.
      num_classes: 2: T and C.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      kinds: how many kinds of hidden units there are; units of a kind have their weights in
        common.

    Raises:
      InputError: the retina is smaller than a pattern, or the classes are not two.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int] = (6, 6, 1),
        num_classes: int = 2,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        kinds: int = 2,
    ) -> None:
        height, width, channels = image_shape
        if min(height, width) < _SIDE:
            raise InputError(f"a retina of {height}x{width} squares is too small; it needs 3x3")
        if num_classes != 2:
            raise InputError(f"the T-C network tells 2 classes apart, not {num_classes}")
        # Fields are centred on the squares around the retina, too: they reach two beyond it.
        self.hidden = layers.Conv(
            channels,
            kinds,
            (_FIELD, _FIELD),
            padding=2,
            kernel_init=layers.uniform(1.0),
            bias_init=nnx.initializers.constant(-3.0),
            dtype=dtype,
            rngs=rngs,
        )
        init = layers.uniform(0.5)
        self.output = layers.Linear(
            kinds, 1, kernel_init=init, bias_init=init, dtype=dtype, rngs=rngs
        )

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """The logistic units and the logits.

        They are "hidden" [batch, height + 2, width + 2, kinds], "output" [batch, 1], which is
        how likely a C is, and "logits" [batch, 2], the first of which is 0.
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
