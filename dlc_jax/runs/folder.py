"""The folder of a run: its configuration, metrics, checkpoints and trained network."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flax import nnx

from dlc_jax import models
from dlc_jax.errors import InputError
from dlc_jax.models import parameters
from dlc_jax.runs.config import FORMAT, RunConfig
from dlc_jax.utils import strict_json
from dlc_jax.utils.files import (
    check_encodable,
    lock,
    make_folder,
    name_in_errors,
    partial_files,
    write_atomically,
)

CONFIG, METRICS, PARAMETERS, SUMMARY, CHECKPOINTS, EVENTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "parameters.safetensors",
    "summary.json",
    "checkpoints",
    "tensorboard",
    "lock",
)


@dataclass(frozen=True)
class Run:
    """An existing run folder.

    Attributes:
      folder: The folder.
      config: The configuration.
    """

    folder: Path
    config: RunConfig

    @classmethod
    def create(cls, parent: Path, name: str | None, config: RunConfig) -> "Run":
        """Makes a new run folder.

        Args:
          parent: Folder in which to make it; made if it is missing.
          name: Name of the folder; by default dataset, model and time.
          config: Written to `config.json`.

        Raises:
          InputError: The folder can't be made or exists already.
        """
        check_encodable(parent / (name or ""))
        make_folder(parent)
        folder = _make_run_folder(parent, name, f"{config.dataset}-{config.model}")
        write_atomically(folder / CONFIG, config.to_json().encode())
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Opens a run folder.

        Raises:
          InputError: It is not the folder of a run, or its `config.json` is damaged or has an
            unknown format.
        """
        path = folder / CONFIG
        try:
            return cls(folder, RunConfig.from_json(path.read_text("utf-8")))
        except OSError as error:
            raise InputError(
                f"{str(folder)!r} is not the folder of a run (no readable {CONFIG} in it); "
                "give one that dlc-jax train made"
            ) from error
        except InputError as error:
            raise InputError(f"can't read {str(path)!r}: {error}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error})") from error

    def check_resumable(self) -> None:
        """Checks that this version can resume the run.

        Raises:
          InputError: An earlier version made the run, with checkpoints of another format.
        """
        if self.config.format != FORMAT:
            raise InputError(
                f"the run in {str(self.folder)!r} was made by dlc_jax {self.config.dlc_jax}, whose "
                "checkpoints this version can't read; resume it with that version, or train a new "
                "run"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Locks the folder against other training processes, and removes partial files.

        Raises:
          InputError: Another process holds the lock.
        """
        message = f"another process is training in {str(self.folder)!r}; wait for it, or stop it"
        with lock(self.folder, LOCK, message):
            for path in partial_files(self.folder):
                path.unlink(missing_ok=True)
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        """Returns the readable lines of `metrics.jsonl`; none if it is missing."""
        try:
            lines = (self.folder / METRICS).read_bytes().splitlines()
        except OSError:
            return []
        metrics = []
        for line in lines:
            # The last line of a killed process may be incomplete.
            with suppress(ValueError, RecursionError):
                metrics.append(json.loads(line))
        return metrics

    def write_metrics(self, metrics: Sequence[dict[str, Any]]) -> None:
        """Replaces all lines of `metrics.jsonl`."""
        content = "".join(strict_json.dumps(line) + "\n" for line in metrics)
        write_atomically(self.folder / METRICS, content.encode())

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`."""
        path = self.folder / METRICS
        with name_in_errors(path), path.open("a") as file:
            file.write(strict_json.dumps(metrics) + "\n")

    @property
    def has_model(self) -> bool:
        """Whether there are saved parameters, trained or not."""
        return (self.folder / PARAMETERS).exists()

    def load_model(self) -> models.Network:
        """Loads the trained network.

        Raises:
          InputError: The file of parameters is missing or damaged.
        """
        return parameters.load(self.folder / PARAMETERS, self.config.create_model())

    def save_model(self, model: nnx.Module) -> None:
        """Saves the network's variables, replacing those of an earlier epoch."""
        parameters.save(self.folder / PARAMETERS, model)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes `summary.json`."""
        content = strict_json.dumps(summary, indent=2) + "\n"
        write_atomically(self.folder / SUMMARY, content.encode())


def _make_run_folder(parent: Path, name: str | None, default: str) -> Path:
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise InputError(f"the run name {name!r} must be a single folder name, without slashes")
    stem = name or f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, 1000):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            if name is not None and _has_no_config(folder):
                return folder
            if name is not None:
                break
        except OSError as error:
            raise InputError(f"can't make the run folder {str(folder)!r} ({error})") from error
    raise InputError(f"there is already a run in {str(parent / stem)!r}; choose another --name")


def _has_no_config(folder: Path) -> bool:
    """Returns whether a process was killed before it wrote the configuration."""
    return set(folder.iterdir()) <= {*partial_files(folder), folder / LOCK}
