"""Event files for TensorBoard."""

import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dlc_jax.errors import InputError
from dlc_jax.training import EpochRecord
from dlc_jax.utils.files import is_unsupported, make_folder, name_in_errors


def check_installed() -> None:
    """Raises an InputError if tensorboardX is not installed."""
    try:
        import tensorboardX  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"event files for TensorBoard need tensorboardX ({error}); run: pip install "
            "'dlc-jax[tensorboard]', or leave out --tensorboard"
        ) from error


class EventWriter:
    """Writes event files of a run, with the training step as horizontal axis.

    Scalars are `train/loss` for each step, and `test/loss`, `test/error_percent` and
    `train/images_per_second` for each epoch. Images are the run's pictures.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        """Creates a new event file.

        Args:
          folder: The folder.
          first_step: First step that will be written. TensorBoard discards this and later steps
            of earlier event files.

        Raises:
          InputError: The folder is not writable, or tensorboardX is not installed.
          OSError: The disk is full; also raised by the methods.
        """
        check_installed()
        from tensorboardX import event_file_writer, summary
        from tensorboardX.proto import event_pb2

        make_folder(folder)
        self._folder = folder
        self._summary, self._event = summary, event_pb2.Event
        # Not `SummaryWriter`: on a full disk its thread ends, and the program hangs.
        with name_in_errors(self._folder):
            self._file = event_file_writer.EventsWriter(str(folder / "events"), f".{os.getpid()}")
            started = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._write(first_step, session_log=started)

    def close(self) -> None:
        """Closes the event file."""
        with name_in_errors(self._folder):
            try:
                self._flush()
            finally:
                # On a full disk this fails as well, but closes the file. Unlike the writer's own
                # `close`, it has no second fsync.
                with suppress(OSError):
                    self._file._py_recordio_writer.close()

    def epoch(self, record: EpochRecord) -> None:
        """Writes an epoch's scalars."""
        first_step = record.step - len(record.losses) + 1
        with name_in_errors(self._folder):
            for step, loss in enumerate(record.losses, first_step):
                self._scalar("train/loss", float(loss), step)
            self._scalar("test/loss", float(record.test["loss"]), record.step)
            self._scalar("test/error_percent", 100 * float(record.test["error"]), record.step)
            if record.epoch:
                rate = record.num_examples / record.train_seconds
                self._scalar("train/images_per_second", rate, record.step)
            self._flush()

    def pictures(self, files: Sequence[Path], step: int) -> None:
        """Writes pictures, with the stems of their file names as tags.

        Args:
          files: PNG files.
          step: Training step.
        """
        for file in files:
            with Image.open(file) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            shown = self._summary.image(file.stem, pixels, dataformats="HWC")
            with name_in_errors(self._folder):
                self._write(step, summary=shown)
                self._flush()

    def _flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            # The data is written, but the file system has no fsync.
            if not is_unsupported(error):
                raise

    def _scalar(self, tag: str, value: float, step: int) -> None:
        self._write(step, summary=self._summary.scalar(tag, value))

    def _write(self, step: int, **fields: Any) -> None:
        self._file.write_event(self._event(step=step, wall_time=time.time(), **fields))
