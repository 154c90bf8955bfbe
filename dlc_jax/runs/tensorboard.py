"""A run's numbers and pictures as event files, which TensorBoard shows."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from dlc_jax.errors import InputError
from dlc_jax.utils.files import is_unsupported, make_folder, named

if TYPE_CHECKING:
    from dlc_jax.training import EpochReport


def check_library() -> None:
    """Sees that the library that writes event files is there.

    Raises:
      InputError: it is not installed.
    """
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"event files for TensorBoard need tensorboardX ({error}); run: pip install "
            "'dlc-jax[tensorboard]', or leave out --tensorboard"
        ) from error


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

        Raises:
          InputError: the folder can't be written to, or the library is not installed.
          OSError: there is no room, as by the methods.
        """
        check_library()
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        make_folder(folder)
        self._folder, self._images = folder, images
        self._summary, self._event = summary, event_pb2.Event
        # Not tensorboardX's own `SummaryWriter`, whose thread would end where the disk is full,
        # and leave whoever waits for it waiting.
        with named(self._folder):
            self._file = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(first, session_log=started)

    def close(self) -> None:
        """Ends the event file."""
        with named(self._folder):
            self._flush()
            # Its own `close` would first have the file be on the disk, once more.
            self._file._py_recordio_writer.close()

    def epoch(self, report: "EpochReport") -> None:
        """Adds an epoch's scalars."""
        last = int(report.state.step)
        first = last - len(report.losses) + 1
        with named(self._folder):
            for step, loss in enumerate(np.asarray(report.losses), first):
                self._scalar("train/loss", float(loss), step)
            self._scalar("test/loss", float(report.test.loss), last)
            self._scalar("test/error_percent", 100 * float(report.test.error), last)
            if report.epoch:
                rate = self._images / report.train_seconds
                self._scalar("train/images_per_second", rate, last)
            self._flush()

    def pictures(self, files: Sequence[Path], step: int) -> None:
        """Adds pictures by their files' names.

        Args:
          files: PNG files.
          step: after which they were drawn.
        """
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            shown = self._summary.image(file.stem, pixels, dataformats="HWC")
            with named(self._folder):
                self._write(step, summary=shown)
                self._flush()

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            # By then all is written; that it is on the disk, not every file system can tell.
            if not is_unsupported(error):
                raise

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._write(step, summary=self._summary.scalar(tag, value))

    def _write(self, step: int, **what: Any) -> None:
        self._file.write_event(self._event(step=step, wall_time=time.time(), **what))
