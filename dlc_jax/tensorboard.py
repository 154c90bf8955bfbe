"""A run's numbers and pictures as event files, which TensorBoard shows."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from dlc_jax.errors import InputError

if TYPE_CHECKING:
    from dlc_jax.training import EpochReport


def library() -> ModuleType:
    """The one that writes event files.

    Raises:
      InputError: it is not installed.
    """
    try:
        import tensorboardX
    except ImportError as error:
        raise InputError(
            f"event files for TensorBoard need tensorboardX ({error}); run: pip install "
            "'dlc-jax[tensorboard]', or leave out --tensorboard"
        ) from error
    return tensorboardX


class Board:
    """The event files of a run, with training steps as their axis.

    Scalars are `train/loss` of each step and, of each epoch, `test/loss`, `test/error_percent`
    and `train/images_per_second`; pictures those that the run draws.
    """

    def __init__(self, folder: Path, images: int, first: int = 0) -> None:
        """Begins a new event file.

        Args:
          folder: where to.
          images: of an epoch.
          first: the first step that it will be told of; what earlier event files tell of this one
            and later ones is no longer shown.
        """
        self._images = images
        self._writer = library().SummaryWriter(str(folder), purge_step=first)

    def close(self) -> None:
        """Ends the event file."""
        self._writer.close()

    def epoch(self, report: "EpochReport") -> None:
        """Adds an epoch's scalars."""
        last = int(report.state.step)
        first = last - len(report.losses) + 1
        for step, loss in enumerate(np.asarray(report.losses), first):
            self._writer.add_scalar("train/loss", float(loss), step)
        self._writer.add_scalar("test/loss", float(report.test.loss), last)
        self._writer.add_scalar("test/error_percent", 100 * float(report.test.error), last)
        if report.epoch:
            rate = self._images / report.train_seconds
            self._writer.add_scalar("train/images_per_second", rate, last)
        self._writer.flush()

    def pictures(self, files: Sequence[Path], step: int) -> None:
        """Adds pictures by their files' names.

        Args:
          files: PNG files.
          step: after which they were drawn.
        """
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self._writer.add_image(file.stem, pixels, step, dataformats="HWC")
