"""The algorithms of `dlc_jax.ops` for convolutions, each part by itself."""

import statistics
import time
import unittest.mock
from functools import partial
from typing import Any

import jax
from harness.workers import serve
from jax import Array
from jax.sharding import PartitionSpec

from dlc_jax import sharding
from dlc_jax.ops import choice, onednn
from dlc_jax.ops.windows import out_shape

_BATCH, _REPLICATED = PartitionSpec(sharding.BATCH), PartitionSpec()
# Duration of all measurements of a program, in seconds, and their number.
_SECONDS, _MIN_ROUNDS, _MAX_ROUNDS = 0.2, 5, 15


def respond(
    shape: str,
    with_onednn: bool = True,
    only_chosen: bool = False,
    together: list[dict[str, str]] | None = None,
) -> dict[str, dict[str, float]]:
    """Times the parts of a convolution.

    Args:
      shape: Name of the shapes, see `choice.from_sizes`.
      with_onednn: Whether oneDNN is called.
      only_chosen: Whether to time only XLA's own algorithms and those that `conv2d` chooses.
      together: Algorithms by part, to be timed as programs of all parts instead.

    Returns:
      The median milliseconds of each algorithm by part; of "together", those of each program, by
      its number.
    """
    if not with_onednn:
        unittest.mock.patch.object(onednn, "is_available", return_value=False).start()
    shapes = choice.from_sizes(shape)
    keys = jax.random.split(jax.random.key(0), 3)
    sizes = shapes.images, shapes.kernel, out_shape(*shapes)
    x, kernel, grad = map(jax.random.normal, keys, sizes)
    mesh = sharding.cpu_mesh(len(x))
    x, grad = sharding.put_batch((x, grad), mesh)
    arguments = x, sharding.replicate(kernel, mesh), grad

    def compiled(function: Any) -> Any:
        if mesh is not None:
            function = jax.shard_map(
                function, mesh=mesh, in_specs=(_BATCH, _REPLICATED, _BATCH), out_specs=_BATCH
            )
        return partial(jax.jit(function).lower(*arguments).compile(), *arguments)

    if together is not None:
        programs = {
            str(i): compiled(partial(_call, names, shapes)) for i, names in enumerate(together)
        }
        return {"together": _medians(programs)}
    measured: dict[str, dict[str, float]] = {}
    for part in choice.PARTS:
        names = _names(part, shapes, only_chosen, shared=mesh is not None)
        measured[part] = _medians(
            {name: compiled(partial(_call, {part: name}, shapes)) for name in names}
        )
    return measured


def _names(
    part: choice.Part, shapes: choice.Shapes, only_chosen: bool, *, shared: bool
) -> list[str]:
    """The algorithms to time, XLA's first."""
    if only_chosen:
        return ["xla", choice.fastest(part, shapes, shared=shared)]
    return ["xla", *(name for name in choice.applicable(part, shapes) if name != "xla")]


def _call(
    names: dict[str, str], shapes: choice.Shapes, x: Array, kernel: Array, grad: Array
) -> list[Array]:
    window = shapes.strides, shapes.pads
    modules = {part: choice.ALGORITHMS[name] for part, name in names.items()}
    results = []
    if "convolve" in modules:
        results.append(modules["convolve"].convolve(x, kernel, *window))
    if "input_gradient" in modules:
        module = modules["input_gradient"]
        results.append(module.input_gradient(kernel, grad, x.shape, *window))
    if "kernel_gradient" in modules:
        module = modules["kernel_gradient"]
        results.append(module.kernel_gradient(x, grad, kernel.shape, *window)[None])
    return results


def _medians(programs: dict[str, Any]) -> dict[str, float]:
    first = {name: _milliseconds(program) for name, program in programs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    rounds = min(_MAX_ROUNDS, max(_MIN_ROUNDS, round(1e3 * _SECONDS / min(first.values()))))
    for _ in range(rounds):
        for name, program in programs.items():
            # What is far slower than another algorithm is not measured further.
            if len(times[name]) < 2 or min(times[name]) < 4 * min(map(min, times.values())):
                times[name].append(_milliseconds(program))
    return {name: statistics.median(values) for name, values in times.items()}


def _milliseconds(program: Any) -> float:
    start = time.perf_counter()
    jax.block_until_ready(program())
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    serve(respond)
