"""Single operations of dlc_jax, or XLA's own, in a scan as training runs them."""

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

_BATCH, _REPLICATED = PartitionSpec(sharding.BATCH), PartitionSpec()
# Keeps XLA from moving the computation, which is the same each time, out of the loop.
_COMPILER_OPTIONS: dict[str, str | bool] = {
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion"
}


def _prepare(
    precision: str | None,
    *,
    size: int,
    channels: int,
    features: int,
    window: int,
    stride: int,
    batch_size: int,
) -> Callable[[], float]:
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (batch_size, size, size, channels))
    kernel = jax.random.normal(keys[1], (window, window, channels, max(features, 1)))
    before = (window - 1) // 2 if features else 0
    padding = ((before, before), (before, before))

    def operation(x: Array, kernel: Array) -> Array:
        if features:
            return ops.conv2d(x, kernel, (stride, stride), padding, precision)
        if precision is not None:
            return nnx.max_pool(x, (window, window), (stride, stride))
        return ops.max_pool(x, (window, window), (stride, stride), padding)

    grad = jax.random.normal(keys[2], jax.eval_shape(operation, x, kernel).shape)
    mesh = sharding.cpu_mesh(batch_size)
    x, grad = sharding.put_batch((x, grad), mesh)
    arguments = x, sharding.replicate(kernel, mesh), grad

    def compiled(repetitions: int) -> Any:
        repeat: Any = partial(_repeat, operation, repetitions)
        if mesh is not None:
            repeat = jax.shard_map(
                partial(repeat, axis_name=sharding.BATCH),
                mesh=mesh,
                in_specs=(_BATCH, _REPLICATED, _BATCH),
                out_specs=(_BATCH, _BATCH, _REPLICATED) * 2,
            )
        run = jax.jit(repeat).lower(*arguments).compile(_COMPILER_OPTIONS)
        _seconds(run, arguments)
        return run

    repetitions = max(2, round(MIN_SECONDS / _seconds(compiled(1), arguments)))
    run = compiled(repetitions)
    return lambda: _seconds(run, arguments) / repetitions


def _repeat(
    operation: Any,
    repetitions: int,
    x: Array,
    kernel: Array,
    grad: Array,
    axis_name: str | None = None,
) -> tuple[Array, ...]:
    """Forward pass and both gradients several times, in a scan."""

    def once(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array, Array]:
        if axis_name is not None:
            kernel = lax.pcast(kernel, axis_name, to="varying")
        y, vjp = jax.vjp(operation, x, kernel)
        grad_x, grad_kernel = vjp(grad)
        if axis_name is not None:
            grad_kernel = lax.psum(grad_kernel, axis_name)
        return y, grad_x, grad_kernel

    first = once(x, kernel, grad)
    last, _ = lax.scan(lambda *_: (once(x, kernel, grad), None), first, length=repetitions - 1)
    return *first, *last


def _seconds(run: Any, arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision")
    serve_operations(partial(_prepare, parser.parse_args().precision))
