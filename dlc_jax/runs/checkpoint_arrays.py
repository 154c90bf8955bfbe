"""Orbax handler that stores the arrays of a checkpoint in one safetensors file.

Orbax's own handlers write each array separately and concurrently. If one fails, for example on a
full disk, the others are left unfinished, and each prints a traceback.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orbax.checkpoint as orbax
import safetensors.numpy
from orbax.checkpoint.future import CommitFutureAwaitingContractedSignals, Future

from dlc_jax.utils.files import sync

_FILE = "arrays.safetensors"


class ArraysHandler(orbax.AsyncCheckpointHandler):
    """Writes named arrays to a folder made by Orbax, and reads them."""

    async def async_save(self, directory: os.PathLike[str], args: "ArraysSave") -> list[Future]:
        """Starts writing; the returned futures raise the errors of writing."""

        async def write() -> None:
            self.save(directory, args)

        return [CommitFutureAwaitingContractedSignals(write(), name="arrays")]

    def save(self, directory: os.PathLike[str], args: "ArraysSave") -> None:
        """Writes the arrays to the disk.

        Raises:
          OSError: For example, the disk is full.
        """
        content = safetensors.numpy.save(args.arrays)
        with open(Path(directory) / _FILE, "wb") as file:
            file.write(content)
            sync(file)

    def restore(
        self, directory: os.PathLike[str], args: "ArraysRestore | None" = None
    ) -> dict[str, np.ndarray]:
        """Reads the arrays.

        Raises:
          OSError: The file is missing.
          safetensors.SafetensorError: The file is damaged.
        """
        del args
        return safetensors.numpy.load((Path(directory) / _FILE).read_bytes())


@orbax.args.register_with_handler(ArraysHandler, for_save=True)
@dataclass
class ArraysSave(orbax.args.CheckpointArgs):
    """Arguments for saving."""

    arrays: dict[str, np.ndarray]


@orbax.args.register_with_handler(ArraysHandler, for_restore=True)
@dataclass
class ArraysRestore(orbax.args.CheckpointArgs):
    """Arguments for restoring."""
