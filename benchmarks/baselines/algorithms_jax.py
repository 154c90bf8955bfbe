"""The algorithms of `dlc_jax.ops` for convolutions, each part by itself."""

import statistics
import time
from functools import partial
from typing import Any

import jax
from harness.workers import serve
from jax.sharding import PartitionSpec

from dlc_jax import sharding
from dlc_jax.ops import choice

_BATCH, _REPLICATED = PartitionSpec(sharding.BATCH), PartitionSpec()
# Duration of all measurements of a program, in seconds, and their number.
_SECONDS, _MIN_ROUNDS, _MAX_ROUNDS = 0.2, 5, 15


def respond(shape: str, only_chosen: bool = False) -> dict[str, dict[str, float]]:
    """Times the parts of a convolution.

    Args:
      shape: Name of the shapes, see `choice.from_sizes`.
      only_chosen: Whether to time only XLA's own algorithms and those that `conv2d` chooses.

    Returns:
      The median milliseconds of each algorithm by part; in `only_chosen` also of XLA's again.
    """
    shapes = choice.from_sizes(shape)
    return {part: _time_part(part, shapes, only_chosen) for part in choice.PARTS}


def _time_part(part: choice.Part, shapes: choice.Shapes, only_chosen: bool) -> dict[str, float]:
    batch, strides, pads = shapes.images[0], shapes.strides, shapes.pads
    out = choice.out_shape(*shapes)
    keys = jax.random.split(jax.random.key(0), 3)
    x, kernel, grad = map(jax.random.normal, keys, (shapes.images, shapes.kernel, out))
    mesh = sharding.cpu_mesh(batch)
    x, grad = sharding.put_batch((x, grad), mesh)
    kernel = sharding.replicate(kernel, mesh)
    local = (batch // (mesh.size if mesh else 1), *shapes.images[1:])

    def call(name: str) -> Any:
        module: Any = choice.ALGORITHMS[name]
        if part == "convolve":
            return lambda x, kernel, grad: module.convolve(x, kernel, strides, pads)
        if part == "input_gradient":
            return lambda x, kernel, grad: module.input_gradient(kernel, grad, local, strides, pads)
        return lambda x, kernel, grad: module.kernel_gradient(
            x, grad, shapes.kernel, strides, pads
        )[None]

    names = choice.applicable(part, shapes)
    if only_chosen:
        names = ["xla", choice.fastest(part, shapes, shared=mesh is not None)]
    programs = {}
    for name in dict.fromkeys(names):
        function = call(name)
        if mesh is not None:
            function = jax.shard_map(
                function, mesh=mesh, in_specs=(_BATCH, _REPLICATED, _BATCH), out_specs=_BATCH
            )
        programs[name] = partial(
            jax.jit(function).lower(x, kernel, grad).compile(), x, kernel, grad
        )
    return _medians(programs)


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
