"""Single operations of dlc_jax, or XLA's own, called one at a time."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array, lax
from jax.sharding import PartitionSpec

from baselines.server import MIN_SECONDS, serve_operations
from dlc_jax import ops, sharding

_LAYOUT = ("NHWC", "HWIO", "NHWC")
_BATCH, _REPLICATED = PartitionSpec(sharding.BATCH), PartitionSpec()


def _prepare(
    xla: bool,
    *,
    size: int,
    channels: int,
    features: int,
    window: int,
    stride: int,
    batch_size: int,
    groups: int,
    transposed: bool,
) -> Callable[[], float]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch_size, size, size, channels))
    kernel = jax.random.normal(keys[1], (window, window, channels // groups, max(features, 1)))
    before = (window - 1) // 2 if features else 0
    strides, padding = (stride, stride), ((before, before), (before, before))

    def operation(x: Array, kernel: Array) -> Array:
        if not features:
            pool = nnx.max_pool if xla else ops.max_pool
            return pool(x, (window, window), strides)
        if transposed and xla:
            return lax.conv_transpose(x, kernel, strides, "SAME", dimension_numbers=_LAYOUT)
        if transposed:
            return ops.conv_transpose(x, kernel, strides)
        if not xla:
            return ops.conv2d(x, kernel, strides, padding, groups=groups)
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=_LAYOUT, feature_group_count=groups
        )

    grad = jax.random.normal(keys[2], jax.eval_shape(operation, x, kernel).shape)
    mesh = sharding.cpu_mesh(batch_size)
    x, grad = sharding.put_batch((x, grad), mesh)
    arguments = x, sharding.replicate(kernel, mesh), grad
    once: Any = partial(_forward_and_gradients, operation)
    if mesh is not None:
        once = jax.shard_map(
            partial(once, axis_name=sharding.BATCH),
            mesh=mesh,
            in_specs=(_BATCH, _REPLICATED, _BATCH),
            out_specs=(_BATCH, _BATCH, _REPLICATED),
        )
    run = jax.jit(once).lower(*arguments).compile()
    _seconds(run, arguments, 1)
    repetitions = max(1, round(MIN_SECONDS / _seconds(run, arguments, 1)))
    return lambda: _seconds(run, arguments, repetitions) / repetitions


def _forward_and_gradients(
    operation: Any, x: Array, kernel: Array, grad: Array, axis_name: str | None = None
) -> tuple[Array, Array, Array]:
    if axis_name is not None:
        kernel = lax.pcast(kernel, axis_name, to="varying")
    y, vjp = jax.vjp(operation, x, kernel)
    grad_x, grad_kernel = vjp(grad)
    if axis_name is not None:
        grad_kernel = lax.psum(grad_kernel, axis_name)
    return y, grad_x, grad_kernel


def _seconds(run: Any, arguments: Any, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--xla", action="store_true")
    serve_operations(partial(_prepare, parser.parse_args().xla))
