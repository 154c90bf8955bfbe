"""Checkpoints of runs, from which an interrupted run resumes to bit-identical results.

Orbax writes each checkpoint in the background to a temporary folder, and renames it when it is
complete. A checkpoint has a fingerprint of its arrays; a damaged one is deleted, and the previous
one is used.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import xxhash

from dlc_jax.errors import InputError, one_line
from dlc_jax.training import Callback, Metrics, Progress, WeightedSum
from dlc_jax.utils import strict_json
from dlc_jax.utils.files import check_encodable, make_folder
from dlc_jax.utils.signals import defer_signals

Describe = Callable[[int], dict[str, Any]]


class CheckpointManager:
    """A folder with the newest checkpoints.

    It is a context manager, which waits at the end until the last checkpoint is written.
    """

    def __init__(
        self, folder: Path, max_to_keep: int, describe: Describe = lambda step: {}
    ) -> None:
        """Opens the folder, creates it if it is missing, and removes incomplete checkpoints.

        Args:
          folder: The folder.
          max_to_keep: Number of checkpoints to keep.
          describe: A function of the step that returns metadata of its checkpoint, as JSON. Values
            under "recipe" must not change when the run is resumed.
        """
        # Imported here because it takes a second.
        import orbax.checkpoint as orbax

        from dlc_jax.runs import checkpoint_arrays

        self._orbax, self._arrays, self._folder = orbax, checkpoint_arrays, folder
        check_encodable(folder)
        make_folder(folder)
        # The primary process saves alone, without waiting for others.
        primary_only = orbax.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="checkpoints",
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            # Otherwise, if the folder can't be created, saving waits for minutes.
            async_options=orbax.AsyncOptions(create_directories_asynchronously=False),
            create=False,
            multiprocessing_options=primary_only,
        )
        self._describe = describe
        # Orbax also raises the errors that it logs, so they would be printed twice.
        logging.getLogger("absl").addFilter(self._is_not_orbax)
        try:
            self._manager = orbax.CheckpointManager(folder.resolve(), options=options)
        except BaseException:
            logging.getLogger("absl").removeFilter(self._is_not_orbax)
            raise

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with defer_signals(), self._one_line_errors():
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(self._is_not_orbax)

    def _is_not_orbax(self, record: logging.LogRecord) -> bool:
        """Returns whether another library made a log record."""
        return "orbax" not in Path(record.pathname).parts

    def save(self, progress: Progress) -> None:
        """Starts to write a checkpoint in the background."""
        arrays = _arrays(progress)
        metadata = {
            "fingerprint": _fingerprint(arrays),
            "seconds": list(progress.seconds),
            **self._describe(progress.step),
        }
        args = self._orbax.args.Composite(
            arrays=self._arrays.ArraysSave(arrays), metadata=self._orbax.args.JsonSave(metadata)
        )
        with self._one_line_errors():
            self._manager.save(progress.step, args=args, force=True)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Converts errors in writing to an InputError of one line."""
        try:
            yield
        except Exception as error:  # libraries raise many types if a disk is full or read-only
            raise InputError(
                f"can't write a checkpoint in {str(self._folder)!r} ({one_line(error, 120)}); "
                "earlier checkpoints are complete: free some space, and resume the run"
            ) from error

    def restore_latest(
        self, state: Any, warn: Callable[[str], None] = lambda message: None
    ) -> Progress | None:
        """Restores the newest checkpoint that is not damaged; None if there is none.

        Args:
          state: A state of the same structure; its values don't matter.
          warn: Called with a message for each damaged checkpoint, which is deleted.

        Raises:
          InputError: The checkpoint belongs to another network or another recipe.
        """
        steps = sorted(self._manager.all_steps())
        while steps:
            step = steps.pop()
            try:
                return self._restore(step, state, warn)
            except InputError:
                raise
            except Exception as error:  # libraries raise many types for a damaged file
                action = "using the previous one" if steps else "there is no other: starting again"
                warn(f"the checkpoint of step {step} is damaged ({one_line(error, 120)}); {action}")
                self._manager.delete(step)
        return None

    def _restore(self, step: int, state: Any, warn: Callable[[str], None]) -> Progress:
        args = self._orbax.args.Composite(
            arrays=self._arrays.ArraysRestore(), metadata=self._orbax.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        arrays, metadata = restored.arrays, restored.metadata
        if _fingerprint(arrays) != metadata["fingerprint"]:
            raise ValueError("its arrays have changed")
        self._check_metadata(step, metadata, warn)
        try:
            return _progress(arrays, list(metadata["seconds"]), state)
        except KeyError as error:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} belongs to another "
                "network; resume it with the version that made it"
            ) from error

    def _check_metadata(
        self, step: int, metadata: dict[str, Any], warn: Callable[[str], None]
    ) -> None:
        """Warns if versions or data order changed; raises an InputError if the recipe did."""
        now = json.loads(strict_json.dumps(self._describe(step)))
        recipe = _differences(metadata.get("recipe", {}), now.get("recipe", {}))
        if recipe:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} belongs to another "
                f"recipe: {'; '.join(recipe)}; use that recipe, or start a new run"
            )
        others = _differences(metadata.get("versions", {}), now.get("versions", {}))
        if others:
            warn(
                f"the checkpoint was made with {'; '.join(others)}: the results may differ from "
                "those without the interruption"
            )
        if any(
            metadata.get(name) != now.get(name) for name in ("key", "order") if name in metadata
        ):
            warn(
                "the order of the training examples has changed since the checkpoint: in this "
                "epoch, some may be used twice, and others not at all"
            )


class CheckpointCallback(Callback):
    """Saves checkpoints at regular intervals; works with any task, also without a run.

    It is a context manager, which saves the last checkpoint at the end.

    Args:
      manager: The folder in which checkpoints are saved.
      interval_seconds: Minimum time between checkpoints, which are saved at the end of a chunk of
        steps; 0 for one after every chunk.

    Example:
      >>> import tempfile
      >>> import optax
      >>> from flax import nnx
      >>> from dlc_jax import training
      >>> from dlc_jax.data import ArraySource
      >>> def loss(model, x):
      ...     outputs = model(x)
      ...     return (outputs**2).sum(-1), outputs
      >>> task = training.Supervised(
      ...     lambda key: nnx.Linear(2, 1, rngs=nnx.Rngs(key)), loss, optax.sgd(0.1)
      ... )
      >>> state = task.init(jax.random.key(0))
      >>> source = ArraySource(np.ones((6, 2), np.float32), batch_size=2)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with CheckpointManager(Path(folder), 3) as manager, CheckpointCallback(
      ...         manager
      ...     ) as saver:
      ...         progress = manager.restore_latest(state) or Progress(state)
      ...         records = training.train(
      ...             task, source, num_epochs=2, progress=progress, callbacks=[saver]
      ...         )
      ...     with CheckpointManager(Path(folder), 3) as manager:
      ...         manager.restore_latest(state).step
      6
    """

    def __init__(self, manager: CheckpointManager, interval_seconds: float = 10.0) -> None:
        self._manager, self._interval = manager, interval_seconds
        self._saved_step, self._saved_at = 0, time.monotonic()
        self._progress: Progress | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._progress is not None:
            self._save(self._progress)

    def on_train_begin(self, progress: Progress) -> None:
        """Remembers the first step, for which a checkpoint exists or is not needed."""
        self._progress, self._saved_step = progress, progress.step

    def on_chunk_end(self, progress: Progress) -> None:
        """Saves a checkpoint if the interval has passed."""
        self._progress = progress
        if time.monotonic() - self._saved_at >= self._interval:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        if progress.step == self._saved_step:
            return
        # A signal in between would leave the saved step unrecorded.
        with defer_signals():
            self._manager.save(progress)
            self._saved_step, self._saved_at = progress.step, time.monotonic()


def to_bytes(progress: Progress) -> bytes:
    """Converts progress to bytes, for other processes."""
    arrays = {**_arrays(progress), "seconds": np.array(progress.seconds, np.float64)}
    return safetensors.numpy.save(arrays)


def from_bytes(content: bytes, state: Any) -> Progress:
    """Restores the progress that `to_bytes` converted.

    Args:
      content: The bytes.
      state: A state of the same structure; its values don't matter.
    """
    arrays = safetensors.numpy.load(content)
    return _progress(arrays, arrays.pop("seconds").tolist(), state)


def _named_leaves(state: Any) -> dict[str, Any]:
    """Returns the state's arrays by their paths, in order."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Describes the values that differ."""
    return [
        f"{name} {before[name]!r}, not {now[name]!r}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _values(leaf: Any) -> np.ndarray:
    """Returns a NumPy copy of an array; PRNG keys are converted to integers."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
    """Returns the arrays of state and metrics, by name."""
    arrays = {name: _values(leaf) for name, leaf in _named_leaves(progress.state).items()}
    for name, sums in progress.metrics.items():
        for part, array in sums._asdict().items():
            arrays[f"{_METRIC}{name}/{part}"] = np.ascontiguousarray(array)
    return arrays


_METRIC = "metrics/"


def _progress(arrays: dict[str, np.ndarray], seconds: list[float], state: Any) -> Progress:
    """Inverts `_arrays`; raises a KeyError if `state` has another structure."""
    arrays = dict(arrays)
    metrics: Metrics = {}
    for name in [name for name in arrays if name.startswith(_METRIC)]:
        metric, part = name.removeprefix(_METRIC).rsplit("/", 1)
        before = metrics.get(metric, WeightedSum(np.zeros(0), np.zeros(0)))
        metrics[metric] = before._replace(**{part: arrays.pop(name)})
    expected = _named_leaves(state)
    specs = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name, leaf in expected.items():
        like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if specs.pop(name, None) != (like.shape, like.dtype):
            raise KeyError(name)
    if specs:
        raise KeyError(*specs)
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(arrays[name]), impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else jnp.asarray(arrays[name])
        for name, leaf in expected.items()
    ]
    return Progress(jax.tree.unflatten(jax.tree.structure(state), leaves), metrics, seconds)


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
