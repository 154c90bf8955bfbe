"""Single operations of this package, or XLA's own, in a scan as training runs them."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array, lax

from dlc_jax import ops, sharding
from dlc_jax.benchmark.contenders.clock import LEAST_SECONDS, serve_operations


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
    arguments = sharding.replicate((x, kernel, grad), mesh)

    def compiled(times: int) -> Any:
        repeated = partial(_repeated, operation, times)
        spread = sharding.spread(repeated, mesh, in_axes=(0, None, 0), out_axes=(0, 0, None))
        run = jax.jit(spread).lower(*arguments).compile()
        _seconds(run, arguments)
        return run

    once, twice = (_seconds(compiled(times), arguments) for times in (1, 2))
    times = max(2, round(LEAST_SECONDS / max(twice - once, 1e-4)))
    run = compiled(times)
    return lambda: _seconds(run, arguments) / times


def _repeated(
    operation: Any, times: int, x: Array, kernel: Array, grad: Array, *, axis_name: str | None
) -> tuple[Array, Array, Array]:
    """Forward pass and both gradients several times, in a scan as training runs them."""

    def once(x: Array, kernel: Array, grad: Array) -> tuple[Array, Array, Array]:
        if axis_name is not None:
            kernel = lax.pcast(kernel, axis_name, to="varying")
        y, vjp = jax.vjp(operation, x, kernel)
        grad_x, grad_kernel = vjp(grad)
        if axis_name is not None:
            grad_kernel = lax.psum(grad_kernel, axis_name)
        return y, grad_x, grad_kernel

    def step(carry: Any, _: None) -> tuple[Any, None]:
        (x, kernel, grad), (y, grad_x, grad_kernel) = carry
        # One number of each input changes, so that nothing can be done once for all times.
        changed = _with_first(x, grad_x), _with_first(kernel, grad_kernel), _with_first(grad, y)
        return (changed, once(*changed)), None

    inputs = x, kernel, grad
    (_, results), _ = lax.scan(step, (inputs, once(*inputs)), length=times - 1)
    return results


def _with_first(old: Array, new: Array) -> Array:
    """An array with its first number replaced by another's."""
    return lax.dynamic_update_slice(old, new[:1, :1, :1, :1], (0, 0, 0, 0))


def _seconds(run: Any, arguments: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision")
    serve_operations(partial(_prepare, parser.parse_args().precision))
