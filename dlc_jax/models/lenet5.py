"""LeNet-5, the network that read handwritten digits and bank checks.

LeCun, Bottou, Bengio and Haffner 1998, "Gradient-based learning applied to document recognition",
Proceedings of the IEEE 86(11), section II.B, with the loss of section II.C and the initial weights
of appendix A. The paper also introduced MNIST.

Differences from the paper:

- The paper trains with a stochastic diagonal Levenberg-Marquardt method. Here, any optimizer can be
  used.
- tanh is applied to C1, S2, C3, S4, C5 and F6, as the text says of all units up to F6.
- The targets of the output units are our own 7x12 bitmaps of the ten digits, where the paper has
  the printable ASCII characters. For more than ten classes they are random codes, an option that
  the paper mentions.
- Biases are initialized like the weights of their units; fan-in does not count the bias.
- The constant j of the loss, which the paper does not state, is 5, chosen on held-out training
  digits.
- Images are normalized to mean 0 and variance 1 (`dlc_jax.data.Normalize`), where the paper scales
  pixels to -0.1 (background) and 1.175 (ink).
- Images of 28x28 pixels are edge-padded to 32x32, and may have several channels.
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

# Maps of S2 (rows) that each map of C3 (columns) reads: table I of the paper.
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

_SIZE = 32  # height and width of images
_AMPLITUDE, _SLOPE = 1.7159, 2 / 3


def squash(a: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Applies the scaled tanh of appendix A, 1.7159 tanh(2a/3), which maps ±1 to ±1.

    Args:
      a: Weighted sums of units.

    Example:
      >>> print(f"{squash(jnp.array(1.0)):.3f}")
      1.000
    """
    return _AMPLITUDE * jnp.tanh(_SLOPE * a)


def uniform(fan_in: int) -> Any:
    """Returns the initializer of appendix A, which is uniform on ±2.4/fan_in.

    Args:
      fan_in: Number of inputs of a unit.

    Example:
      >>> bool(abs(uniform(24)(jax.random.key(0), (5,))).max() <= 0.1)
      True
    """
    return layers.uniform(2.4 / fan_in)


class SubSampling(nnx.Module):
    """Sums over 2x2 windows, times a trainable coefficient, plus a bias, per feature map.

    Args:
      maps: Number of feature maps; coefficient and bias have the shape [maps].
      rngs: Random number generators of the initial values.
    """

    def __init__(self, maps: int, *, rngs: nnx.Rngs) -> None:
        init = uniform(4)
        self.coefficient = nnx.Param(init(rngs.params(), (maps,)))
        self.bias = nnx.Param(init(rngs.params(), (maps,)))

    def __call__(
        self, x: Float[Array, "batch height width maps"]
    ) -> Float[Array, "batch height//2 width//2 maps"]:
        """Returns the sub-sampled maps, before the tanh."""
        coefficient, bias = (p[...].astype(x.dtype) for p in (self.coefficient, self.bias))
        return 4 * ops.avg_pool(x, (2, 2)) * coefficient + bias


class TableConv(nnx.Module):
    """Layer C3: a 5x5 convolution with sparse connections between maps.

    Its kernel has the shape [5, 5, connections], in the order of the rows of the table.

    Args:
      table: The inputs that each map reads.
      dtype: Dtype of the computation.
      rngs: Random number generators of the initial weights, whose scale depends on the fan-in.
    """

    def __init__(
        self, table: Bool[np.ndarray, "inputs maps"], *, dtype: Any, rngs: nnx.Rngs
    ) -> None:
        self.dtype = dtype
        self.shape = table.shape
        # Indices of the connections among all pairs of an input and a map.
        self.connections = tuple(np.flatnonzero(table).tolist())
        fan_in = 25 * table.sum(0)
        fan_in_of_connections = fan_in[np.nonzero(table)[1]]
        draws = uniform(1)(rngs.params(), (5, 5, len(self.connections)))
        self.kernel = nnx.Param(draws / fan_in_of_connections)
        self.bias = nnx.Param(uniform(1)(rngs.params(), fan_in.shape) / fan_in)

    def __call__(
        self, x: Float[Array, "batch height width inputs"]
    ) -> Float[Array, "batch height-4 width-4 maps"]:
        """Returns the feature maps, before the tanh."""
        kernel, bias = (p[...].astype(self.dtype) for p in (self.kernel, self.bias))
        dense = jnp.zeros((5, 5, math.prod(self.shape)), self.dtype)
        dense = dense.at[:, :, np.array(self.connections)].set(kernel).reshape(5, 5, *self.shape)
        return ops.conv2d(x, dense, padding="VALID") + bias


class LeNet5(Network):
    """LeNet-5 as published, with 60,000 trainable parameters for ten classes of grayscale images.

    Its logits are the negative penalties of the Euclidean radial basis function units, so the
    largest logit is that of the nearest code.

    Args:
      image_shape: Height, width and channels of the images: 32x32, or 28x28 (padded).
      num_classes: Number of output units. The codes of up to ten are bitmaps of the digits; more
        have random codes of ±1, drawn from `rngs.params`.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      rubbish_penalty: Constant j of the loss (equation 9), the penalty of a class of patterns
        that are not digits. Larger penalties of wrong classes have no effect.

    Raises:
      InputError: The images are neither 28x28 nor 32x32.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        rubbish_penalty: float = 5.0,
    ) -> None:
        height, width, channels = image_shape
        if (height, width) not in ((28, 28), (_SIZE, _SIZE)):
            raise InputError(
                f"LeNet-5 needs images of 32x32 or 28x28 pixels, not {height}x{width}; resize them"
            )
        self.dtype, self.rubbish_penalty = dtype, rubbish_penalty
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
        """Returns the layers of figure 2 after the tanh, the penalties, and the logits.

        These are "c1" [batch, 28, 28, 6], "s2" [batch, 14, 14, 6], "c3" [batch, 10, 10, 16],
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
        competition = jnp.logaddexp(-self.rubbish_penalty, jax.nn.logsumexp(-penalties, 1))
        return of_label + competition


def pad_to_32(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch 32 32 channels"]:
    """Edge-pads square images to 32x32.

    Args:
      x: Images of at most 32x32 pixels.

    Example:
      >>> pad_to_32(jnp.ones((1, 28, 28, 1))).shape
      (1, 32, 32, 1)
    """
    margin = (_SIZE - x.shape[1]) // 2
    return jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)), mode="edge")


def _codes(count: int, rngs: nnx.Rngs) -> Float[Array, "count 84"]:
    if count <= len(GLYPHS):
        return jnp.asarray(GLYPHS[:count], jnp.float32)
    # In float32, so that the codes are the same in x64 mode.
    ink = jax.random.bernoulli(rngs.params(), jnp.float32(0.5), (count, _CODE_SIZE))
    return jnp.where(ink, 1, -1).astype(jnp.float32)
