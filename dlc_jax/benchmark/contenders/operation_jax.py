"""Single operations of this package, or XLA's own."""

import argparse
import time
from functools import partial
from typing import Any

import jax
from flax import nnx
from jax import Array, lax

from dlc_jax import ops, sharding
from dlc_jax.benchmark.rounds import answer

# How long one answer should take, in seconds; short operations are repeated.
_LEAST_SECONDS = 0.3


def main() -> None:
    """Prepares an operation when asked for one, and else times the one prepared."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--precision")
    precision = parser.parse_args().precision
    prepared: Any = None

    def respond(prepare: dict[str, int] | None = None) -> dict[str, float]:
        nonlocal prepared
        if prepare is not None:
            prepared = _prepare(precision, **prepare)
            return {}
        run, arguments, times = prepared
        return {"milliseconds": 1e3 * _seconds(run, arguments, times) / times}

    answer(respond)


def _prepare(
    precision: str | None,
    *,
    size: int,
    channels: int,
    features: int,
    window: int,
    stride: int,
    batch_size: int,
) -> Any:
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

    gradients = partial(_forward_and_backward, operation)
    spread = sharding.spread(gradients, mesh, in_axes=(0, None, 0), out_axes=(0, 0, None))
    run = jax.jit(spread).lower(*arguments).compile()
    _seconds(run, arguments, 1)
    times = max(1, round(_LEAST_SECONDS / _seconds(run, arguments, 1)))
    return run, arguments, times


def _forward_and_backward(
    operation: Any, x: Array, kernel: Array, grad: Array, *, axis_name: str | None
) -> tuple[Array, Array, Array]:
    if axis_name is not None:
        kernel = lax.pcast(kernel, axis_name, to="varying")
    y, vjp = jax.vjp(operation, x, kernel)
    grad_x, grad_kernel = vjp(grad)
    if axis_name is not None:
        grad_kernel = lax.psum(grad_kernel, axis_name)
    return y, grad_x, grad_kernel


def _seconds(run: Any, arguments: Any, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        jax.block_until_ready(run(*arguments))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
