"""Data-parallel training over more and more devices.

Measured are images a second, against simulated devices of one process and against processes that
are joined over loopback; and the steps from which `interconnect` works out on paper where
communication would bound.
"""

import contextlib
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from flax import nnx

from dlc_jax import models
from dlc_jax.benchmark import machine
from dlc_jax.benchmark.interconnect import on_paper
from dlc_jax.benchmark.rounds import Contender, Report, contenders
from dlc_jax.errors import InputError
from dlc_jax.models.network import Network
from dlc_jax.models.summary import summarise
from dlc_jax.utils.environment import usable_cores

# The gradients are float32, as the parameters are.
_BYTES_A_PARAMETER = 4


@dataclass(frozen=True)
class Setting:
    """A network, and the batches in which it is trained.

    Attributes:
      name: as `dlc_jax.models.create` knows it.
      title: as a table calls it.
      image_shape: height, width and channels.
      classes: how many.
      batch_size: images an update.
      source: whose batch size that is.
      measured: images in a step that is measured; a whole batch would take minutes.
      steps: so many are measured as one, where a single one is over too soon.
      options: what else the network is told.
    """

    name: str
    title: str
    image_shape: tuple[int, int, int]
    classes: int
    batch_size: int
    source: str
    measured: int
    steps: int = 1
    options: dict[str, Any] = field(default_factory=dict)

    def create(self, rngs: nnx.Rngs) -> Network:
        """The network with freshly drawn weights."""
        return models.create(self.name, rngs=rngs, **self._arguments)

    @property
    def _arguments(self) -> dict[str, Any]:
        return {"image_shape": self.image_shape, "num_classes": self.classes, **self.options}

    def describe(self) -> dict[str, int]:
        """Parameters, their bytes, and the multiply-adds of the forward pass for one image."""
        summary = summarise(models.abstract(self.name, **self._arguments), self.image_shape)
        return {
            "parameters": summary.parameters,
            "bytes": _BYTES_A_PARAMETER * summary.parameters,
            "multiply_adds": summary.multiply_adds,
        }


NETWORKS = {
    "lecture": Setting(
        "lecture", "lecture network, 28x28", (28, 28, 1), 10, 100, "the lecture's", 100, 50
    ),
    "resnet18": Setting(
        "resnet18", "ResNet-18, 32x32", (32, 32, 3), 10, 128,
        "He et al. 2015, section 4.2, for CIFAR-10", 128, options={"stem": "small"},
    ),
    "resnet50": Setting(
        "resnet50", "ResNet-50, 224x224", (224, 224, 3), 1000, 256,
        "He et al. 2015, section 3.4", 16,
    ),
}  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    """The results that an earlier run kept, with what is on paper worked out again.

    Raises:
      InputError: the file is missing, or holds no such results.
    """
    try:
        results = json.loads(path.read_text())
        results["on_paper"] = on_paper(results)
        for name in ("measured", "rounds", "images", "cores", "date", "versions"):
            _ = results[name]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{str(path)!r} does not hold the results of this benchmark ({error!r}); name a file "
            "that it has written, as benchmarks/results/*-scaling.json"
        ) from error
    return results


@dataclass(frozen=True)
class _Place:
    """Devices that share a batch: all of one process, or each of a process of its own."""

    kind: str
    count: int

    def __str__(self) -> str:
        return f"{self.count} {self.kind if self.count > 1 else 'device'}"

    def start(self) -> Contender:
        devices, processes = (self.count, 1) if self.kind == "devices" else (1, self.count)
        arguments = ["--network", "lecture", "--devices", str(self.count)]
        return Contender("data_parallel", (), arguments, cores=devices, processes=processes)


def run(
    *,
    devices: Sequence[int],
    processes: Sequence[int],
    batch_size: int,
    images: int,
    rounds: int,
    networks: Sequence[str],
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Times the lecture network's epoch by devices and processes, and a step of other networks.

    Args:
      devices: numbers of devices of one process.
      processes: numbers of processes of one device each.
      batch_size: images an update, of each device (weak scaling) and of all together (strong).
      images: in an epoch, or a few more, so that all batches are full.
      rounds: how often; the median counts.
      networks: some of `NETWORKS`, of which a step is measured on all cores, for `on_paper`.
      report: called with what runs next, and how many steps are done of how many.

    Returns:
      Images a second and efficiency by number of devices, the networks' steps, and what follows
      for other computers; with machine, versions, date and commit.

    Raises:
      InputError: there is no such network, or some devices can't share a batch evenly.
    """
    unknown = [name for name in networks or [""] if name not in NETWORKS]
    if unknown:
        choice = ", ".join(NETWORKS)
        raise InputError(f"there is no network {unknown[0]!r} here; choose from {choice}")
    places = [_Place("devices", n) for n in sorted({1, *devices})]
    # A single process is the single device.
    places += [_Place("processes", n) for n in sorted({*processes} - {1})]
    for place in places:
        if batch_size % place.count:
            raise InputError(
                f"a batch of {batch_size} images does not spread evenly over {place}; "
                f"choose one such as {place.count * -(-batch_size // place.count)}"
            )
    whole = batch_size * math.lcm(*(place.count for place in places))
    images = -(-images // whole) * whole
    cases = sum(len({batch_size, batch_size * place.count}) for place in places)
    progress = _Progress(report, (cases + len(networks)) * (1 + rounds))
    measured = _measure(places, batch_size, images, rounds, progress)
    results = machine.describe() | {
        "batch_size": batch_size,
        "images": images,
        "rounds": rounds,
        "measured": _rates(measured, batch_size, images),
        "networks": _steps(networks, rounds, progress),
    }
    return results | {"on_paper": on_paper(results)}


class _Progress:
    """Tells of one thing after the other."""

    def __init__(self, report: Report, total: int) -> None:
        self._report, self._done, self._total = report, 0, total

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self._report(what, self._done, self._total)
        yield
        self._done += 1


def _measure(
    places: Sequence[_Place], batch_size: int, images: int, rounds: int, progress: _Progress
) -> dict[tuple[_Place, int], list[float]]:
    """Seconds of the epoch by place and batch size, of each round."""
    with contenders(*(place.start for place in places)) as started:
        cases: dict[Any, Callable[..., Any]] = {
            (place, size): partial(contender.ask, batch_size=size)
            for place, contender in zip(places, started, strict=True)
            for size in sorted({batch_size, batch_size * place.count})
        }
        return _take_turns(
            {case: f"{case[0]}, batch {case[1]}" for case in cases},
            cases,
            dict.fromkeys(cases, images),
            rounds,
            progress,
        )


def _take_turns(
    names: dict[Any, str],
    cases: dict[Any, Callable[..., Any]],
    images: dict[Any, int],
    rounds: int,
    progress: _Progress,
) -> dict[Any, list[float]]:
    """Has each case prepared, and then measured once a round."""
    for case, ask in cases.items():
        with progress(f"{names[case]}: compiling"):
            ask(images=images[case])
    seconds: dict[Any, list[float]] = {case: [] for case in cases}
    for number in range(1, rounds + 1):
        for case, ask in cases.items():
            with progress(f"{names[case]}: round {number}"):
                seconds[case].append(ask()["seconds"])
    return seconds


def _rates(
    measured: dict[tuple[_Place, int], list[float]], batch_size: int, images: int
) -> list[dict[str, Any]]:
    rates = {case: images / statistics.median(times) for case, times in measured.items()}
    single = rates[_Place("devices", 1), batch_size]
    cores = usable_cores()
    rows = []
    for place in dict.fromkeys(place for place, _ in measured):
        row: dict[str, Any] = {"kind": place.kind, "count": place.count}
        for scaling, size in (("weak", batch_size * place.count), ("strong", batch_size)):
            rate = rates[place, size]
            row[scaling] = {
                "batch_size": size,
                "images_per_s": round(rate, 1),
                "efficiency": round(rate / single / place.count, 4),
                "efficiency_of_cores": round(rate / single / min(place.count, cores), 4),
                "all_s": measured[place, size],
            }
        rows.append(row)
    return rows


def _steps(names: Sequence[str], rounds: int, progress: _Progress) -> dict[str, dict[str, Any]]:
    """A step of each network on all cores, as `dlc-jax train` spreads it, with its sizes."""
    factories = [
        partial(Contender, "data_parallel", (), ["--network", name], cores=usable_cores())
        for name in names
    ]
    settings = {name: NETWORKS[name] for name in names}
    with contenders(*factories) as started:
        asking: dict[Any, Callable[..., Any]] = {
            name: partial(contender.ask, batch_size=settings[name].measured)
            for name, contender in zip(names, started, strict=True)
        }
        titles = {name: setting.title for name, setting in settings.items()}
        images = {name: setting.steps * setting.measured for name, setting in settings.items()}
        seconds = _take_turns(titles, asking, images, rounds, progress)
    return {
        name: {
            **setting.describe(),
            "batch_size": setting.batch_size,
            "step_images": setting.measured,
            "step_s": statistics.median(seconds[name]) / setting.steps,
            "all_s": [each / setting.steps for each in seconds[name]],
        }
        for name, setting in settings.items()
    }
