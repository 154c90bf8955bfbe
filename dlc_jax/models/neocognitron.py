"""The neocognitron: what convolutional networks descend from (Fukushima 1980).

K. Fukushima, "Neocognitron: A Self-organizing Neural Network Model for a Mechanism of Pattern
Recognition Unaffected by Shift in Position", Biological Cybernetics 36, 193-202. New in it:
cells in planes that share their weights, so that each plane finds one feature wherever it is;
layers of such S-cells taking turns with layers of C-cells, which pool over neighbouring places;
and a rule by which the S-cells' weights organise themselves from unlabelled images.

What follows the paper: the seven layers U0, S1, C1, S2, C2, S3, C3, S-cells that read 5x5 places
and C3 with one cell a plane; the equations of S-cells, C-cells and the inhibitory cells beside
them; and the rule. In each S-column (the cells of all planes around one place) the cell with the
largest output becomes a candidate; of a plane's candidates the largest becomes its
representative; and only a representative's input is learned, for its whole plane. (Fukushima's
later papers call representatives "seed cells", and preset S1. Here it organises itself too.)

What is ours:

- Images are 28x28 digits and not 16x16; maps are 28, 14 and 7 cells wide.
- Each image is first scaled to run from 0 to 1, since these cells know no negative activity.
- 24, 48 and 128 planes; the paper has 24 in every layer, and its section on results expects
  more planes to be needed for more patterns.
- Selectivities 2, 1.5 and 0.8 (the paper's are 4, 1.5 and 1.5), one rate of reinforcement for
  all layers, and all other constants below.
- Layers organise one after the other, each seeing every image once.
- The readout, a linear layer on all cells of C1, C2 and C3, which learns from labels by
  gradients. The paper has none: there each cell of C3 comes to stand for one pattern.

With 3,000 digits of `mnist-5k` seen without labels, the same linear readout errs on the 1,000
test digits (in %, means over three runs of `examples/neocognitron.py`):

| labelled digits | pixels | C1 | C2 | C3 | all three |
|---|---|---|---|---|---|
| 100 | 26.9 | 12.1 | 11.2 | 18.6 | 11.1 |
| 500 | 15.5 | 5.6 | 5.8 | 12.5 | 5.4 |
| 1,000 | 12.5 | 4.4 | 4.3 | 10.3 | 4.1 |

So most of what helps is in C1 and C2; C3, which no longer tells where things are, is somewhat
better than pixels. Planes and selectivities were chosen on further training digits. There, from
500 labelled digits, C3 alone erred on 10.8 %, on 24.4 % with the paper's selectivities, and on
20.6 % with 24 planes in every layer and selectivities of 2, 1 and 0.8; pixels erred on about
15 %. On all three layers it made little difference: 4.0, 4.5 and 4.1 %.
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

_FIELD = (5, 5)  # places that an S-cell reads
_FIELD_FALLOFF = 0.9  # of c, by which V-cells and the rule weigh these places, for each place
_POOL = (5, 5)  # places that a cell of C1 or C2 reads
_POOL_FALLOFF = 0.8  # of d, by which C-cells weigh them
_POOL_STRENGTH = 0.25  # d at the centre
_SATURATION = 0.5  # what a C-cell is driven by when its output is one half
_COLUMNS = (5, 5, 3)  # widths of the S-columns of S1, S2 and S3, in places
_COLUMN_STEP = 3  # places between two S-columns; those of S1 and S2 overlap
_RATE = 100.0  # how strongly a representative's input is reinforced
_FIRST_WEIGHTS = 1e-3  # the largest first weight, as a part of c
_SMALLEST = 16
_AT_ONCE = 100  # images whose activities are computed together while layers organise

# More images than this change little.
_ENOUGH = 3000


class Learned(Buffer):
    """Weights that `self_organise` learns: saved with a network, and unknown to gradients."""


class SLayer(nnx.Module):
    """Planes of S-cells before learning: without inhibition, and with small random weights.

    Args:
      channels: planes of the layer that it reads.
      planes: its own planes.
      selectivity: r; once they have learned, cells respond to inputs whose cosine with what
        they learned is over r / (1 + r).
      column: width of an S-column in places.
      rngs: where the initial weights come from.
    """

    def __init__(
        self, channels: int, planes: int, *, selectivity: float, column: int, rngs: nnx.Rngs
    ) -> None:
        falling = np.repeat(_falling(_FIELD, _FIELD_FALLOFF)[..., None], channels, -1)
        self.c = Buffer(jnp.asarray(falling / falling.sum(), jnp.float32))
        first = jax.random.uniform(rngs.params(), (*_FIELD, channels, planes), jnp.float32)
        self.a = Learned(_FIRST_WEIGHTS * self.c[..., None] * first)
        self.b = Learned(jnp.zeros(planes, jnp.float32))
        self.selectivity = selectivity
        self.column = column

    def __call__(
        self, u: Float[Array, "batch height width channels"]
    ) -> Float[Array, "batch height width planes"]:
        """The S-cells' outputs."""
        weights = self.a[...], self.b[...], self.c[...]
        return s_cells(u, *weights, selectivity=self.selectivity)


class CLayer(nnx.Module):
    """Planes of C-cells, each reading the plane of S-cells before it.

    Args:
      window: height and width of what a cell reads, in places.
      step: places between two cells.
      padding: "SAME" or "VALID".
    """

    def __init__(self, window: tuple[int, int], *, step: int, padding: str) -> None:
        falling = _POOL_STRENGTH * _falling(window, _POOL_FALLOFF)
        self.d = Buffer(jnp.asarray(falling, jnp.float32))
        self.step = step
        self.padding = padding

    def __call__(
        self, s: Float[Array, "batch height width planes"]
    ) -> Float[Array, "batch out_height out_width planes"]:
        """The C-cells' outputs."""
        return c_cells(s, self.d[...], step=self.step, padding=self.padding)


class Neocognitron(Network):
    """Three pairs of S- and C-layers, and a linear readout on the C-layers.

    Only the readout's weights are `nnx.Param`, so that `dlc_jax.training` trains it alone.
    The S-cells' are `Learned`, by `self_organise`; before that they are small and random.

    Args:
      image_shape: height, width and channels of the images; the paper's are 16x16x1.
      num_classes: the number of logits.
      rngs: where the initial weights come from.
      dtype: what it computes in.
      planes: cell planes of each S-layer, and of the C-layer after it.
      selectivity: r of each S-layer: cells respond to inputs whose cosine with what they
        learned is over r / (1 + r).

    Raises:
      InputError: the images are under 16x16, or planes or selectivity are not three positive
        numbers.
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
        self.c3 = CLayer(quarters, step=1, padding="VALID")  # one cell reads all of its plane
        cells = [math.prod(size) for size in (halves, quarters, (1, 1))]
        count = sum(map(operator.mul, planes, cells))
        self.readout = layers.Linear(count, num_classes, dtype=dtype, rngs=rngs)
        self.dtype = dtype

    def init_from_data(
        self, images: Float[Array, "images height width channels"], key: PRNGKeyArray
    ) -> "Neocognitron":
        """The network after `self_organise` on the first 3,000 images."""
        return self_organise(self, images[:_ENOUGH], key)

    def stages(self, x: Float[Array, "batch height width channels"]) -> OrderedDict[str, Array]:
        """S1, C1, S2, C2, S3 and C3 ("s1", "c1", ...), and the logits."""
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
    """What the readout reads: the cells of C1, C2 and C3.

    Args:
      stages: what `Neocognitron.stages` returned.
    """
    return jnp.concatenate([layers.flatten(stages[name]) for name in ("c1", "c2", "c3")], 1)


def activity(
    x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch height width channels"]:
    """The input layer U0: each image moved and scaled to run from 0 to 1; 0 if it is blank."""
    axes = (1, 2, 3)
    raised = x - x.min(axes, keepdims=True)
    largest = raised.max(axes, keepdims=True)
    return raised / jnp.where(largest > 0, largest, 1)


def s_cells(
    u: Float[Array, "batch height width channels"],
    a: Float[Array, "5 5 channels planes"],
    b: Float[Array, " planes"],
    c: Float[Array, "5 5 channels"],
    *,
    selectivity: float,
) -> Float[Array, "batch height width planes"]:
    """The outputs of S-cells, which are inhibited by division (Fukushima 1980, section 2).

    r max(0, (1 + sum a u) / (1 + 2r / (1 + r) b v) - 1), v the output of `v_cells`.

    Args:
      u: what the C-cells (or the input layer) before them put out; non-negative. Beyond its
        borders there is nothing.
      a: excitatory weights, the same all over a plane.
      b: the inhibitory weight, likewise.
      c: the weights of the V-cells.
      selectivity: r.
    """
    strength = 2 * selectivity / (1 + selectivity) * b.astype(u.dtype)
    inhibition = strength * v_cells(u, c)
    excitation = _correlate(u, a.astype(u.dtype))
    return selectivity * nnx.relu((1 + excitation) / (1 + inhibition) - 1)


def v_cells(
    u: Float[Array, "batch height width channels"], c: Float[Array, "5 5 channels"]
) -> Float[Array, "batch height width 1"]:
    """The inhibitory cells beside S-cells: the root of the weighted mean square of their inputs.

    Args:
      u: what the S-cells there read.
      c: weights that sum to 1, and fall off with the distance from the centre.
    """
    return jnp.sqrt(_correlate(jnp.square(u), c[..., None].astype(u.dtype)))


def c_cells(
    s: Float[Array, "batch height width planes"],
    d: Float[Array, "window_height window_width"],
    *,
    step: int,
    padding: str,
) -> Float[Array, "batch out_height out_width planes"]:
    """The outputs of C-cells, each reading one plane around a place (Fukushima 1980, section 2).

    psi((1 + sum d s) / (1 + v) - 1), where v is the mean over all planes of sum d s, and
    psi(x) = max(0, x) / (alpha + max(0, x)).

    Args:
      s: what the S-cells before them put out.
      d: weights that fall off with the distance from the centre.
      step: places between two cells.
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
    """Which cell of each plane is to learn (Fukushima 1980, section 3).

    The largest output of each S-column is a candidate, and a plane's largest candidate its
    representative. Among equals the first is taken.

    Args:
      s: the S-cells' outputs for one image.
      column: width of an S-column in places.

    Returns:
      Its row and its column by plane, and whether the plane has a representative at all.
    """
    height, width, planes = s.shape
    rows, columns = (_in_columns(size, column) for size in (height, width))
    cells = s[rows[:, None, :, None], columns[None, :, None, :]]
    across = cells.shape[3]
    cells = cells.reshape(len(rows) * len(columns), -1)
    best = cells.argmax(1)
    place, plane = best // planes, best % planes
    which = jnp.arange(len(cells))
    row = jnp.asarray(rows)[which // len(columns), place // across]
    col = jnp.asarray(columns)[which % len(columns), place % across]
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
    """What one layer learns from one image (Fukushima 1980, section 3).

    A plane whose representative is at place n learns a += q c(v) u(n + v) and
    b += q/2 v(n); the others stay as they are.

    Args:
      a: the planes' excitatory weights.
      b: their inhibitory weights.
      c: the weights of the V-cells.
      u: the activity that the layer reads.
      selectivity: r.
      column: width of an S-column in places.

    Returns:
      The weights afterwards.
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


def self_organise(
    model: Neocognitron,
    images: Float[AnyArray, "images height width channels"],
    key: PRNGKeyArray,
) -> Neocognitron:
    """The network after its S-layers have organised themselves, one after the other.

    Each layer sees every image once, in an order of its own. It computes in float32, and
    keeps all images' activities of one C-layer (19 kB an image of 28x28 in C1).

    Args:
      model: the network; it is not changed.
      images: normalised images, without labels.
      key: decides on the orders.

    Returns:
      A copy of `model` with learned S-cells, and the readout that it had.
    """
    graphdef, learned, rest = nnx.split(model, Learned, ...)  # type: ignore[misc]
    return nnx.merge(graphdef, _organised(graphdef, learned, rest, images, key), rest)


@partial(jax.jit, static_argnums=0)
def _organised(
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
        u = lax.map(partial(_c_layer, layer, pool), u, batch_size=_AT_ONCE)
    return nnx.state(model, Learned)


def _learn(
    layer: SLayer, inputs: Float[Array, "images height width channels"]
) -> tuple[Float[Array, "5 5 channels planes"], Float[Array, " planes"]]:
    rule = partial(reinforce, selectivity=layer.selectivity, column=layer.column)

    def see(weights: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], None]:
        return rule(*weights, layer.c[...], u), None

    return lax.scan(see, (layer.a[...], layer.b[...]), inputs)[0]


def _c_layer(
    layer: SLayer, pool: CLayer, u: Float[Array, "height width channels"]
) -> Float[Array, "out_height out_width planes"]:
    return pool(layer(u[None]))[0]


def _correlate(
    u: Array, kernel: Array, step: int = 1, padding: str = "SAME", groups: int = 1
) -> Array:
    # With exact zeros where there is no activity, which products in the frequency domain do
    # not give: learned weights are large, and a square root magnifies what is near zero.
    highest = lax.Precision.HIGHEST
    return ops.conv2d(u, kernel, (step, step), padding, precision=highest, groups=groups)


def _falling(window: tuple[int, int], factor: float) -> np.ndarray:
    """`factor` to the power of the distance from a window's centre."""
    down, right = (np.arange(size) - (size - 1) / 2 for size in window)
    return factor ** np.hypot(down[:, None], right)


def _in_columns(size: int, column: int) -> np.ndarray:
    """The places of each S-column along one axis of a map, [columns, places]."""
    width = min(column, size)
    firsts = [*range(0, size - width, _COLUMN_STEP), size - width]
    return np.array(firsts)[:, None] + np.arange(width)


def _check(height: int, width: int, *, planes: Sequence[int], selectivity: Sequence[float]) -> None:
    if min(height, width) < _SMALLEST:
        raise InputError(
            f"the neocognitron needs images of at least {_SMALLEST}x{_SMALLEST}, "
            f"not {height}x{width}"
        )
    for name, values in (("planes", planes), ("selectivity", selectivity)):
        if len(values) != 3 or min(values) <= 0:
            raise InputError(
                f"the neocognitron's {name} must be three positive numbers, one an S-layer, "
                f"not {values!r}"
            )
