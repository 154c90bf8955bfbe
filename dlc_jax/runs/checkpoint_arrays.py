"""How Orbax writes and reads the arrays of a checkpoint: as one file in safetensors format.

Orbax's own way writes each array by itself, all at once. Where one fails, on a full disk or of a
damaged file, the others are left unfinished, and each of them prints a traceback.
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
    """Writes arrays by their names into a folder that Orbax makes, and reads them again."""

    async def async_save(self, directory: os.PathLike[str], args: "ArraysSave") -> list[Future]:
        """Begins to write; whoever waits for what it returns is told what went wrong."""

        async def write() -> None:
            self.save(directory, args)

        return [CommitFutureAwaitingContractedSignals(write(), name="arrays")]

    def save(self, directory: os.PathLike[str], args: "ArraysSave") -> None:
        """Writes, and returns when all is on the disk.

        Raises:
          OSError: there is no room, for one.
        """
        content = safetensors.numpy.save(args.arrays)
        with open(Path(directory) / _FILE, "wb") as file:
            file.write(content)
            sync(file)

    def restore(
        self, directory: os.PathLike[str], args: "ArraysRestore | None" = None
    ) -> dict[str, np.ndarray]:
        """Reads.

        Raises:
          OSError: the file is missing.
          safetensors.SafetensorError: it is damaged.
        """
        del args
        return safetensors.numpy.load((Path(directory) / _FILE).read_bytes())


@orbax.args.register_with_handler(ArraysHandler, for_save=True)
@dataclass
class ArraysSave(orbax.args.CheckpointArgs):
    """Asks for arrays to be written."""

    arrays: dict[str, np.ndarray]


@orbax.args.register_with_handler(ArraysHandler, for_restore=True)
@dataclass
class ArraysRestore(orbax.args.CheckpointArgs):
    """Asks for the arrays that were written."""
