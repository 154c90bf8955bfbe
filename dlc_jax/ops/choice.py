"""Which algorithm computes a part of a convolution: its forward pass or one of its gradients.

On CPUs it is the one that was fastest for similar shapes, by the table in `timings.json`:
the time of each algorithm relative to XLA's own, measured by `benchmarks/tune_operations.py` with
JAX 0.12. The table has sections for a device that is alone and devices that share a batch, and for
computers with and without oneDNN.
"""

import json
import math
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from dlc_jax.ops import fourier, im2col, im2col_gpu, onednn, phases, space_to_depth, winograd, xla
from dlc_jax.ops.differentiation import Formulation
from dlc_jax.ops.windows import Pads, out_shape, varying_axes

Part = Literal["convolve", "input_gradient", "kernel_gradient"]
PARTS: tuple[Part, ...] = ("convolve", "input_gradient", "kernel_gradient")

# The algorithms on CPUs. Each has a function for some of the parts.
ALGORITHMS: dict[str, Any] = {
    "xla": xla,
    "phases": phases,
    "im2col": im2col,
    "winograd": winograd,
    "onednn": onednn,
    "fourier": fourier,
    "space_to_depth": space_to_depth,
}

# The parts of this algorithm share transformed images, kernels and gradients.
SHARING: tuple[str, ...] = ("fourier",)

# Another algorithm than XLA's own is used if it is expected to take at most this fraction of
# its time.
_MAX_RATIO = 0.93
# With few groups, a convolution per group is faster than XLA's.
_MAX_SEPARATE_GROUPS = 4
# Number of measured shapes that are averaged.
_NEIGHBORS = 3


class Shapes(NamedTuple):
    """The shapes of a convolution.

    Attributes:
      images: Shape of the images, NHWC.
      kernel: Shape of the kernel, HWIO.
      strides: Strides along height and width.
      pads: Padding of height and width.
    """

    images: tuple[int, ...]
    kernel: tuple[int, ...]
    strides: tuple[int, int]
    pads: Pads

    @property
    def logarithms(self) -> np.ndarray:
        """The sizes on which speed depends, on a logarithmic scale, weighted by importance."""
        batch, height, width, features = out_shape(*self)
        kernel_height, kernel_width, channels, _ = self.kernel
        sizes = [
            (0.5, batch * height * width),
            (0.5, height * width),
            (1.0, channels),
            (1.0, features),
            (2.0, kernel_height),
            (2.0, kernel_width),
            (4.0, math.prod(self.strides)),
        ]
        return np.array([weight * math.log2(size) for weight, size in sizes])


def applicable(part: Part, shapes: Shapes) -> list[str]:
    """The names of the algorithms that can compute a part of a convolution."""
    return [
        name
        for name, module in ALGORITHMS.items()
        if hasattr(module, part) and (not hasattr(module, "supports") or module.supports(*shapes))
    ]


def fastest(part: Part, shapes: Shapes, *, shared: bool, with_onednn: bool = True) -> str:
    """The name of the algorithm that is expected to be the fastest on a CPU.

    Gradients are never XLA's own, which are very slow in the body of a loop. Whether a program
    is one is not known here.

    Args:
      part: The part of the convolution.
      shapes: Its shapes.
      shared: Whether several devices share the batch, as in training. There, all parts are likely
        to be computed, so the time of all counts for algorithms whose parts share results.
      with_onednn: Whether oneDNN may be called, if it is available.
    """
    return _fastest(part, shapes, shared, with_onednn and onednn.is_available())


@cache
def _fastest(part: Part, shapes: Shapes, shared: bool, with_onednn: bool) -> str:
    table = _timings()[section(shared, with_onednn)]
    distances = table.distances(shapes)
    names = applicable(part, shapes)
    for algorithm, ratios in table.together.items() if shared else ():
        if algorithm in names and math.exp(_mean_of_nearest(distances, ratios)) <= _MAX_RATIO:
            return algorithm
    expected = {
        algorithm: math.exp(_mean_of_nearest(distances, table.ratios[part][algorithm]))
        for algorithm in names
        if algorithm in table.ratios[part]
    }
    if part == "convolve":
        expected["xla"] = _MAX_RATIO
    elif len(expected) > 1:
        expected.pop("phases", None)
    return min(expected, key=lambda algorithm: expected[algorithm], default="xla")


def _mean_of_nearest(distances: np.ndarray, values: np.ndarray) -> float:
    """The mean of a value at the nearest shapes for which it was measured."""
    measured = np.flatnonzero(~np.isnan(values))
    nearest = measured[np.argsort(distances[measured])[:_NEIGHBORS]]
    weights = 1 / (0.1 + distances[nearest])
    return float((weights * values[nearest]).sum() / weights.sum())


def section(shared: bool, with_onednn: bool) -> str:
    """The name of a section of the table."""
    devices = "several devices" if shared else "one device"
    return devices if with_onednn else f"{devices}, without oneDNN"


class _Table(NamedTuple):
    """A section of the table.

    Attributes:
      points: Sizes of the measured shapes, see `Shapes.logarithms`.
      ratios: For each part and algorithm, logarithms of its time relative to XLA's.
      together: For algorithms whose parts share intermediate results, logarithms of their time
        for all parts, relative to the fastest algorithm of each part.
    """

    points: np.ndarray
    ratios: dict[Part, dict[str, np.ndarray]]
    together: dict[str, np.ndarray]

    def distances(self, shapes: Shapes) -> np.ndarray:
        return np.abs(self.points - shapes.logarithms).sum(1)


@cache
def _timings() -> dict[str, _Table]:
    """The sections of the table."""
    sections = json.loads(Path(__file__).with_name("timings.json").read_text())
    return {name: _read_section(rows) for name, rows in sections.items()}


def _read_section(rows: dict[str, Any]) -> _Table:
    def logarithms(part: str) -> dict[str, np.ndarray]:
        measured = [row.get(part, {}) for row in rows.values()]
        return {
            name: np.log([times.get(name, math.nan) for times in measured])
            for name in ALGORITHMS
            if any(name in times for times in measured)
        }

    points = np.stack([from_sizes(name).logarithms for name in rows])
    ratios: dict[Part, dict[str, np.ndarray]] = {part: logarithms(part) for part in PARTS}
    return _Table(points, ratios, logarithms("together"))


def from_sizes(name: str) -> Shapes:
    """Shapes from a name such as `64x32x32x3 to 64, kernel 3, stride 1`.

    Images are padded so that stride 1 keeps the size, unless the name ends with ", valid".
    """
    images, rest = name.removesuffix(", valid").split(" to ")
    batch, height, width, channels = map(int, images.split("x"))
    features, kernel, stride = (int(word.split()[-1]) for word in rest.split(","))
    before = 0 if name.endswith(", valid") else (kernel - 1) // 2
    return Shapes(
        (batch, height, width, channels),
        (kernel, kernel, channels, features),
        (stride, stride),
        ((before, before), (before, before)),
    )


def on_cpu() -> Formulation:
    """The fastest algorithm of each part on a CPU."""

    def choose(part: Part, like: Array, shapes: Shapes, groups: int, jointly_mapped: bool) -> Any:
        with_onednn = like.dtype != jnp.float64 and onednn.is_available()
        if groups > 1:
            unsafe = part == "kernel_gradient" and not onednn.supports(*shapes)
            return onednn if with_onednn and not unsafe else _separate_or_xla(groups)
        del jointly_mapped
        shared = bool(varying_axes(like))
        return ALGORITHMS[fastest(part, shapes, shared=shared, with_onednn=with_onednn)]

    return _formulation(choose)


def on_gpu() -> Formulation:
    """The fastest algorithm on a GPU."""

    def choose(part: Part, like: Array, shapes: Shapes, groups: int, jointly_mapped: bool) -> Any:
        del part
        if groups > 1:
            return _separate_or_xla(groups)
        itemsize = jnp.dtype(like.dtype).itemsize
        fits = im2col_gpu.is_fastest(*shapes, itemsize=itemsize, jointly_mapped=jointly_mapped)
        return im2col_gpu if fits else xla

    return _formulation(choose)


def always_xla() -> Formulation:
    """XLA's own algorithms."""

    def choose(part: Part, like: Array, shapes: Shapes, groups: int, jointly_mapped: bool) -> Any:
        del part, like, shapes, groups, jointly_mapped
        return xla

    return _formulation(choose)


def _separate_or_xla(groups: int) -> Any:
    """None, for a convolution per group, if there are few groups."""
    return None if groups <= _MAX_SEPARATE_GROUPS else xla


def _formulation(choose: Callable[[Part, Array, Shapes, int, bool], Any]) -> Formulation:
    """A formulation whose parts are computed by the modules that `choose` returns.

    `choose` returns None if each group is to be computed by itself.
    """

    def convolve(
        x: Array, kernel: Array, strides: Any, pads: Pads, groups: int, jointly_mapped: bool
    ) -> Array:
        def in_groups(x: Array, kernel: Array, groups: int) -> Array:
            shapes = Shapes(x.shape, kernel.shape, tuple(strides), pads)
            module = choose("convolve", x, shapes, groups, jointly_mapped)
            if module is None:
                return _separately(partial(in_groups, groups=1), x, kernel, groups)
            return module.convolve(x, kernel, strides, pads, **_groups(groups))

        return in_groups(x, kernel, groups)

    def input_gradient(
        kernel: Array,
        grad: Array,
        x_shape: Any,
        strides: Any,
        pads: Pads,
        groups: int,
        jointly_mapped: bool,
    ) -> Array:
        def in_groups(kernel: Array, grad: Array, groups: int) -> Array:
            shape = *x_shape[:3], kernel.shape[2] * groups
            shapes = Shapes(shape, kernel.shape, tuple(strides), pads)
            module = choose("input_gradient", grad, shapes, groups, jointly_mapped)
            if module is None:
                return _separately(partial(in_groups, groups=1), kernel, grad, groups)
            return module.input_gradient(kernel, grad, shape, strides, pads, **_groups(groups))

        return in_groups(kernel, grad, groups)

    def kernel_gradient(
        x: Array,
        grad: Array,
        kernel_shape: Any,
        strides: Any,
        pads: Pads,
        groups: int,
        jointly_mapped: bool,
    ) -> Array:
        def in_groups(x: Array, grad: Array, groups: int) -> Array:
            shape = *kernel_shape[:3], grad.shape[3]
            shapes = Shapes(x.shape, shape, tuple(strides), pads)
            module = choose("kernel_gradient", grad, shapes, groups, jointly_mapped)
            if module is None:
                return _separately(partial(in_groups, groups=1), x, grad, groups)
            return module.kernel_gradient(x, grad, shape, strides, pads, **_groups(groups))

        return in_groups(x, grad, groups)

    return Formulation(convolve, input_gradient, kernel_gradient)


def _groups(groups: int) -> dict[str, int]:
    """The keyword that the modules take that compute several groups."""
    return {"groups": groups} if groups > 1 else {}


def _separately(
    function: Callable[[Array, Array], Array], a: Array, b: Array, groups: int
) -> Array:
    """Applies a function to each group of the last axis."""
    parts = zip(jnp.split(a, groups, 3), jnp.split(b, groups, 3), strict=True)
    return jnp.concatenate([function(*part) for part in parts], 3)
