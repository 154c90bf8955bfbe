"""A run's folder: what was asked for, what happened, and the trained network."""

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from dlc_jax import models
from dlc_jax.utils import strict_json
from dlc_jax.models import parameters
from dlc_jax.data.dataset import Normalise
from dlc_jax.errors import InputError
from dlc_jax.utils.files import check_encodable, half_written, lock, make_folder, named, write_atomically
from dlc_jax.runs.recipes import Recipe

CONFIG, METRICS, PARAMETERS, SUMMARY, CHECKPOINTS, EVENTS, LOCK = (
    "config.json",
    "metrics.jsonl",
    "parameters.safetensors",
    "summary.json",
    "checkpoints",
    "tensorboard",
    "lock",
)


@dataclass(frozen=True, kw_only=True)
class RunConfig(Recipe):
    """What it takes to build a run's network again, and to train it again.

    Attributes:
      recipe: the recipe's name, however its fields were changed.
      dlc_jax: the version of this package.
      jax: the version of JAX.
      device: what it was trained on.
      image_shape: height, width and channels.
      class_names: what the network's outputs mean.
      dataset_version: its publisher's version.
      provenance: where the arrays came from.
      mean: what was subtracted from the pixels, by channel.
      std: what they were then divided by, by channel.
      seed: of the initial weights, and of all that is random in training.
      checkpoint_steps: after so many steps of an epoch a checkpoint can be made, and a resumed
        run goes on.
      devices: over how many each batch was spread; 0 where that is not known.
      stream: whether the images are read batch by batch, instead of all at first.
      image_size: height and width to which images on disk are brought, if they are.
    """

    recipe: str = "mnist-lecture"
    dlc_jax: str
    jax: str
    device: str
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    dataset_version: str
    provenance: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    checkpoint_steps: int = 200
    devices: int = 0
    stream: bool = False
    image_size: int | None = None

    @classmethod
    def from_json(cls, text: str) -> "RunConfig":
        """The opposite of `to_json`.

        Raises:
          KeyError, TypeError or ValueError: the text is damaged.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        # Runs of earlier versions lack what a recipe has by default.
        values = {**json.loads(text)}
        config = cls(**{name: values[name] for name in fields & values.keys()})
        height, width, channels = (int(size) for size in config.image_shape)
        if not all(isinstance(name, str) for name in config.class_names):
            raise ValueError("class_names")
        config.normalise  # noqa: B018
        return dataclasses.replace(config, image_shape=(height, width, channels))

    def to_json(self) -> str:
        """All fields, as they stand in `config.json`."""
        return strict_json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    def create_model(self) -> models.Network:
        """The network with the weights that the seed gives."""
        return models.create(
            self.model,
            image_shape=self.image_shape,
            num_classes=len(self.class_names),
            rngs=nnx.Rngs(self.seed),
            dtype=self.jax_dtype,
            **self.model_options,
        )

    @property
    def normalise(self) -> Normalise:
        """What is applied to every image."""
        return Normalise(np.array(self.mean, np.float32), np.array(self.std, np.float32))


@dataclass(frozen=True)
class Run:
    """A run's folder that exists.

    Attributes:
      folder: where it is.
      config: what was asked for.
    """

    folder: Path
    config: RunConfig

    @classmethod
    def create(cls, parent: Path, name: str | None, config: RunConfig) -> "Run":
        """Makes a new folder in `parent`.

        Args:
          parent: made where it is missing.
          name: the folder's name; by default the dataset's, the network's and the time.
          config: written to `config.json`.

        Raises:
          InputError: it can't be made, or there is one of that name.
        """
        check_encodable(parent / (name or ""))
        make_folder(parent)
        folder = _new_folder(parent, name, f"{config.dataset}-{config.model}")
        write_atomically(folder / CONFIG, config.to_json().encode())
        return cls(folder, config)

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """A run that was made before.

        Raises:
          InputError: the folder is not one of a run, or its `config.json` is damaged.
        """
        path = folder / CONFIG
        try:
            return cls(folder, RunConfig.from_json(path.read_text("utf-8")))
        except OSError as error:
            raise InputError(
                f"{str(folder)!r} is not the folder of a run (no readable {CONFIG} in it); "
                "name one that dlc-jax train made"
            ) from error
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{str(path)!r} is damaged ({error})") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps other processes from training in this folder, and clears what a killed one left.

        Raises:
          InputError: another process does.
        """
        training = f"another process is training in {str(self.folder)!r}; wait for it, or stop it"
        with lock(self.folder, LOCK, training):
            for left in half_written(self.folder):
                left.unlink(missing_ok=True)
            yield

    def read_metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl` that can be read; none where it is missing or damaged."""
        try:
            written = (self.folder / METRICS).read_bytes().splitlines()
        except OSError:
            return []
        lines = []
        for line in written:
            # Whatever is not JSON, as the last line of a process that was killed.
            with suppress(ValueError, RecursionError):
                lines.append(json.loads(line))
        return lines

    def write_metrics(self, lines: Sequence[dict[str, Any]]) -> None:
        """Replaces all lines of `metrics.jsonl`."""
        content = "".join(strict_json.dumps(line) + "\n" for line in lines)
        write_atomically(self.folder / METRICS, content.encode())

    @property
    def has_model(self) -> bool:
        """Whether there are parameters, be they those of an untrained network."""
        return (self.folder / PARAMETERS).exists()

    def model(self) -> models.Network:
        """The trained network.

        Raises:
          InputError: the file of parameters is missing or damaged.
        """
        return parameters.load(self.folder / PARAMETERS, self.config.create_model())

    def save_model(self, model: nnx.Module) -> None:
        """Writes the network's variables in place of those of an earlier epoch."""
        parameters.save(self.folder / PARAMETERS, model)

    def append_metrics(self, metrics: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        path = self.folder / METRICS
        with named(path), path.open("a") as file:
            file.write(strict_json.dumps(metrics) + "\n")

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Writes what became of the run."""
        content = strict_json.dumps(summary, indent=2) + "\n"
        write_atomically(self.folder / SUMMARY, content.encode())


def _new_folder(parent: Path, name: str | None, default: str) -> Path:
    if name is not None and (Path(name).name != name or name in (".", "..")):
        raise InputError(f"the run's name {name!r} must be that of one folder, without slashes")
    stem = name or f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in range(1, 1000):
        folder = parent / (stem if attempt == 1 else f"{stem}-{attempt}")
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            if name is not None and _is_unborn(folder):
                return folder
            if name is not None:
                break
        except OSError as error:
            raise InputError(f"can't make the run folder {str(folder)!r} ({error})") from error
    raise InputError(f"there is already a run in {str(parent / stem)!r}; choose another --name")


def _is_unborn(folder: Path) -> bool:
    """Whether a process was killed before it had written what it was to train."""
    return set(folder.iterdir()) <= {*half_written(folder), folder / LOCK}
