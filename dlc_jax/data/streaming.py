"""Datasets that do not fit into memory, read by Grain while training runs.

The records of a batch depend only on its number, so that a stream can begin at any step, and each
of several processes reads only its own rows.
"""

import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Int, PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data.batching import Batch, BatchPlan
from dlc_jax.data.catalog import open_records
from dlc_jax.data.dataset import Examples
from dlc_jax.data.records import Indices, Records
from dlc_jax.data.shuffling import epoch_permutation
from dlc_jax.errors import InputError

_T = TypeVar("_T")

# Number of chunks transferred ahead of time.
_PREFETCH_TO_DEVICE = 2
# Maximum chunk size in bytes; a chunk has at least one batch.
_MAX_CHUNK_BYTES = 2**25
# Grain's threads request an epoch's order at the same time, which is computed only once.
_ORDER_LOCK = threading.Lock()


class IndicesByStep(Protocol):
    """The indices of each batch's records, such as a list of arrays."""

    def __len__(self) -> int: ...

    def __getitem__(self, step: int, /) -> Indices: ...


def batches(
    records: Records,
    indices: IndicesByStep,
    *,
    num_threads: int = 16,
    prefetch_buffer_size: int = 16,
    num_workers: int = 0,
) -> Generator[Examples, None, None]:
    """Yields batches of records in host memory, decoded ahead of time.

    Closing the generator, or reading it to its end, ends its threads and processes.

    Args:
      records: The records to read.
      indices: For each batch, the indices of its records.
      num_threads: Number of batches decoded at the same time in each process.
      prefetch_buffer_size: Number of batches decoded in advance.
      num_workers: Number of processes that decode instead of this one. They import the main module,
        as with `multiprocessing`.

    Yields:
      Images uint8 [batch, height, width, channels] and labels int32 [batch].

    Raises:
      InputError: A file is damaged.
    """
    if not flags.FLAGS.is_parsed():
        # Grain reads absl's flags, which only absl apps parse.
        flags.FLAGS.mark_as_parsed()
    share = -(-prefetch_buffer_size // max(num_workers, 1))
    read = grain.MapDataset.source(indices).map(records.read)
    options = grain.ReadOptions(num_threads=min(num_threads, share), prefetch_buffer_size=share)
    ahead = read.to_iter_dataset(options).mp_prefetch(
        grain.MultiprocessingOptions(num_workers=num_workers), worker_init_fn=_leave_accelerators
    )
    with closing(iter(ahead)) as batch:
        yield from batch


def _leave_accelerators(worker: int, workers: int) -> None:
    # A worker that computes an order would otherwise take memory of the training device.
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
    num_threads: int = 16,
    prefetch_buffer_size: int = 16,
    num_workers: int = 0,
) -> Generator[Batch, None, None]:
    """Yields batches on the device, of a dataset that need not fit into memory.

    An epoch takes the records in the order `epoch_permutation(key, epoch, num_examples)`. All
    batches have the same size: if needed, the epoch's last batch, or each batch on several
    devices, is padded with examples of weight 0. Closing the generator, or reading it to its end,
    ends its threads and processes.

    Args:
      source: Name of a dataset, as for `dlc_jax.data.open_records`, or records.
      data_dir: Folder of prepared datasets; see `dlc_jax.data.load`.
      split: The split, "train" or "test".
      batch_size: Batch size, over all processes.
      key: The run's key, for shuffling; without one, records keep their order.
      start: Number of batches to skip.
      epochs: Number of epochs; by default unlimited.
      mesh: Devices that share each batch, of one or several processes; each process reads only the
        rows of its own devices.
      image_size: Height and width of the images in pixels; see `open_records`.
      num_threads: Number of batches decoded at the same time in each process.
      prefetch_buffer_size: Number of batches decoded in advance.
      num_workers: Number of processes that decode instead of this one; see `batches`.

    Yields:
      Batches of `dlc_jax.data.Examples`, with uint8 images.

    Raises:
      DatasetUnavailableError: The dataset is not on this machine and can't be downloaded.
      InputError: A number is out of range, the split is unknown, or the dataset can't be read (see
        `open_records`).

    Example:
      >>> batches = stream("mnist-5k", batch_size=100)
      >>> next(batches).examples.images.shape
      (100, 28, 28, 1)
      >>> batches.close()
    """
    for name, value in (("start", start), ("epochs", epochs or 0)):
        if value < 0:
            raise InputError(f"{name} is {value}; give 0 or more")
    if isinstance(source, str):
        source = _split(source, data_dir, split, image_size)
    streamed = StreamingSource(
        source,
        batch_size,
        key=key,
        mesh=mesh,
        num_threads=num_threads,
        prefetch_buffer_size=prefetch_buffer_size,
        num_workers=num_workers,
    )
    stop = sys.maxsize if epochs is None else epochs * streamed.plan.steps_per_epoch
    return streamed.batches(start, stop)


def _split(
    name: str, data_dir: str | os.PathLike[str] | None, split: str, image_size: int | None
) -> Records:
    if split not in ("train", "test"):
        raise InputError(f"split is {split!r}; it must be train or test")
    records: Records = getattr(open_records(name, data_dir, image_size=image_size), split)
    return records


class StreamingSource:
    """A `dlc_jax.data.Source` of records that are read while training runs.

    Args:
      records: The records to read.
      batch_size: Batch size, over all processes.
      key: The run's key, for shuffling; without one, records keep their order.
      mesh: Devices that share each batch.
      num_threads: Number of batches decoded at the same time in each process.
      prefetch_buffer_size: Number of batches decoded in advance.
      num_workers: Number of processes that decode instead of this one; see `batches`.

    Raises:
      InputError: A number is out of range.
    """

    def __init__(
        self,
        records: Records,
        batch_size: int,
        *,
        key: PRNGKeyArray | None = None,
        mesh: Mesh | None = None,
        num_threads: int = 16,
        prefetch_buffer_size: int = 16,
        num_workers: int = 0,
    ) -> None:
        for name, value, minimum in (
            ("batch_size", batch_size, 1),
            ("num_threads", num_threads, 0),
            ("prefetch_buffer_size", prefetch_buffer_size, 0),
            ("num_workers", num_workers, 0),
            ("the number of records", len(records), 1),
        ):
            if value < minimum:
                raise InputError(f"{name} is {value}; give {minimum} or more")
        batch_size = min(batch_size, len(records))
        self.plan = BatchPlan(len(records), batch_size, 1 if mesh is None else mesh.size)
        self._records, self._key, self.mesh = records, key, mesh
        self._read = partial(
            batches,
            num_threads=num_threads,
            prefetch_buffer_size=prefetch_buffer_size,
            num_workers=num_workers,
        )
        image_bytes = int(np.prod(records.image_shape))
        self._chunk_steps = max(1, _MAX_CHUNK_BYTES // (self.plan.padded_batch_size * image_bytes))

    def batches(self, start: int, stop: int) -> Generator[Batch, None, None]:
        """Yields single batches, from step `start` to step `stop`."""
        for chunk in self._stacked(start, stop, ((step, 1) for step in range(start, stop))):
            yield jax.tree.map(lambda array: array[0], chunk)

    def chunks(self, start: int, stop: int, max_steps: int | None = None) -> Iterator[Batch]:
        """See `Source.chunks`."""
        cuts = self.plan.chunks(start, stop, max_steps, self._chunk_steps)
        return self._stacked(start, stop, cuts)

    def sizes(self, start: int, stop: int, max_steps: int | None = None) -> Sequence[int]:
        """See `Source.sizes`."""
        # Chunks are the same in every epoch.
        stop = min(stop, start + 2 * self.plan.steps_per_epoch)
        cuts = self.plan.chunks(start, stop, max_steps, self._chunk_steps)
        return list(dict.fromkeys(size for _, size in cuts))

    def abstract(self, num_steps: int) -> Batch:
        """See `Source.abstract`."""
        rows = (num_steps, self.plan.padded_batch_size)

        def abstract(shape: tuple[int, ...], dtype: Any) -> Any:
            where = sharding.batch_sharding(self.mesh, axis=1, ndim=len(shape))
            return jax.ShapeDtypeStruct(shape, dtype, sharding=where)

        examples = Examples(
            abstract((*rows, *self._records.image_shape), np.uint8), abstract(rows, np.int32)
        )
        mask = abstract(rows, np.float32) if self.plan.is_padded else None
        return Batch(examples, abstract(rows, np.int32), abstract((num_steps,), np.int32), mask)

    def _stacked(
        self, start: int, stop: int, cuts: Iterable[tuple[int, int]]
    ) -> Generator[Batch, None, None]:
        """Yields chunks on the devices, transferred ahead of time in the background."""
        rows = _own_rows(self.plan.padded_batch_size, self.mesh)
        indices = _Indices(self.plan, self._key, start, stop, rows)
        with closing(self._read(self._records, indices)) as host:

            def chunk(first: int, count: int) -> Batch:
                read = [next(host) for _ in range(count)]
                examples = Examples(*(np.stack(arrays) for arrays in zip(*read, strict=True)))
                steps = [indices.of_step(step) for step in range(first, first + count)]
                index = np.stack([index for index, _ in steps])
                mask = np.stack([w for _, w in steps]) if self.plan.is_padded else None
                epoch = first // self.plan.steps_per_epoch
                whole = Batch(None, index, np.full(count, epoch, np.int32), mask)
                whole = sharding.put_batch(whole, self.mesh, axis=1)
                put = partial(_put_rows, mesh=self.mesh, width=self.plan.padded_batch_size)
                return Batch(jax.tree.map(put, examples), whole.index, whole.epoch, whole.mask)

            yield from _in_advance((partial(chunk, *cut) for cut in cuts), _PREFETCH_TO_DEVICE)


def _in_advance(makers: Iterable[Callable[[], _T]], count: int) -> Generator[_T, None, None]:
    """Yields the results of the functions, which are called up to `count` ahead."""
    made: deque[_T] = deque()
    for make in makers:
        made.append(make())
        if len(made) > count:
            yield made.popleft()
    yield from made


def _put_rows(array: np.ndarray, mesh: Mesh | None, width: int) -> jax.Array:
    """A chunk's array on the devices, from this process's rows of it."""
    if mesh is None:
        return jax.device_put(array)
    where = sharding.batch_sharding(mesh, axis=1, ndim=array.ndim)
    shape = (len(array), width, *array.shape[2:])
    return jax.make_array_from_process_local_data(where, array, shape)


def _own_rows(width: int, mesh: Mesh | None) -> Int[np.ndarray, " rows"]:
    """The rows of a batch that are on devices of this process."""
    every = np.arange(width)
    if mesh is None:
        return every
    own = sharding.batch_sharding(mesh).addressable_devices_indices_map((width,)).values()
    return np.unique(np.concatenate([every[index] for index in own if index is not None]))


@dataclass
class _Indices:
    """The records that each step reads in this process.

    Attributes:
      plan: How epochs are divided into batches.
      key: The run's key for shuffling; None for the records' own order.
      start: First step.
      stop: Step before which to stop.
      rows: The rows of a batch that this process reads.
      orders: Orders of the latest epochs, the last of which may be needed again.
    """

    plan: BatchPlan
    key: PRNGKeyArray | None
    start: int
    stop: int
    rows: Int[np.ndarray, " rows"]
    orders: dict[int, Indices] = field(default_factory=dict)

    def __len__(self) -> int:
        return max(0, self.stop - self.start)

    def __getitem__(self, step: int, /) -> Indices:
        index, _ = self.of_step(self.start + step)
        return index[self.rows]

    def of_step(self, step: int) -> tuple[Int[np.ndarray, " batch"], Any]:
        """Indices and mask of a whole batch."""
        epoch, within = divmod(step, self.plan.steps_per_epoch)
        positions, mask = self.plan.positions(np.array([within]))
        index = self._order(epoch)[positions[0]]
        return index.astype(np.int32), None if mask is None else mask[0]

    def _order(self, epoch: int) -> Indices:
        num_examples = self.plan.num_examples
        if self.key is None:
            return np.arange(num_examples)
        with _ORDER_LOCK:
            if epoch not in self.orders:
                # Batches of the previous epoch may still be requested.
                latest = list(self.orders.items())[-1:]
                order = np.asarray(epoch_permutation(self.key, epoch, num_examples))
                self.orders = {**dict(latest), epoch: order}
            return self.orders[epoch]
