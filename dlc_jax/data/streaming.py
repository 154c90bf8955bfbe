"""Batches of datasets that do not fit into memory, read by Grain while training goes on.

Which records a batch consists of follows from its number alone, so that a stream can begin at
any step, and each of several processes reads its own rows only.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int, PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data import open_records
from dlc_jax.data.dataset import Examples
from dlc_jax.data.records import Places, Records
from dlc_jax.data.shuffling import order
from dlc_jax.errors import InputError

# Batches that are on their way to the device while another one is used.
_AHEAD = 2
# Grain's threads come to an epoch's first batches all at once.
_ORDERING = threading.Lock()


class PlacesByStep(Protocol):
    """Which records each batch consists of, such as a list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> Places: ...


def batches(
    records: Records,
    places: PlacesByStep,
    *,
    threads: int = 16,
    prefetch: int = 16,
    workers: int = 0,
) -> Generator[Examples, None, None]:
    """Batches of records in host memory, decoded ahead of time.

    Closing the generator ends its threads and processes, as reading to its end does.

    Args:
      records: what to read.
      places: for each batch, the places of its records in the order in which it has them.
      threads: how many batches are decoded at the same time in each process.
      prefetch: how many batches are decoded ahead of the one that is used.
      workers: processes that decode instead of this one. They import the main module, which
        must be one that can be imported, as for `multiprocessing`.

    Yields:
      Images uint8 [n, height, width, channels] and labels int32 [n] for each batch.

    Raises:
      InputError: a file is damaged.
    """
    if not flags.FLAGS.is_parsed():
        # Grain reads absl's flags, which a program that is not absl's own never parses.
        flags.FLAGS.mark_as_parsed()
    share = -(-prefetch // max(workers, 1))
    read = grain.MapDataset.source(places).map(records.read)
    options = grain.ReadOptions(num_threads=min(threads, share), prefetch_buffer_size=share)
    ahead = read.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=workers), worker_init_fn=_leave_accelerators
    )
    with closing(iter(ahead)) as batch:
        yield from batch


def _leave_accelerators(worker: int, workers: int) -> None:
    # A worker that computes an order would otherwise take memory of the training's device.
    jax.config.update("jax_platforms", "cpu")


def stream(
    source: str | Records,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    split: Literal["train", "test"] = "train",
    batch_size: int,
    key: PRNGKeyArray | None = None,
    start: int = 0,
    epochs: int | None = None,
    mesh: Mesh | None = None,
    image_size: int | None = None,
    threads: int = 16,
    prefetch: int = 16,
    workers: int = 0,
) -> Generator[Examples, None, None]:
    """Batches on the device, of a dataset that need not fit into memory.

    Epoch e consists of the records in the order `order(key, e, count)`, cut into batches, the
    last of which is smaller where the batch size does not divide. Closing the generator ends
    its threads and processes, as reading to its end does.

    Args:
      source: the name of a dataset, as for `dlc_jax.data.open_records`, or records.
      data_dir: where the dataset is; see there.
      split: which of its splits.
      batch_size: records a batch, over all processes.
      key: of the order; without one, records come as they stand.
      start: how many batches to leave out. What follows is what would have followed them.
      epochs: how many; without it, there is no end.
      mesh: the devices that share each batch evenly (see `dlc_jax.sharding.mesh`), maybe of several
        processes, each of which then reads the rows of its own devices only. An epoch's smaller
        last batch is on each of them as a whole. Without a mesh, batches are on the default
        device.
      image_size: height and width in pixels that images are brought to; see `open_records`.
      threads: how many batches are decoded at the same time in each process.
      prefetch: how many batches are decoded ahead of the one that is used.
      workers: processes that decode instead of this one; see `batches`.

    Yields:
      Images uint8 [n, height, width, channels] and labels int32 [n] for each batch.

    Raises:
      DatasetUnavailable: the dataset is not on this machine and can't be downloaded.
      InputError: a number is out of range, the mesh can't share a batch evenly, there is no
        such split, or the dataset can't be read, as told at `open_records`.
    """
    for name, value, least in (
        ("batch_size", batch_size, 1),
        ("start", start, 0),
        ("epochs", epochs or 0, 0),
        ("threads", threads, 0),
        ("prefetch", prefetch, 0),
        ("workers", workers, 0),
    ):
        _check(name, value, least)
    _check_shares(batch_size, mesh)
    if isinstance(source, str):
        source = _split(source, data_dir, split, image_size)
    _check("the number of records", len(source), 1)
    rows = _own_rows(batch_size, mesh)
    steps = _Steps(len(source), batch_size, key, start, epochs, rows)
    host = batches(source, steps, threads=threads, prefetch=prefetch, workers=workers)
    return _to_devices(host, steps, mesh)


def _check(name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"{name} is {value}; give {least} or more")


def _check_shares(batch_size: int, mesh: Mesh | None) -> None:
    if mesh is None or batch_size % mesh.size == 0:
        return
    below = batch_size // mesh.size * mesh.size
    nearest = [str(size) for size in (below, below + mesh.size) if size]
    raise InputError(
        f"{mesh.size} devices can't share batches of {batch_size} evenly; choose a batch_size "
        f"of {' or '.join(nearest)}"
    )


def _split(
    name: str, data_dir: str | os.PathLike[str] | None, split: str, image_size: int | None
) -> Records:
    if split not in ("train", "test"):
        raise InputError(f"there is no split {split!r}; choose train or test")
    records: Records = getattr(open_records(name, data_dir, image_size=image_size), split)
    return records


def _own_rows(batch_size: int, mesh: Mesh | None) -> Int[np.ndarray, " rows"]:
    """The rows of a batch that are on devices of this process."""
    every = np.arange(batch_size)
    if mesh is None:
        return every
    own = _shared(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([every[index] for index in own if index is not None]))


def _shared(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(sharding.BATCH))


@dataclass
class _Steps:
    """Which records each step reads in this process.

    Attributes:
      count: how many records there are.
      batch_size: how many a batch has, over all processes.
      key: of the order, if there is one.
      start: the first step.
      epochs: how many there are, if they end.
      rows: those of a batch that this process reads.
      orders: those of the latest epochs, the last of which may be needed again.
    """

    count: int
    batch_size: int
    key: PRNGKeyArray | None
    start: int
    epochs: int | None
    rows: Int[np.ndarray, " rows"]
    orders: dict[int, Places] = field(default_factory=dict)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.count // self.batch_size)

    def __len__(self) -> int:
        if self.epochs is None:
            return sys.maxsize
        return max(0, self.epochs * self.steps_per_epoch - self.start)

    def __getitem__(self, step: int, /) -> Places:
        epoch, batch = divmod(self.start + step, self.steps_per_epoch)
        first = batch * self.batch_size
        places = self._order(epoch)[first : first + self.batch_size]
        return places[self.rows] if len(places) == self.batch_size else places

    def size(self, step: int) -> int:
        """How many records the step's batch has, over all processes."""
        first = (self.start + step) % self.steps_per_epoch * self.batch_size
        return min(self.batch_size, self.count - first)

    def _order(self, epoch: int) -> Places:
        if self.key is None:
            return np.arange(self.count)
        with _ORDERING:
            if epoch not in self.orders:
                # Batches of the epoch before may still be asked for.
                latest = list(self.orders.items())[-1:]
                self.orders = dict(latest) | {epoch: np.asarray(order(self.key, epoch, self.count))}
            return self.orders[epoch]


def _to_devices(
    host: Generator[Examples, None, None], steps: _Steps, mesh: Mesh | None
) -> Generator[Examples, None, None]:
    """Batches on the device, where some are already on their way."""
    # Transfers go on in the background, so that it is enough to begin them early.
    begun: deque[Examples] = deque()
    with closing(host):
        for step, batch in enumerate(host):
            begun.append(_put(batch, steps.size(step), steps.batch_size, mesh))
            if len(begun) > _AHEAD:
                yield begun.popleft()
        while begun:
            yield begun.popleft()


def _put(batch: Examples, size: int, batch_size: int, mesh: Mesh | None) -> Examples:
    """A batch of `size` on the devices, of which `batch` holds what this process has read."""
    if mesh is None or size < batch_size:
        return sharding.transfer(batch, mesh)
    place = partial(jax.make_array_from_process_local_data, _shared(mesh))
    return Examples(*(place(array, (size, *array.shape[1:])) for array in batch))
