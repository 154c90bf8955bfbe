"""Which algorithm computes a part of a convolution: its forward pass or one of its gradients.

On CPUs it is the one that was fastest for similar shapes, by the table in `timings.json`:
the time of each algorithm relative to XLA's own, measured by `benchmarks/tune_operations.py`. The
table has a section for each generation of XLA, and for a device that is alone and devices that
share a batch.
"""

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dlc_jax.ops import (
    fourier,
    im2col,
    im2col_gpu,
    phases,
    rows,
    winograd,
    winograd_strided,
    xla,
)
from dlc_jax.ops.differentiation import Formulation
from dlc_jax.ops.im2col import out_shape
from dlc_jax.ops.space_to_depth import SpaceToDepth
from dlc_jax.ops.windows import Pads, varying_axes

# "gradients" are both gradients at once, which some algorithms compute faster than each alone.
Part = Literal["convolve", "input_gradient", "kernel_gradient", "gradients"]
PARTS: tuple[Part, ...] = ("convolve", "input_gradient", "kernel_gradient", "gradients")

# The algorithms on CPUs. Each has a function for some of the parts.
ALGORITHMS: dict[str, Any] = {
    "xla": xla,
    "phases": phases,
    "im2col": im2col,
    "rows": rows,
    "winograd": winograd,
    "winograd_strided": winograd_strided,
    "fourier": fourier,
    "space_to_depth_xla": SpaceToDepth(xla),
    "space_to_depth_rows": SpaceToDepth(rows),
    "space_to_depth_winograd": SpaceToDepth(winograd),
}

# Another algorithm than XLA's own is used if it is expected to take at most this fraction of
# its time.
_MAX_RATIO = 0.93
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


def fastest(part: Part, shapes: Shapes, *, shared: bool) -> str:
    """The name of the algorithm that is expected to be the fastest on a CPU.

    Args:
      part: The part of the convolution.
      shapes: Its shapes.
      shared: Whether several devices share the batch.
    """
    return _fastest(section(shared), part, shapes)[0]


def fastest_for_gradients(shapes: Shapes, *, shared: bool) -> tuple[str, str]:
    """The names of the fastest algorithms for the gradients of the images and of the kernel.

    Args:
      shapes: The shapes of the convolution.
      shared: Whether several devices share the batch.
    """
    name = section(shared)
    of_images, images = _fastest(name, "input_gradient", shapes)
    of_kernel, kernel = _fastest(name, "kernel_gradient", shapes)
    both, together = _fastest(name, "gradients", shapes)
    table = _timings()[name]
    share = _mean_of_nearest(table.distances(shapes), table.input_share)
    apart = share * images + (1 - share) * kernel
    return (both, both) if together < apart else (of_images, of_kernel)


@cache
def _fastest(name: str, part: Part, shapes: Shapes) -> tuple[str, float]:
    """The fastest algorithm, and its expected time relative to XLA's."""
    table = _timings()[name]
    distances = table.distances(shapes)
    expected = {
        algorithm: math.exp(_mean_of_nearest(distances, table.ratios[part][algorithm]))
        for algorithm in applicable(part, shapes)
        if algorithm in table.ratios[part]
    }
    best = min(expected, key=lambda algorithm: expected[algorithm], default="xla")
    return (best, expected[best]) if expected.get(best, 1.0) <= _MAX_RATIO else ("xla", 1.0)


def _mean_of_nearest(distances: np.ndarray, values: np.ndarray) -> float:
    """The mean of a value at the nearest shapes for which it was measured."""
    measured = np.flatnonzero(~np.isnan(values))
    nearest = measured[np.argsort(distances[measured])[:_NEIGHBORS]]
    weights = 1 / (0.1 + distances[nearest])
    return float((weights * values[nearest]).sum() / weights.sum())


def section(shared: bool) -> str:
    """The name of the section of the table for the installed version of JAX."""
    version = tuple(int(number) for number in jax.__version__.split(".")[:2])
    # Since JAX 0.11, XLA's forward convolutions are much faster.
    generation = "0.12" if version >= (0, 11) else "0.10"
    return f"jax {generation}, {'several devices' if shared else 'one device'}"


class _Table(NamedTuple):
    """A section of the table.

    Attributes:
      points: Sizes of the measured shapes, see `Shapes.logarithms`.
      ratios: For each part and algorithm, logarithms of its time relative to XLA's.
      input_share: The share of the images' gradient in XLA's time for both gradients.
    """

    points: np.ndarray
    ratios: dict[str, dict[str, np.ndarray]]
    input_share: np.ndarray

    def distances(self, shapes: Shapes) -> np.ndarray:
        return np.abs(self.points - shapes.logarithms).sum(1)


@cache
def _timings() -> dict[str, _Table]:
    """The sections of the table."""
    sections = json.loads(Path(__file__).with_name("timings.json").read_text())
    return {name: _read_section(rows) for name, rows in sections.items()}


def _read_section(rows: dict[str, Any]) -> _Table:
    ratios = {
        part: {
            name: np.log([row[part].get(name, math.nan) for row in rows.values()])
            for name in ALGORITHMS
            if any(name in row[part] for row in rows.values())
        }
        for part in PARTS
    }
    points = np.stack([from_sizes(name).logarithms for name in rows])
    return _Table(points, ratios, np.array([row["input_share"] for row in rows.values()]))


def from_sizes(name: str) -> Shapes:
    """Shapes from a name such as `64x32x32x3 to 64, kernel 3, stride 1`; same padding."""
    images, rest = name.split(" to ")
    batch, height, width, channels = map(int, images.split("x"))
    features, kernel, stride = (int(word.split()[-1]) for word in rest.split(","))
    before = (kernel - 1) // 2
    return Shapes(
        (batch, height, width, channels),
        (kernel, kernel, channels, features),
        (stride, stride),
        ((before, before), (before, before)),
    )


def on_cpu() -> Formulation:
    """The fastest algorithm of each part on a CPU."""

    def choose(part: Part, like: Array, shapes: Shapes, jointly_mapped: bool) -> Any:
        del jointly_mapped
        shared = bool(varying_axes(like))
        if part == "gradients":
            names = fastest_for_gradients(shapes, shared=shared)
            return tuple(ALGORITHMS[name] for name in names)
        return ALGORITHMS[fastest(part, shapes, shared=shared)]

    return _formulation(choose)


def on_gpu() -> Formulation:
    """The fastest algorithm on a GPU."""

    def choose(part: Part, like: Array, shapes: Shapes, jointly_mapped: bool) -> Any:
        itemsize = jnp.dtype(like.dtype).itemsize
        fits = im2col_gpu.is_fastest(*shapes, itemsize=itemsize, jointly_mapped=jointly_mapped)
        module = im2col_gpu if fits else xla
        return (module, module) if part == "gradients" else module

    return _formulation(choose)


def always_xla() -> Formulation:
    """XLA's own algorithms."""

    def choose(part: Part, like: Array, shapes: Shapes, jointly_mapped: bool) -> Any:
        del like, shapes, jointly_mapped
        return (xla, xla) if part == "gradients" else xla

    return _formulation(choose)


def _formulation(choose: Callable[[Part, Array, Shapes, bool], Any]) -> Formulation:
    """A formulation whose parts are computed by the modules that `choose` returns.

    For "gradients" these are two, of the gradient of the images and of that of the kernel.
    """

    def chosen(
        part: Part,
        like: Array,
        x_shape: Any,
        kernel_shape: Any,
        strides: Any,
        pads: Any,
        mapped: bool,
    ) -> Any:
        shapes = Shapes(tuple(x_shape), tuple(kernel_shape), tuple(strides), pads)
        return choose(part, like, shapes, mapped)

    def convolve(x: Array, kernel: Array, strides: Any, pads: Pads, jointly_mapped: bool) -> Array:
        module = chosen("convolve", x, x.shape, kernel.shape, strides, pads, jointly_mapped)
        return module.convolve(x, kernel, strides, pads)

    def input_gradient(
        kernel: Array, grad: Array, x_shape: Any, strides: Any, pads: Pads, jointly_mapped: bool
    ) -> Array:
        module = chosen(
            "input_gradient", grad, x_shape, kernel.shape, strides, pads, jointly_mapped
        )
        return module.input_gradient(kernel, grad, x_shape, strides, pads)

    def kernel_gradient(
        x: Array, grad: Array, kernel_shape: Any, strides: Any, pads: Pads, jointly_mapped: bool
    ) -> Array:
        module = chosen(
            "kernel_gradient", grad, x.shape, kernel_shape, strides, pads, jointly_mapped
        )
        return module.kernel_gradient(x, grad, kernel_shape, strides, pads)

    def gradients(
        x: Array, kernel: Array, grad: Array, strides: Any, pads: Pads, jointly_mapped: bool
    ) -> tuple[Array, Array]:
        of_images, of_kernel = chosen(
            "gradients", grad, x.shape, kernel.shape, strides, pads, jointly_mapped
        )
        if of_images is of_kernel and hasattr(of_images, "gradients"):
            both: tuple[Array, Array] = of_images.gradients(x, kernel, grad, strides, pads)
            return both
        return (
            of_images.input_gradient(kernel, grad, x.shape, strides, pads),
            of_kernel.kernel_gradient(x, grad, kernel.shape, strides, pads),
        )

    return Formulation(convolve, input_gradient, kernel_gradient, gradients)
