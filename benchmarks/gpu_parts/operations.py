"""Convolutions and poolings of dlc_jax and of XLA."""

import statistics
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax
from ops import OPERATIONS, Operation

from dlc_jax.ops import conv2d, max_pool
from gpu_parts.settings import Save, Settings, seconds_of

_ROUNDS = 7
# Repetitions in a loop on the device, as in training.
_REPETITIONS = 40


class Case(NamedTuple):
    """An operation with a batch size and a floating-point type."""

    operation: Operation
    batch: int
    dtype: str = "float32"

    @property
    def name(self) -> str:
        """Name, such as `conv3x3 32x32x64 to 64, batch 256, float32`."""
        return f"{self.operation.name}, batch {self.batch}, {self.dtype}"


CASES = [
    Case(Operation("lecture", 28, 1, 32, window=5), 100),
    Case(Operation("lecture", 8, 32, 64, window=5), 100),
    Case(Operation("lecture", 24, 32, 0, window=3, stride=3), 100),
    Case(Operation("lecture", 4, 64, 0, window=2, stride=2), 100),
    Case(Operation("airbench", 31, 64, 0, window=2, stride=2), 1024, "bfloat16"),
    Case(Operation("resnet50", 112, 64, 0, window=3, stride=2), 128, "bfloat16"),
    Case(Operation("small", 16, 64, 64), 8),
    Case(Operation("small", 32, 16, 16), 8),
    Case(Operation("small", 8, 128, 128), 16),
    *(
        Case(operation, 256)
        for operation in OPERATIONS[::-1]
        if operation.kind in ("convolution", "pooling")
    ),
]


def measure(settings: Settings, save: Save) -> None:
    """Times the forward pass and both gradients; the ratio is XLA's time over dlc_jax's."""
    results: dict[str, Any] = {"operations": {}}
    for case in CASES[: settings.size(len(CASES), 3)]:
        if settings.remaining < 5:
            break
        results["operations"][case.name] = _compare(case, settings)
        ratios = [row["ratio"] for row in results["operations"].values()]
        results["geometric_mean_ratio"] = statistics.geometric_mean(ratios)
        results["least_ratio"] = min(ratios)
        save(results)


def _compare(case: Case, settings: Settings) -> dict[str, Any]:
    operation, dtype = case.operation, jnp.dtype(case.dtype)
    batch = settings.size(case.batch, 2)
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(
        keys[0], (batch, operation.size, operation.size, operation.channels), dtype
    )
    shape = (operation.window, operation.window, operation.channels, max(operation.features, 1))
    kernel = jax.random.normal(keys[1], shape, dtype) / (shape[0] * shape[1] * shape[2]) ** 0.5
    programs = {
        name: jax.jit(partial(_repeat, partial(_apply, operation, name == "xla")))
        .lower(x, kernel)
        .compile()
        for name in ("ours", "xla")
    }
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(settings.size(_ROUNDS, 2) + 1):
        for name, program in programs.items():
            times[name].append(1e6 * seconds_of(partial(program, x, kernel)) / _REPETITIONS)
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    return {
        "ours_us": medians["ours"],
        "xla_us": medians["xla"],
        "ratio": medians["xla"] / medians["ours"],
    }


def _apply(operation: Operation, xla: bool, x: Array, kernel: Array) -> Array:
    strides = (operation.stride, operation.stride)
    window = (operation.window, operation.window)
    if not operation.features:
        pool = nnx.max_pool if xla else max_pool
        return pool(x, window, strides)
    before = (operation.window - 1) // 2
    pads = ((before, before), (before, before))
    if not xla:
        return conv2d(x, kernel, strides, pads)
    return lax.conv_general_dilated(
        x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def _repeat(function: Any, x: Array, kernel: Array) -> Any:
    """Forward pass and gradients several times, each on the results of the one before."""

    def once(arrays: tuple[Array, Array], _: None) -> Any:
        y, vjp = jax.vjp(function, *arrays)
        gradients = vjp(y)
        return tuple(
            array + jnp.asarray(1e-6, array.dtype) * gradient
            for array, gradient in zip(arrays, gradients, strict=True)
        ), None

    return lax.scan(once, (x, kernel), length=_REPETITIONS)[0]
