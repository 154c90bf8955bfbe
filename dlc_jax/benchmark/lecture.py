"""The lecture's epoch, against other programs of the same network and against its 7 seconds."""

import contextlib
import importlib.util
import statistics
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.rounds import Contender, Report, contenders
from dlc_jax.data.dataset import Examples
from dlc_jax.errors import InputError
from dlc_jax.utils.environment import usable_cores
from dlc_jax.utils.files import atomic_writer

# The rivals, and what each needs.
RIVALS = {
    "torch": ("torch",),
    "torch-channels-last": ("torch",),
    "torch-compile": ("torch",),
    "flax": ("flax",),
}

# Ten epochs on a GTX 1080, in seconds (Fleuret, EE-559, lecture 1a).
GTX_1080_SECONDS = 7.0

# Multiplications and additions that the network takes for an image when computed directly:
# of each layer the forward pass and the gradient of its weights, and of all layers but the
# first the gradient of its inputs.
_LAYERS = {
    "conv1": 2 * (5 * 5 * 1) * 32 * 24 * 24,
    "conv2": 2 * (5 * 5 * 32) * 64 * 4 * 4,
    "fc1": 2 * 256 * 200,
    "fc2": 2 * 200 * 10,
}
OPERATIONS_AN_IMAGE = 3 * sum(_LAYERS.values()) - _LAYERS["conv1"]


def installed(rivals: Sequence[str]) -> tuple[str, ...]:
    """Those of the rivals whose packages are here."""
    return tuple(
        rival for rival in rivals if all(importlib.util.find_spec(name) for name in RIVALS[rival])
    )


def reference_seconds(images: int) -> float:
    """The lecture's time for ten epochs of so many images; it is told for MNIST's 60,000."""
    return GTX_1080_SECONDS * images / 60_000


def read_arrays(
    path: Path, image_shape: tuple[int, int, int] = (28, 28, 1)
) -> tuple[Examples, Examples]:
    """Training and test split from a file of arrays x_train, y_train, x_test, y_test.

    Args:
      path: an `.npz` file.
      image_shape: height, width and channels that the images must have.

    Raises:
      InputError: it is missing, or does not hold such arrays.
    """
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            splits = [Examples(file[f"x_{name}"], file[f"y_{name}"]) for name in ("train", "test")]
    except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{str(path)!r} does not hold the arrays x_train, y_train, x_test, y_test ({error})"
        ) from error
    for images, labels in splits:
        if images.dtype != np.uint8 or images.shape[1:] != image_shape or len(images) < 100:
            height, width, channels = image_shape
            raise InputError(
                f"{str(path)!r} holds images of {images.dtype} {images.shape}; needed are at "
                f"least 100, uint8, {height}x{width}x{channels}"
            )
        if labels.shape != images.shape[:1]:
            raise InputError(f"{str(path)!r} holds {len(images)} images, but {labels.shape} labels")
    return splits[0], splits[1]


def run(
    splits: tuple[Examples, Examples],
    *,
    epochs: int,
    rivals: Sequence[str],
    seeds: int = 0,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Times epochs of each contender in turn.

    Args:
      splits: training and test split, uint8 images 28x28x1.
      epochs: rounds; each contender trains for one epoch in each.
      rivals: some of `RIVALS`.
      seeds: how many networks to train at once besides; 0 for none.
      report: called with what runs next, and how many steps are done of how many.

    Returns:
      What was measured, with machine, versions, date and commit.

    Raises:
      InputError: a rival is unknown or can't run here.
    """
    unknown = [name for name in rivals if name not in RIVALS]
    if unknown:
        raise InputError(f"there is no rival {unknown[0]!r}; choose from {', '.join(RIVALS)}")
    names = ["dlc_jax", *rivals, *(["seeds"] if seeds else [])]
    with arrays_file(splits) as arrays:
        factories = [_factory(name, arrays, seeds) for name in names]
        with contenders(partial(Contender, "dot"), *factories) as (dot, *started):
            measured, dot_rates = _measure(
                dot, dict(zip(names, started, strict=True)), epochs, report
            )
    images = len(splits[0].labels)
    return machine.describe() | _summary(measured, dot_rates, images, seeds)


@contextlib.contextmanager
def arrays_file(splits: tuple[Examples, Examples]) -> Iterator[Path]:
    """A file for `read_arrays` that is there until the context ends."""
    with tempfile.TemporaryDirectory() as folder:
        arrays = Path(folder) / "arrays.npz"
        with atomic_writer(arrays) as file:
            (x_train, y_train), (x_test, y_test) = splits
            np.savez(file, x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
        yield arrays


def _factory(name: str, arrays: Path, seeds: int) -> Any:
    arguments = ["--arrays", str(arrays)]
    if name in ("torch-compile", "torch-channels-last"):
        flag = name.removeprefix("torch")
        return partial(Contender, "pytorch", RIVALS[name], [*arguments, f"-{flag}"])
    if name == "seeds":
        return partial(Contender, "dlc", (), [*arguments, "--seeds", str(seeds)])
    if name == "dlc_jax":
        return partial(Contender, "dlc", (), arguments, cores=usable_cores())
    module = {"torch": "pytorch", "flax": "plain_flax"}[name]
    return partial(Contender, module, RIVALS[name], arguments)


def _measure(
    dot: Contender, started: dict[str, Contender], epochs: int, report: Report
) -> tuple[dict[str, Any], list[float]]:
    total, done = len(started) * (epochs + 2), 0
    measured: dict[str, Any] = {}
    for name, contender in started.items():
        report(f"{name}: compiling", done, total)
        measured[name] = {"compile_s": contender.ask(do="compile")["seconds"], "epoch_s": []}
        done += 1
    dot_rates = []
    for number in range(1, epochs + 1):
        dot_rates.append(dot.ask()["gflops"])
        for name, contender in started.items():
            report(f"{name}: epoch {number}", done, total)
            measured[name]["epoch_s"].append(contender.ask(do="epoch")["seconds"])
            done += 1
    for name, contender in started.items():
        report(f"{name}: testing", done, total)
        measured[name]["test_error_percent"] = contender.ask(do="test")["error_percent"]
        measured[name]["median"] = statistics.median(measured[name]["epoch_s"])
        done += 1
    return measured, dot_rates


def _summary(
    measured: dict[str, Any], dot_rates: list[float], images: int, seeds: int
) -> dict[str, Any]:
    ours = measured["dlc_jax"]["median"]
    dot_gflops = statistics.median(dot_rates)
    results: dict[str, Any] = {"images": images, "dlc_jax": measured.pop("dlc_jax")}
    many = measured.pop("seeds", None)
    for name in RIVALS:
        key = name.replace("-", "_")
        results[key] = measured.get(name)
        ratio = round(measured[name]["median"] / ours, 3) if name in measured else None
        results[f"ratio_vs_{key}"] = ratio
    results |= {
        "dot_gflops": round(dot_gflops, 1),
        "fraction_of_dot": round(OPERATIONS_AN_IMAGE * images / ours / dot_gflops / 1e9, 3),
        "ten_epochs_s": round(10 * ours, 3),
        "ratio_vs_gtx1080": round(reference_seconds(images) / (10 * ours), 3),
    }
    if many:
        ratio = round(many["median"] / ours, 3)
        results["seeds"] = many | {"count": seeds, "times_of_one": ratio}
    return results
