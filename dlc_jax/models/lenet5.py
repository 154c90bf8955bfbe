"""LeNet-5: the network that read handwritten digits and bank cheques.

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document
recognition", Proceedings of the IEEE 86(11), section II.B, with the loss of section II.C and
the initial weights of appendix A. New was a convolutional network of this depth, trained from
pixels to classes and put to commercial use; its data set, MNIST, came with it.

Where it differs from the paper:

- The paper trains by a stochastic diagonal Levenberg-Marquardt method, one image at a time.
  Here the optimizer is whatever it is trained with.
- The paper says of all units up to layer F6 that a squashing function is applied to their
  weighted sums. It is taken at its word: C1, S2, C3, S4, C5 and F6 are all squashed.
- The targets of the output units are bitmaps of 7x12 pixels. Ours are drawn anew; the paper
  has the whole printable ASCII set, and here are the ten digits. For more than ten classes the
  targets are random codes, as the paper considers in passing.
- Biases are drawn like the weights of their units, from the fan-in without the bias itself.
- The paper gives no value for the constant j of its loss. Ours, 5, was chosen on training
  digits that were held out.
- The paper scales pixels to -0.1 (background) and 1.175 (ink), so that their mean is roughly 0
  and their variance roughly 1. Here images come as they are normalised: by `data.Normalise.fit`
  they have that mean and variance exactly.
- Images of 28x28 pixels are padded to 32x32 with the values at their edges: for digits, the
  background. More than one channel is accepted, which the paper does not consider.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jaxtyping import Bool, Float, Int

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers
from dlc_jax.nn.buffer import Buffer
from dlc_jax.nn.losses import check_no_label_smoothing, mask_negative_labels
from dlc_jax.typing import AnyArray

# Which maps of S2 (rows) each map of C3 (columns) reads: table I of the paper.
_TABLE_I = """
X...XXX..XXXX.XX
XX...XXX..XXXX.X
XXX...XXX..X.XXX
.XXX..XXXX..X.XX
..XXX..XXXX.XX.X
...XXX..XXXX.XXX
"""
CONNECTIONS: Bool[np.ndarray, "inputs=6 maps=16"] = np.array(
    [[mark == "X" for mark in row] for row in _TABLE_I.split()]
)

# The digits from 0 to 9 as bitmaps, 7 pixels wide and 12 high, side by side.
_GLYPHS = """
.#####. ...#... .#####. .#####. .....#. ####### ..####. ####### .#####. .#####.
##...## ..##... ##...## ##...## ....##. ##..... .##.... .....## ##...## ##...##
##...## .###... #....## .....## ...###. ##..... ##..... .....## ##...## ##...##
##...## ...#... .....## .....## ..#.##. ##..... ##..... ....##. ##...## ##...##
##..### ...#... .....## ....##. .##.##. ######. ##..... ....##. .##.##. ##...##
##.#.## ...#... ....##. ..###.. ##..##. .....## ######. ...##.. ..###.. .######
##.#.## ...#... ...##.. ....##. ##..##. .....## ##...## ...##.. .##.##. .....##
###..## ...#... ..##... .....## ####### .....## ##...## ..##... ##...## .....##
##...## ...#... .##.... .....## ....##. .....## ##...## ..##... ##...## .....##
##...## ...#... ##..... .....## ....##. #....## ##...## .##.... ##...## ....##.
##...## ...#... ##..... ##...## ....##. ##...## ##...## .##.... ##...## ...##..
.#####. .#####. ####### .#####. ....##. .#####. .#####. .##.... .#####. .###...
"""
_CODE_SIZE = 7 * 12
GLYPHS: Float[np.ndarray, "digits=10 pixels=84"] = (
    np.array([[1.0 if mark == "#" else -1.0 for mark in row] for row in _GLYPHS.split()])
    .reshape(12, 10, 7)
    .transpose(1, 0, 2)
    .reshape(10, _CODE_SIZE)
)

_SIZE = 32  # pixels, of the side of an image
_AMPLITUDE, _SLOPE = 1.7159, 2 / 3


def squash(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """1.7159 tanh(2a/3), by which 1 and -1 stay what they are (appendix A of the paper)."""
    return _AMPLITUDE * jnp.tanh(_SLOPE * a)


def uniform(fan_in: int) -> Any:
    """The initialiser of appendix A: uniform on ±2.4/fan_in.

    Args:
      fan_in: how many inputs a unit has.
    """
    return layers.uniform(2.4 / fan_in)


class SubSampling(nnx.Module):
    """The sum of each four touching pixels, times a coefficient, plus a bias, for each map.

    Args:
      maps: the number of feature maps; coefficient and bias are of shape [maps].
      rngs: where the initial values come from.
    """

    def __init__(self, maps: int, *, rngs: nnx.Rngs) -> None:
        init = uniform(4)
        self.coefficient = nnx.Param(init(rngs.params(), (maps,)))
        self.bias = nnx.Param(init(rngs.params(), (maps,)))

    def __call__(
        self, x: Float[Array, "batch height width maps"]
    ) -> Float[Array, "batch height//2 width//2 maps"]:
        """The smaller maps, not yet squashed."""
        coefficient, bias = (p[...].astype(x.dtype) for p in (self.coefficient, self.bias))
        return 4 * ops.avg_pool(x, (2, 2)) * coefficient + bias


class TableConv(nnx.Module):
    """Layer C3: a 5x5 convolution in which each map reads only some of the maps before it.

    Its kernel holds the planes of the connections that there are, [5, 5, connections], in the
    order of the table's rows; what is not connected has no weight.

    Args:
      table: which inputs each map reads.
      dtype: what it computes in.
      rngs: where the initial weights come from; a map's depend on how many inputs it has.
    """

    def __init__(
        self, table: Bool[np.ndarray, "inputs maps"], *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        self.shape = table.shape
        # Where each connection's plane goes among all pairs of an input and a map.
        self.places = tuple(np.flatnonzero(table).tolist())
        fan_in = 25 * table.sum(0)
        of_each_plane = fan_in[np.nonzero(table)[1]]
        draws = uniform(1)(rngs.params(), (5, 5, len(self.places)))
        self.kernel = nnx.Param(draws / of_each_plane)
        self.bias = nnx.Param(uniform(1)(rngs.params(), fan_in.shape) / fan_in)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height-4 width-4 maps"]:
        """The maps, not yet squashed."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        dense = jnp.zeros((5, 5, math.prod(self.shape)), self.dtype)
        dense = dense.at[:, :, np.array(self.places)].set(kernel).reshape(5, 5, *self.shape)
        return ops.conv2d(x, dense, padding="VALID") + bias


class LeNet5(Network):
    """LeNet-5 as published, with 60,000 trainable parameters for ten classes of grey images.

    Its logits are the penalties of the paper's Euclidean radial basis functions, with the
    sign changed: the class of the largest logit is that of the nearest code.

    Args:
      image_shape: height, width and channels of the images: 32x32, or 28x28 (padded).
      num_classes: the number of output units. Up to ten their codes are bitmaps of the digits
        from 0 on. More have random codes of ±1 from `rngs.params`, of which any two coincide
        with a probability of 2^-84.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      rubbish: the constant j of the loss (equation 9): the penalty of a further class of
        patterns that are no digits, above which the penalties of wrong classes do not matter.

    Raises:
      InputError: the images are neither 28x28 nor 32x32.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        rubbish: float = 5.0,
    ) -> None:
        height, width, channels = image_shape
        if (height, width) not in ((28, 28), (_SIZE, _SIZE)):
            raise InputError(
                f"LeNet-5 takes images of 32x32 pixels, or of 28x28, which it pads, not "
                f"{height}x{width}; resize them"
            )
        self.dtype, self.rubbish = dtype, rubbish
        self.c1 = self._conv(channels, 6, dtype, rngs)
        self.s2 = SubSampling(6, rngs=rngs)
        self.c3 = TableConv(CONNECTIONS, dtype=dtype, rngs=rngs)
        self.s4 = SubSampling(16, rngs=rngs)
        self.c5 = self._conv(16, 120, dtype, rngs)
        init = uniform(120)
        self.f6 = layers.Linear(
            120, _CODE_SIZE, dtype=dtype, rngs=rngs, kernel_init=init, bias_init=init
        )
        self.codes = Buffer(_codes(num_classes, rngs))

    @staticmethod
    def _conv(inputs: int, maps: int, dtype: Any, rngs: nnx.Rngs) -> layers.Conv:
        init = uniform(25 * inputs)
        options: dict[str, Any] = {"padding": "VALID", "kernel_init": init, "bias_init": init}
        return layers.Conv(inputs, maps, (5, 5), dtype=dtype, rngs=rngs, **options)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """All layers of the paper's figure 2, squashed, and the output units' penalties.

        They are "c1" [batch, 28, 28, 6], "s2" [batch, 14, 14, 6], "c3" [batch, 10, 10, 16],
        "s4" [batch, 5, 5, 16], "c5" [batch, 120], "f6" [batch, 84], "penalties" and "logits"
        [batch, classes].
        """
        stages: OrderedDict[str, Array] = OrderedDict()
        x = pad_to_32(jnp.asarray(x, self.dtype))
        x = stages["c1"] = squash(self.c1(x))
        x = stages["s2"] = squash(self.s2(x))
        x = stages["c3"] = squash(self.c3(x))
        x = stages["s4"] = squash(self.s4(x))
        x = stages["c5"] = squash(self.c5(x)).reshape(len(x), -1)
        x = stages["f6"] = squash(self.f6(x))
        codes = self.codes[...].astype(x.dtype)
        penalties = stages["penalties"] = jnp.square(x[:, None] - codes).sum(-1)
        stages["logits"] = -penalties
        return stages

    def loss(
        self,
        stages: Mapping[str, Array],
        labels: Int[AnyArray, " batch"],
        label_smoothing: float = 0.0,
    ) -> Float[Array, " batch"]:
        """Returns y_D + log(exp(-j) + sum_i exp(-y_i)): equation 9, the MAP criterion.

        y_i are the penalties, D is the true class, and j the penalty of the rubbish class.

        Args:
          stages: The result of `stages`.
          labels: The true classes.
          label_smoothing: Not supported.
        """
        check_no_label_smoothing(type(self).__name__, label_smoothing)
        penalties = stages["penalties"]
        # A mean over many examples would lose precision in bfloat16.
        penalties = penalties.astype(jnp.promote_types(penalties.dtype, jnp.float32))
        labels = mask_negative_labels(labels, penalties.shape[1])
        of_label = jnp.take_along_axis(penalties, labels[:, None], 1)[:, 0]
        competition = jnp.logaddexp(-self.rubbish, jax.nn.logsumexp(-penalties, 1))
        return of_label + competition


def pad_to_32(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 32 32 channels"]:
    """Square images with the values at their edges repeated evenly on all sides."""
    margin = (_SIZE - x.shape[1]) // 2
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")


def _codes(count: int, rngs: nnx.Rngs) -> Float[Array, "count 84"]:
    if count <= len(GLYPHS):
        return jnp.asarray(GLYPHS[:count], jnp.float32)
    # In float32, so that x64 mode draws the same.
    ink = jax.random.bernoulli(rngs.params(), jnp.float32(0.5), (count, _CODE_SIZE))
    return jnp.where(ink, 1, -1).astype(jnp.float32)
