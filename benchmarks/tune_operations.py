"""Measures the algorithms of `dlc_jax.ops.conv2d`, and writes the table by which it chooses."""

import json
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from harness import command
from harness.workers import Worker, running

from dlc_jax.ops import choice
from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import write_atomically

TABLE = Path(choice.__file__).with_name("timings.json")

# Convolutions of known networks.
SHAPES = [
    "64x32x32x3 to 64, kernel 3, stride 1",
    "64x32x32x64 to 64, kernel 3, stride 1",
    "64x16x16x128 to 128, kernel 3, stride 1",
    "64x8x8x256 to 256, kernel 3, stride 1",
    "64x4x4x512 to 512, kernel 3, stride 1",
    "64x2x2x512 to 512, kernel 3, stride 1",
    "16x56x56x64 to 64, kernel 3, stride 1",
    "48x24x20x40 to 72, kernel 3, stride 1",
    "128x14x14x24 to 24, kernel 3, stride 1",
    "128x32x32x16 to 16, kernel 3, stride 1",
    "32x12x12x96 to 128, kernel 3, stride 1",
    "32x5x5x192 to 384, kernel 3, stride 1",
    "64x32x32x64 to 128, kernel 3, stride 2",
    "64x16x16x128 to 256, kernel 3, stride 2",
    "64x8x8x256 to 512, kernel 3, stride 2",
    "128x32x32x16 to 32, kernel 3, stride 2",
    "64x32x32x64 to 128, kernel 1, stride 2",
    "64x16x16x128 to 256, kernel 1, stride 2",
    "32x24x24x64 to 64, kernel 1, stride 1",
    "32x12x12x192 to 96, kernel 1, stride 1",
    "32x6x6x480 to 192, kernel 1, stride 1",
    "16x14x14x256 to 1024, kernel 1, stride 1",
    "100x28x28x1 to 32, kernel 5, stride 1",
    "100x12x12x32 to 64, kernel 5, stride 1",
    "100x28x28x1 to 32, kernel 5, stride 1, valid",
    "100x8x8x32 to 64, kernel 5, stride 1, valid",
    "32x12x12x16 to 32, kernel 5, stride 1",
    "32x11x11x64 to 192, kernel 5, stride 1",
    "32x96x96x3 to 64, kernel 11, stride 4",
    "32x96x96x3 to 64, kernel 7, stride 2",
    "128x31x31x24 to 64, kernel 2, stride 1",
]

# Multiply-adds in the forward pass of a random convolution.
_MIN_COST, _MAX_COST = 1e7, 2e9


def main(arguments: Sequence[str] | None = None) -> None:
    """Parses options, measures, and writes the table or prints how good its choices are."""
    parser = command.Parser(
        "Time every algorithm of conv2d for the forward pass and each gradient of many "
        "convolutions, relative to XLA's own, and write the table by which conv2d chooses "
        f"({TABLE.name}). The table in the repository is measured with the newest JAX.",
        "  python benchmarks/tune_operations.py\n"
        "  python benchmarks/tune_operations.py --check --random 20 --seed 1",
    )
    add = parser.add_argument
    add("--random", type=command.integer(0), default=40, help="number of random convolutions")
    add("--seed", type=command.integer(0), default=0, help="random seed of their shapes")
    add("--sections", type=command.names, default=("one", "several"), help="numbers of devices")
    add(
        "--without-onednn",
        action="store_true",
        help="measure what is used where oneDNN can't be called, and for float64",
    )
    add("--keep", action="store_true", help="only measure shapes that the table lacks")
    add(
        "--check",
        action="store_true",
        help="compare the present choices with XLA's own algorithms for the random convolutions",
    )
    options = parser.parse_args(arguments)
    command.check_choice("section", options.sections, ["one", "several"])
    shapes = random_shapes(options.random, options.seed)
    lines: list[str] = []
    results: dict[str, Any] = {}
    for section in options.sections:
        where: dict[str, bool] = {
            "shared": section == "several",
            "with_onednn": not options.without_onednn,
        }
        if options.check:
            results[section] = check(shapes, **where)
        else:
            results[section] = tune([*SHAPES, *shapes], **where, keep=options.keep)
        lines += [f"{section}:", *(f"  {line}" for line in results[section]["lines"])]
    command.show(lines, [] if options.check else [TABLE], results, options.json)


def random_shapes(count: int, seed: int) -> list[str]:
    """Names of random shapes that are neither tiny nor take seconds."""
    rng = random.Random(seed)
    found: list[str] = []
    while len(found) < count:
        kernel = rng.choice((1, 3, 3, 3, 5, 7, rng.randint(1, 11)))
        stride = rng.choice((1, 1, 1, 2, 2, 3, 4))
        size = rng.randint(max(4, kernel), 64)
        channels, features = (round(2 ** rng.uniform(2, 9)) for _ in range(2))
        batch = rng.choice((16, 32, 64, 128, 256))
        cost = batch * (size / stride) ** 2 * kernel**2 * channels * features
        if _MIN_COST <= cost <= _MAX_COST:
            found.append(
                f"{batch}x{size}x{size}x{channels} to {features}, kernel {kernel}, stride {stride}"
            )
    return found


def tune(
    shapes: Sequence[str], *, shared: bool, with_onednn: bool, keep: bool = False
) -> dict[str, Any]:
    """Measures all algorithms, and writes the table after each shape.

    Args:
      shapes: Names of the convolutions.
      shared: Whether each core is a device.
      with_onednn: Whether oneDNN is called.
      keep: Whether shapes that the table has are not measured again.
    """
    name = choice.section(shared, with_onednn)
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    rows: dict[str, Any] = table.get(name, {}) if keep else {}
    missing = [shape for shape in shapes if shape not in rows]
    with running(_worker(shared)) as [worker], command.progress() as progress:
        for index, shape in enumerate(missing):
            progress(f"{name}: {shape}", index, len(missing))
            measured = worker.request(shape=shape, with_onednn=with_onednn)
            rows[shape] = _row(measured) | _together(worker, shape, measured, with_onednn)
            _write(name, rows)
    return {"lines": [f"{len(missing)} shapes measured, {len(rows)} in all"], "rows": rows}


def _together(
    worker: Worker, shape: str, measured: dict[str, dict[str, float]], with_onednn: bool
) -> dict[str, Any]:
    """The times of all parts by one algorithm, relative to the fastest algorithm of each."""
    fastest = {part: min(times, key=lambda name: times[name]) for part, times in measured.items()}
    sharing = [name for name in choice.SHARING if all(name in t for t in measured.values())]
    if not sharing:
        return {}
    programs = [fastest, *(dict.fromkeys(measured, name) for name in sharing)]
    times = worker.request(shape=shape, with_onednn=with_onednn, together=programs)["together"]
    ratios = {name: times[str(i)] / times["0"] for i, name in enumerate(sharing, 1)}
    return {"together": {name: float(f"{ratio:.2g}") for name, ratio in ratios.items()}}


def check(shapes: Sequence[str], *, shared: bool, with_onednn: bool) -> dict[str, Any]:
    """Times what is chosen and XLA's own algorithms."""
    rows: dict[str, Any] = {}
    lines = []
    with running(_worker(shared)) as [worker], command.progress() as progress:
        for index, shape in enumerate(shapes):
            progress(shape, index, len(shapes))
            rows[shape] = worker.request(shape=shape, with_onednn=with_onednn, only_chosen=True)
            for part, times in rows[shape].items():
                name, milliseconds = list(times.items())[-1]
                ratio = times["xla"] / milliseconds
                lines.append(f"{shape:45} {part:16} {name:16} {milliseconds:8.2f} ms {ratio:6.2f}")
    ratios = [
        times["xla"] / list(times.values())[-1] for row in rows.values() for times in row.values()
    ]
    mean, least = statistics.geometric_mean(ratios), min(ratios)
    lines.append(
        f"XLA's time over that of the choices: geometric mean {mean:.2f}, least {least:.2f}"
    )
    return {"lines": lines, "rows": rows, "geometric_mean": mean, "minimum": least}


def _worker(shared: bool) -> Any:
    devices = usable_cores() if shared else 1
    return partial(Worker, "algorithms_jax", (), [], devices=devices)


def _row(measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The times of the algorithms relative to XLA's."""
    return {
        part: {
            name: float(f"{value / times['xla']:.2g}")
            for name, value in times.items()
            if name != "xla"
        }
        for part, times in measured.items()
    }


def _write(section: str, rows: dict[str, Any]) -> None:
    """Replaces a section of the table; a line for each shape."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    table[section] = rows
    sections = []
    for name in sorted(table):
        lines = [
            f"    {json.dumps(shape)}: {json.dumps(row)}" for shape, row in table[name].items()
        ]
        sections.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    write_atomically(TABLE, ("{\n" + ",\n".join(sections) + "\n}\n").encode())


if __name__ == "__main__":
    command.run(__file__, main)
