"""What `fit` runs: a part of an epoch, and a test, on data in memory or on data that streams in."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax import sharding
from dlc_jax.data.augmentation import Augmentation, Changes
from dlc_jax.data.dataset import Dataset, Examples, Normalise
from dlc_jax.data.records import RecordDataset, Records
from dlc_jax.training.epoch import changes_of_epoch, evaluate, train_batch, train_epoch
from dlc_jax.training.state import TrainState
from dlc_jax.training.step import Metrics

# Images of a test that streams in, at a time.
_TEST_BATCH = 500
# So many steps may wait for the device; with more, batches would pile up in its memory.
_WAITING = 2


@dataclass(frozen=True)
class Task:
    """What is trained, and how.

    Attributes:
      state: the network to begin with.
      normalise: what to apply to the images.
      key: of order and augmentation; see `train_epoch`.
      batch_size: examples an update.
      mesh: the devices.
      how: further arguments of `train_epoch`: `augmentation`, `label_smoothing`.
      looks: further arguments of `evaluate`: `mirrored`, `translated`.
    """

    state: TrainState
    normalise: Normalise
    key: PRNGKeyArray | None
    batch_size: int
    mesh: Mesh | None
    how: dict[str, Any]
    looks: dict[str, Any]


class Programs(Protocol):
    """Compiled programs, with all that they need on the devices.

    Attributes:
      state: the network to begin with, on the devices.
      compile_seconds: how long compiling took.
    """

    state: TrainState
    compile_seconds: float

    def train(self, state: TrainState, examples: int) -> tuple[TrainState, Metrics]:
        """Trains on so many of an epoch's examples, from where the state stands in it."""
        ...

    def test(
        self, state: TrainState
    ) -> tuple[Float[np.ndarray, "examples classes"], Int[np.ndarray, " examples"], Metrics]:
        """The logits and labels of the test split, with their mean loss and error."""
        ...


def compiled(task: Task, dataset: Dataset | RecordDataset, parts: Sequence[int]) -> Programs:
    """The programs for a dataset.

    Args:
      task: what is trained on it.
      dataset: in memory, or on disk.
      parts: into how many examples each an epoch is divided, one after the other.
    """
    if isinstance(dataset, RecordDataset):
        return _Streamed(task, dataset)
    return _InMemory(task, dataset, parts)


class _InMemory:
    def __init__(self, task: Task, dataset: Dataset, parts: Sequence[int]) -> None:
        arguments = task.state, dataset.train, dataset.test, task.normalise, task.key
        placed = sharding.replicate(arguments, task.mesh)
        self.state, self._train, self._test, self._normalise, self._key = placed
        self._labels = np.asarray(dataset.test.labels)
        start = time.perf_counter()
        self._programs = {
            examples: jax.jit(
                partial(
                    train_epoch,
                    batch_size=task.batch_size,
                    mesh=task.mesh,
                    examples=None if len(parts) == 1 else examples,
                    **task.how,
                )
            )
            .lower(self.state, self._train, self._normalise, key=self._key)
            .compile()
            for examples in dict.fromkeys(parts)
        }
        self._evaluate = evaluate.lower(
            self.state, self._test, self._normalise, mesh=task.mesh, **task.looks
        ).compile()
        self.compile_seconds = time.perf_counter() - start

    def train(self, state: TrainState, examples: int) -> tuple[TrainState, Metrics]:
        return self._programs[examples](state, self._train, self._normalise, key=self._key)

    def test(self, state: TrainState) -> tuple[np.ndarray, np.ndarray, Metrics]:
        logits, metrics = self._evaluate(state, self._test, self._normalise)
        return logits, self._labels, metrics


class _Streamed:
    def __init__(self, task: Task, dataset: RecordDataset) -> None:
        self._task, self._dataset = task, dataset
        arguments = task.state, task.normalise, task.key
        self.state, self._normalise, self._key = sharding.replicate(arguments, task.mesh)
        self._shape = (len(dataset.train), *dataset.image_shape)
        self._batches: Iterator[Examples] | None = None
        self._epoch, self._changes = -1, None
        start = time.perf_counter()
        augmentation = task.how.get("augmentation", Augmentation())
        self._augmentation = augmentation if task.key is not None else Augmentation()
        self._programs = {
            size: train_batch.lower(
                self.state,
                self._abstract(size),
                self._normalise,
                self._changes_of(0),
                batch_size=task.batch_size,
                mesh=task.mesh,
                **task.how,
            ).compile()
            for size in self._sizes()
        }
        self.compile_seconds = time.perf_counter() - start

    def _sizes(self) -> set[int]:
        """Of an epoch's batches."""
        count, most = self._shape[0], self._task.batch_size
        return {size for size in (min(most, count), count % most) if size}

    def _abstract(self, size: int) -> Any:
        """A batch without its values."""
        full = size == self._task.batch_size
        place = sharding.of_batch(self._task.mesh, shared=full)
        images = jax.ShapeDtypeStruct((size, *self._shape[1:]), jnp.uint8, sharding=place)
        labels = jax.ShapeDtypeStruct((size,), jnp.int32, sharding=place)
        return Examples(images, labels)  # type: ignore[arg-type]

    def _changes_of(self, epoch: int) -> Changes | None:
        if self._augmentation == Augmentation():
            return None
        if epoch != self._epoch:
            how = {"augmentation": self._augmentation, "mesh": self._task.mesh}
            self._changes = changes_of_epoch(self._key, epoch, self._shape, **how)
            self._epoch = epoch
        return self._changes

    def train(self, state: TrainState, examples: int) -> tuple[TrainState, Metrics]:
        step = int(state.step)
        size = self._task.batch_size
        if self._batches is None:
            how = {"key": self._task.key, "start": step}
            self._batches = _stream(self._dataset.train, size, self._task.mesh, **how)
        epoch = step // -(-self._shape[0] // size)
        steps = []
        for _ in range(-(-examples // size)):
            batch = next(self._batches)
            run = self._programs[len(batch.labels)]
            state, metrics = run(state, batch, self._normalise, self._changes_of(epoch))
            steps.append(metrics)
            jax.block_until_ready(steps[-_WAITING:][0])
        return state, jax.tree.map(lambda *values: np.array(values), *steps)

    def test(self, state: TrainState) -> tuple[np.ndarray, np.ndarray, Metrics]:
        how = {"mesh": self._task.mesh, **self._task.looks}
        return evaluate_records(state, self._dataset.test, self._normalise, **how)


def evaluate_records(
    state: TrainState,
    records: Records,
    normalise: Normalise,
    *,
    mesh: Mesh | None = None,
    **looks: Any,
) -> tuple[Float[np.ndarray, "examples classes"], Int[np.ndarray, " examples"], Metrics]:
    """`evaluate` of examples that stream in.

    Args:
      state: the network, on the devices of the mesh.
      records: the examples.
      normalise: the same as in training.
      mesh: devices to spread each batch over.
      **looks: further arguments of `evaluate`: `mirrored`, `translated`.

    Returns:
      The logits and labels of all examples, with their mean loss and error.
    """
    devices = 1 if mesh is None else mesh.size
    size = max(_TEST_BATCH // devices, 1) * devices
    logits, labels, sums = [], [], np.zeros(2)
    for batch in _stream(records, size, mesh, epochs=1):
        some, metrics = evaluate(state, batch, normalise, batch_size=size, mesh=mesh, **looks)
        logits.append(np.asarray(some))
        labels.append(np.asarray(sharding.whole(batch.labels, mesh)))
        sums += len(some) * np.array([float(value) for value in metrics])
    loss, error = jnp.float32(sums / len(records))
    return np.concatenate(logits), np.concatenate(labels), Metrics(loss, error)


def _stream(records: Records, batch_size: int, mesh: Mesh | None, **how: Any) -> Iterator[Examples]:
    # Grain takes long to import.
    from dlc_jax.data.streaming import stream

    return stream(records, batch_size=batch_size, mesh=mesh, **how)
