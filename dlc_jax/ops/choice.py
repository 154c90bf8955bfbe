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
from types import ModuleType
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
from dlc_jax.ops.windows import Pads, varying_axes

Part = Literal["convolve", "input_gradient", "kernel_gradient"]
PARTS: tuple[Part, ...] = ("convolve", "input_gradient", "kernel_gradient")

# The algorithms on CPUs. Each module has a function for some of the parts.
ALGORITHMS: dict[str, ModuleType] = {
    "xla": xla,
    "phases": phases,
    "im2col": im2col,
    "rows": rows,
    "winograd": winograd,
    "winograd_strided": winograd_strided,
    "fourier": fourier,
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
    return _fastest(section(shared), part, shapes)


@cache
def _fastest(section_name: str, part: Part, shapes: Shapes) -> str:
    points, ratios = _timings()[section_name]
    distances = np.abs(points - shapes.logarithms).sum(1)
    names = applicable(part, shapes)
    expected = {
        name: _mean_of_nearest(distances, ratios[part].get(name)) for name in names if name != "xla"
    }
    best = min(expected, key=lambda name: expected[name], default="xla")
    return best if expected.get(best, math.inf) <= math.log(_MAX_RATIO) else "xla"


def _mean_of_nearest(distances: np.ndarray, logarithms: np.ndarray | None) -> float:
    """The mean logarithm of an algorithm's relative time at the nearest measured shapes."""
    if logarithms is None:
        return math.inf
    measured = np.flatnonzero(~np.isnan(logarithms))
    nearest = measured[np.argsort(distances[measured])[:_NEIGHBORS]]
    weights = 1 / (0.1 + distances[nearest])
    return float((weights * logarithms[nearest]).sum() / weights.sum())


def section(shared: bool) -> str:
    """The name of the section of the table for the installed version of JAX."""
    version = tuple(int(number) for number in jax.__version__.split(".")[:2])
    # Since JAX 0.11, XLA's forward convolutions are much faster.
    generation = "0.12" if version >= (0, 11) else "0.10"
    return f"jax {generation}, {'several devices' if shared else 'one device'}"


@cache
def _timings() -> dict[str, tuple[np.ndarray, dict[str, dict[str, np.ndarray]]]]:
    """For each section the measured shapes, and the logarithms of relative times."""
    sections = json.loads(Path(__file__).with_name("timings.json").read_text())
    found = {}
    for section, shapes in sections.items():
        points = np.stack([from_sizes(name).logarithms for name in shapes])
        ratios = {
            part: {
                name: np.log([row[part].get(name, math.nan) for row in shapes.values()])
                for name in ALGORITHMS
                if any(name in row[part] for row in shapes.values())
            }
            for part in PARTS
        }
        found[section] = points, ratios
    return found


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

    def choose(part: Part, like: Array, shapes: Shapes, jointly_mapped: bool) -> ModuleType:
        del jointly_mapped
        return ALGORITHMS[fastest(part, shapes, shared=bool(varying_axes(like)))]

    return _formulation(choose)


def on_gpu() -> Formulation:
    """The fastest algorithm on a GPU."""

    def choose(part: Part, like: Array, shapes: Shapes, jointly_mapped: bool) -> ModuleType:
        del part
        itemsize = jnp.dtype(like.dtype).itemsize
        fits = im2col_gpu.is_fastest(*shapes, itemsize=itemsize, jointly_mapped=jointly_mapped)
        return im2col_gpu if fits else xla

    return _formulation(choose)


def always_xla() -> Formulation:
    """XLA's own algorithms."""
    return _formulation(lambda part, like, shapes, jointly_mapped: xla)


def _formulation(choose: Callable[[Part, Array, Shapes, bool], Any]) -> Formulation:
    """A formulation whose parts are computed by the modules that `choose` returns."""

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
        modules = {
            chosen(part, grad, x.shape, kernel.shape, strides, pads, jointly_mapped)
            for part in PARTS[1:]
        }
        if len(modules) == 1 and hasattr(module := modules.pop(), "gradients"):
            return module.gradients(x, kernel, grad, strides, pads)
        window = {"strides": strides, "pads": pads, "jointly_mapped": jointly_mapped}
        return (
            input_gradient(kernel, grad, x.shape, **window),
            kernel_gradient(x, grad, kernel.shape, **window),
        )

    return Formulation(convolve, input_gradient, kernel_gradient, gradients)
