"""The neocognitron, the ancestor of convolutional networks (Fukushima 1980).

K. Fukushima, "Neocognitron: A Self-organizing Neural Network Model for a Mechanism of Pattern
Recognition Unaffected by Shift in Position", Biological Cybernetics 36, 193-202. It introduced
planes of cells with shared weights; layers of such S-cells (convolution) alternating with layers of
C-cells (pooling); and a rule by which the S-cells learn from unlabeled images.

These are as in the paper: the layers U0, S1, C1, S2, C2, S3, C3; S-cells with 5x5 receptive fields
and C3 with one cell per plane; the equations of S-cells, C-cells and inhibitory V-cells; and the
learning rule. In each S-column (the cells of all planes around a position), the cell with the
largest output is a candidate; the largest candidate of a plane is its representative; and the plane
learns the input of its representative. (Later papers of Fukushima call it the "seed cell", and
preset S1, which is learned here.)

Our choices:

- Images are digits of 28x28 instead of 16x16 pixels; maps are 28, 14 and 7 cells wide.
- Images are scaled to [0, 1], since activities are non-negative.
- There are 24, 48 and 128 planes, where the paper has 24 per layer.
- Selectivities are 2, 1.5 and 0.8 (4, 1.5 and 1.5 in the paper). There is one reinforcement rate
  for all layers. The other constants below are ours, too.
- Layers are trained one after the other, with one pass over the images each.
- A linear readout of all cells of C1, C2 and C3 learns from labels by gradient descent. The paper
  has none: there, each cell of C3 comes to represent one pattern.

With 3,000 unlabeled digits of `mnist-5k`, the test error of the linear readout on 1,000 digits is
(in %, mean of three runs of `examples/neocognitron.py`):

| labeled digits | pixels | C1 | C2 | C3 | all three |
|---|---|---|---|---|---|
| 100 | 26.9 | 12.1 | 11.2 | 18.6 | 11.1 |
| 500 | 15.5 | 5.6 | 5.8 | 12.5 | 5.4 |
| 1,000 | 12.5 | 4.4 | 4.3 | 10.3 | 4.1 |

C1 and C2 help most; C3, which has no positions, is somewhat better than pixels. Planes and
selectivities were chosen on held-out training digits. There, with 500 labeled digits, the error of
C3 alone was 10.8 %, 24.4 % with the paper's selectivities, and 20.6 % with 24 planes per layer and
selectivities 2, 1 and 0.8, where pixels had about 15 %. With all three layers it made little
difference: 4.0, 4.5 and 4.1 %.
"""

import math
import operator
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array, lax
from jaxtyping import Bool, Float, Int, PRNGKeyArray

from dlc_jax import ops
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.nn import layers
from dlc_jax.nn.buffer import Buffer
from dlc_jax.typing import AnyArray

_FIELD = (5, 5)  # receptive field of S-cells
_FIELD_FALLOFF = 0.9  # decay of the weights c with the distance from the center
_POOL = (5, 5)  # receptive field of cells of C1 and C2
_POOL_FALLOFF = 0.8  # decay of the weights d with the distance from the center
_POOL_STRENGTH = 0.25  # d at the center
_SATURATION = 0.5  # alpha, the input at which the output of a C-cell is 1/2
_COLUMNS = (5, 5, 3)  # widths of the S-columns of S1, S2 and S3
_COLUMN_STEP = 3  # distance of S-columns; those of S1 and S2 overlap
_RATE = 100.0  # reinforcement rate q
_INITIAL_SCALE = 1e-3  # largest initial weight, relative to c
_MIN_SIZE = 16  # height and width of images
_BATCH_SIZE = 100  # for computing activities in `self_organize`
_MAX_IMAGES = 3000  # more images change little in `self_organize`


class Learned(Buffer):
    """Weights that `self_organize` learns, which gradient descent does not change."""


class SLayer(nnx.Module):
    """Planes of S-cells with small random weights and no inhibition.

    Args:
      channels: Number of input planes.
      planes: Number of output planes.
      selectivity: Selectivity r. Trained cells respond to inputs whose cosine similarity with the
        learned input exceeds r / (1 + r).
      column: Width of an S-column.
      rngs: Random number generators of the initial weights.
    """

    def __init__(
        self, channels: int, planes: int, *, selectivity: float, column: int, rngs: nnx.Rngs
    ) -> None:
        decay = np.repeat(_decay(_FIELD, _FIELD_FALLOFF)[..., None], channels, -1)
        self.c = Buffer(jnp.asarray(decay / decay.sum(), jnp.float32))
        first = jax.random.uniform(rngs.params(), (*_FIELD, channels, planes), jnp.float32)
        self.a = Learned(_INITIAL_SCALE * self.c[..., None] * first)
        self.b = Learned(jnp.zeros(planes, jnp.float32))
        self.selectivity = selectivity
        self.column = column

    def __call__(
        self, u: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width planes"]:
        """Returns the outputs of the S-cells."""
        weights = self.a[...], self.b[...], self.c[...]
        return s_cells(u, *weights, selectivity=self.selectivity)


class CLayer(nnx.Module):
    """Planes of C-cells, each of which reads one plane of S-cells.

    Args:
      window: Height and width of the receptive field.
      step: Stride.
      padding: "SAME" or "VALID".
    """

    def __init__(self, window: tuple[int, int], *, step: int, padding: str) -> None:
        decay = _POOL_STRENGTH * _decay(window, _POOL_FALLOFF)
        self.d = Buffer(jnp.asarray(decay, jnp.float32))
        self.step = step
        self.padding = padding

    def __call__(
        self, s: Float[Array, "batch height width planes"]
    ) -> Float[Array, "batch out_height out_width planes"]:
        """Returns the outputs of the C-cells."""
        return c_cells(s, self.d[...], step=self.step, padding=self.padding)


class Neocognitron(Network):
    """Three pairs of S- and C-layers, and a linear readout of the C-layers.

    Only the weights of the readout are `nnx.Param`. Those of the S-cells are `Learned`, by
    `self_organize`; initially they are small and random.

    Args:
      image_shape: Height, width and channels of the images; 16x16x1 in the paper.
      num_classes: Number of classes.
      rngs: Random number generators of the initial weights.
      dtype: Dtype of the computation.
      planes: Number of cell planes of each pair of layers.
      selectivity: Selectivity r of each S-layer (see `SLayer`).

    Raises:
      InputError: The images are smaller than 16x16, or planes or selectivity are not three
        positive numbers.
    """

    def __init__(
        self,
        *,
        image_shape: tuple[int, int, int],
        num_classes: int,
        rngs: nnx.Rngs,
        dtype: Any = jnp.float32,
        planes: Sequence[int] = (24, 48, 128),
        selectivity: Sequence[float] = (2.0, 1.5, 0.8),
    ) -> None:
        height, width, channels = image_shape
        _check(height, width, planes=planes, selectivity=selectivity)
        before = (channels, *planes[:2])
        self.s1, self.s2, self.s3 = (
            SLayer(*sizes, selectivity=r, column=column, rngs=rngs)
            for *sizes, r, column in zip(before, planes, selectivity, _COLUMNS, strict=True)
        )
        halves, quarters = ((-(-height // step), -(-width // step)) for step in (2, 4))
        self.c1, self.c2 = (CLayer(_POOL, step=2, padding="SAME") for _ in range(2))
        self.c3 = CLayer(quarters, step=1, padding="VALID")  # one cell per plane
        cells = [math.prod(size) for size in (halves, quarters, (1, 1))]
        count = sum(map(operator.mul, planes, cells))
        self.readout = layers.Linear(count, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def init_from_data(
        self, images: Float[Array, "images height width channels"], key: PRNGKeyArray
    ) -> "Neocognitron":
        """Returns the network after `self_organize` on the first 3,000 images."""
        return self_organize(self, images[:_MAX_IMAGES], key)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """Returns "s1", "c1", "s2", "c2", "s3", "c3" and "logits"."""
        stages: OrderedDict[str, Array] = OrderedDict()
        u = activity(x).astype(self.dtype)
        for number in (1, 2, 3):
            s = stages[f"s{number}"] = getattr(self, f"s{number}")(u)
            u = stages[f"c{number}"] = getattr(self, f"c{number}")(s)
        stages["logits"] = self.readout(features(stages))
        return stages


def features(
    stages: Mapping[str, Float[Array, "batch height width planes"]],
) -> Float[Array, "batch features"]:
    """Returns the input of the readout: the cells of C1, C2 and C3.

    Args:
      stages: The result of `Neocognitron.stages`.

    Example:
      >>> cells = jnp.ones((1, 2, 2, 3))
      >>> features({"c1": cells, "c2": cells, "c3": cells}).shape
      (1, 36)
    """
    return jnp.concatenate([layers.flatten(stages[name]) for name in ("c1", "c2", "c3")], 1)


def activity(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """Returns the input layer U0: each image scaled to [0, 1]; constant images become 0.

    Args:
      x: Normalized images.

    Example:
      >>> activity(jnp.array([-1.0, 1.0, 3.0]).reshape(1, 1, 3, 1)).ravel()
      Array([0. , 0.5, 1. ], dtype=float32)
    """
    axes = (1, 2, 3)
    shifted = x - x.min(axes, keepdims=True)
    maximum = shifted.max(axes, keepdims=True)
    return shifted / jnp.where(maximum > 0, maximum, 1)


def s_cells(
    u: Float[Array, "batch height width channels"],
    a: Float[Array, "5 5 channels planes"],
    b: Float[Array, " planes"],
    c: Float[Array, "5 5 channels"],
    *,
    selectivity: float,
) -> Float[Array, "batch height width planes"]:
    """Returns the outputs of S-cells, which have divisive inhibition (Fukushima 1980, section 2).

    r max(0, (1 + sum a u) / (1 + 2r / (1 + r) b v) - 1), where v is the output of `v_cells`.

    Args:
      u: Non-negative outputs of the layer before, padded with zeros.
      a: Excitatory weights of each plane.
      b: Inhibitory weight of each plane.
      c: Weights of the V-cells.
      selectivity: Selectivity r.
    """
    strength = 2 * selectivity / (1 + selectivity) * b.astype(u.dtype)
    inhibition = strength * v_cells(u, c)
    excitation = _correlate(u, a.astype(u.dtype))
    return selectivity * nnx.relu((1 + excitation) / (1 + inhibition) - 1)


def v_cells(
    u: Float[Array, "batch height width channels"], c: Float[Array, "5 5 channels"]
) -> Float[Array, "batch height width 1"]:
    """Returns the outputs of the inhibitory V-cells, the weighted root mean square of the inputs.

    Args:
      u: Inputs of the S-cells.
      c: Weights, which sum to 1 and decay with the distance from the center.
    """
    return jnp.sqrt(_correlate(jnp.square(u), c[..., None].astype(u.dtype)))


def c_cells(
    s: Float[Array, "batch height width planes"],
    d: Float[Array, "window_height window_width"],
    *,
    step: int,
    padding: str,
) -> Float[Array, "batch out_height out_width planes"]:
    """Returns the outputs of C-cells, each of which reads one plane (Fukushima 1980, section 2).

    psi((1 + sum d s) / (1 + v) - 1), where v is the mean over all planes of sum d s, and
    psi(x) = max(0, x) / (alpha + max(0, x)).

    Args:
      s: Outputs of the S-cells.
      d: Weights, which decay with the distance from the center.
      step: Stride.
      padding: "SAME" or "VALID".
    """
    planes = s.shape[-1]
    kernel = jnp.tile(d[..., None, None].astype(s.dtype), planes)
    sums = _correlate(s, kernel, step, padding, groups=planes)
    driven = nnx.relu((1 + sums) / (1 + sums.mean(-1, keepdims=True)) - 1)
    return driven / (_SATURATION + driven)


def representatives(
    s: Float[Array, "height width planes"], *, column: int
) -> tuple[Int[Array, " planes"], Int[Array, " planes"], Bool[Array, " planes"]]:
    """Finds the cell of each plane that learns (Fukushima 1980, section 3).

    The largest output of each S-column is a candidate, and the largest candidate of a plane is its
    representative. Of equal outputs, the first is taken.

    Args:
      s: Outputs of the S-cells for one image.
      column: Width of an S-column.

    Returns:
      Row and column of the representative by plane, and whether the plane has one.
    """
    height, width, planes = s.shape
    rows, columns = (_column_positions(size, column) for size in (height, width))
    cells = s[rows[:, None, :, None], columns[None, :, None, :]]
    across = cells.shape[3]
    cells = cells.reshape(len(rows) * len(columns), -1)
    best = cells.argmax(1)
    position, plane = best // planes, best % planes
    index = jnp.arange(len(cells))
    row = jnp.asarray(rows)[index // len(columns), position // across]
    col = jnp.asarray(columns)[index % len(columns), position % across]
    outputs = jnp.where(plane[:, None] == jnp.arange(planes), cells.max(1)[:, None], 0)
    first = outputs.argmax(0)
    return row[first], col[first], outputs.max(0) > 0


def reinforce(
    a: Float[Array, "5 5 channels planes"],
    b: Float[Array, " planes"],
    c: Float[Array, "5 5 channels"],
    u: Float[Array, "height width channels"],
    *,
    selectivity: float,
    column: int,
) -> tuple[Float[Array, "5 5 channels planes"], Float[Array, " planes"]]:
    """Updates the weights of one layer by one image (Fukushima 1980, section 3).

    A plane with its representative at position n learns a += q c(v) u(n + v) and b += q/2 v(n);
    planes without one do not change.

    Args:
      a: Excitatory weights.
      b: Inhibitory weights.
      c: Weights of the V-cells.
      u: Input of the layer.
      selectivity: Selectivity r.
      column: Width of an S-column.

    Returns:
      The updated weights a and b.
    """
    s = s_cells(u[None], a, b, c, selectivity=selectivity)[0]
    rows, columns, found = representatives(s, column=column)
    height, width, channels = (*_FIELD, u.shape[-1])
    padded = jnp.pad(u, ((height // 2, height // 2), (width // 2, width // 2), (0, 0)))

    def read(row: Array, column: Array) -> Array:
        return lax.dynamic_slice(padded, (row, column, 0), (height, width, channels))

    inputs = jax.vmap(read, out_axes=-1)(rows, columns)
    inhibition = v_cells(u[None], c)[0, rows, columns, 0]
    rates = _RATE * found
    return a + rates * c[..., None] * inputs, b + rates / 2 * inhibition


def self_organize(
    model: Neocognitron,
    images: Float[AnyArray, "images height width channels"],
    key: PRNGKeyArray,
) -> Neocognitron:
    """Trains the S-layers one after the other, without labels.

    Each layer is trained on every image once, in random order. The computation is in float32, and
    holds the activities of one C-layer for all images (19 kB per image of 28x28 in C1).

    Args:
      model: The network, which is not changed.
      images: Normalized images.
      key: PRNG key of the orders.

    Returns:
      A copy of `model` with learned S-cells and an unchanged readout.
    """
    graphdef, learned, rest = nnx.split(model, Learned, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, _self_organized(graphdef, learned, rest, images, key), rest)


@partial(jax.jit, static_argnums=0)
def _self_organized(
    graphdef: nnx.GraphDef[Neocognitron],
    learned: nnx.State[Any, Any],
    rest: nnx.State[Any, Any],
    images: Float[AnyArray, "images height width channels"],
    key: PRNGKeyArray,
) -> nnx.State[Any, Any]:
    model = nnx.merge(graphdef, learned, rest)
    u = activity(jnp.asarray(images, jnp.float32))
    for number, order in enumerate(jax.random.split(key, 3), 1):
        layer, pool = (getattr(model, f"{kind}{number}") for kind in "sc")
        layer.a[...], layer.b[...] = _learn(layer, jax.random.permutation(order, u))
        u = lax.map(partial(_c_layer, layer, pool), u, batch_size=_BATCH_SIZE)
    return nnx.state(model, Learned)


def _learn(
    layer: SLayer, inputs: Float[Array, "images height width channels"]
) -> tuple[Float[Array, "5 5 channels planes"], Float[Array, " planes"]]:
    rule = partial(reinforce, selectivity=layer.selectivity, column=layer.column)

    def step(weights: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], None]:
        return rule(*weights, layer.c[...], u), None

    return lax.scan(step, (layer.a[...], layer.b[...]), inputs)[0]


def _c_layer(
    layer: SLayer, pool: CLayer, u: Float[Array, "height width channels"]
) -> Float[Array, "out_height out_width planes"]:
    return pool(layer(u[None]))[0]


def _correlate(
    u: Array, kernel: Array, step: int = 1, padding: str = "SAME", groups: int = 1
) -> Array:
    # XLA's own convolution has exact zeros where there is no activity; products in the frequency
    # domain do not. Large weights and the square root would magnify small differences.
    highest = lax.Precision.HIGHEST
    return ops.conv2d(u, kernel, (step, step), padding, precision=highest, groups=groups)


def _decay(window: tuple[int, int], factor: float) -> np.ndarray:
    """`factor` to the power of the distance from the center of a window."""
    down, right = (np.arange(size) - (size - 1) / 2 for size in window)
    return factor ** np.hypot(down[:, None], right)


def _column_positions(size: int, column: int) -> np.ndarray:
    """Positions of each S-column along one axis, [columns, positions]."""
    width = min(column, size)
    starts = [*range(0, size - width, _COLUMN_STEP), size - width]
    return np.array(starts)[:, None] + np.arange(width)


def _check(height: int, width: int, *, planes: Sequence[int], selectivity: Sequence[float]) -> None:
    if min(height, width) < _MIN_SIZE:
        raise InputError(
            f"the neocognitron needs images of at least {_MIN_SIZE}x{_MIN_SIZE}, "
            f"not {height}x{width}"
        )
    for name, values in (("planes", planes), ("selectivity", selectivity)):
        if len(values) != 3 or min(values) <= 0:
            raise InputError(
                f"the neocognitron's {name} must be three positive numbers, one per S-layer, "
                f"not {values!r}"
            )
