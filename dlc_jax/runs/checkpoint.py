"""Checkpoints, from which a run that was stopped at any moment continues as if it had not been.

Orbax writes each checkpoint beside its final place and renames it when it is complete, in the
background. Each carries a fingerprint of its arrays, so that a damaged one is recognised, and the
one before it is used instead.
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
    """A folder of checkpoints, of which the last few are kept.

    It is a context manager: on leaving it waits until the last one is written.
    """

    def __init__(self, folder: Path, keep: int, describe: Describe = lambda step: {}) -> None:
        """Opens the folder, creates it if it is missing, and removes incomplete checkpoints.

        Args:
          folder: folder.
          keep: number of checkpoints to keep, the newest ones.
          describe: further metadata of the checkpoint at a step, as JSON; whatever is under
            "recipe" must be the same when the run is resumed.
        """
        # Importing Orbax takes a second.
        import orbax.checkpoint as orbax

        from dlc_jax.runs import checkpoint_arrays

        self._orbax, self._arrays, self._folder = orbax, checkpoint_arrays, folder
        check_encodable(folder)
        make_folder(folder)
        # The primary process saves alone, and waits for no other.
        alone = orbax.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="checkpoints",
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            # Otherwise writers wait for minutes for a folder that can't be created.
            async_options=orbax.AsyncOptions(create_directories_asynchronously=False),
            create=False,
            multiprocessing_options=alone,
        )
        self._describe = describe
        # Orbax logs what it does; errors it raises as well.
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
        """Whether another library logs with the same logger."""
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
            arrays=self._arrays.ArraysSave(arrays), facts=self._orbax.args.JsonSave(metadata)
        )
        with self._one_line_errors():
            self._manager.save(progress.step, args=args, force=True)

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turns errors of writing into one line."""
        try:
            yield
        except Exception as error:  # whatever a full or read-only disk makes the libraries raise
            raise InputError(
                f"can't write a checkpoint in {str(self._folder)!r} ({one_line(error, 120)}); earlier "
                "checkpoints are complete: free some space, and resume the run"
            ) from error

    def newest(
        self, state: Any, warn: Callable[[str], None] = lambda message: None
    ) -> Progress | None:
        """The newest checkpoint that is not damaged, or None.

        Args:
          state: a state of the same structure; its values don't matter.
          warn: called with a line about each newer checkpoint that is damaged.

        Raises:
          InputError: it belongs to another network or another recipe.
        """
        steps = sorted(self._manager.all_steps())
        while steps:
            step = steps.pop()
            try:
                return self._restored(step, state, warn)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes the libraries raise
                instead = "using the one before" if steps else "there is no other: starting again"
                warn(
                    f"the checkpoint of step {step} is damaged ({one_line(error, 120)}); {instead}"
                )
                self._manager.delete(step)
        return None

    def _restored(self, step: int, state: Any, warn: Callable[[str], None]) -> Progress:
        args = self._orbax.args.Composite(
            arrays=self._arrays.ArraysRestore(), facts=self._orbax.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        arrays = found.arrays
        if _fingerprint(arrays) != found.facts["fingerprint"]:
            raise ValueError("its arrays are not those that were written")
        self._compare(step, found.facts, warn)
        try:
            return _progress(arrays, list(found.facts["seconds"]), state)
        except KeyError as error:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} is whole, but of another "
                "network; resume it with the version that made it"
            ) from error

    def _compare(self, step: int, metadata: dict[str, Any], warn: Callable[[str], None]) -> None:
        """Warns if versions or data order changed; raises an InputError if the recipe did."""
        now = json.loads(strict_json.dumps(self._describe(step)))
        recipe = _differences(metadata.get("recipe", {}), now.get("recipe", {}))
        if recipe:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} was made by another "
                f"recipe: {'; '.join(recipe)}; continue with that one, or start a new run"
            )
        others = _differences(metadata.get("versions", {}), now.get("versions", {}))
        if others:
            warn(
                f"the checkpoint was made by {'; '.join(others)}: the run may end with other "
                "numbers than it would have"
            )
        if any(
            metadata.get(name) != now.get(name) for name in ("key", "order") if name in metadata
        ):
            warn(
                "the training examples come in another order than when the checkpoint was made: "
                "some may be taken twice in this epoch, and others not at all"
            )


class Checkpointer(Callback):
    """Saves checkpoints while training goes on.

    It is a context manager, which saves a last checkpoint on leaving it.

    Args:
      manager: where checkpoints are saved.
      interval_seconds: a checkpoint is saved after this time, when the next chunk of steps ends;
        0 for every chunk.
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

    def on_start(self, progress: Progress) -> None:
        """Notes where training starts; there is a checkpoint of it, or nothing to save."""
        self._progress, self._saved_step = progress, progress.step

    def on_chunk(self, progress: Progress) -> None:
        """Saves a checkpoint, if it is time."""
        self._progress = progress
        if time.monotonic() - self._saved_at >= self._interval:
            self._save(progress)

    def _save(self, progress: Progress) -> None:
        if progress.step == self._saved_step:
            return
        # A signal must not come between saving and noting that it is saved.
        with defer_signals():
            self._manager.save(progress)
            self._saved_step, self._saved_at = progress.step, time.monotonic()


def to_bytes(progress: Progress) -> bytes:
    """Progress as bytes, for other processes."""
    arrays = {**_arrays(progress), "seconds": np.array(progress.seconds, np.float64)}
    return safetensors.numpy.save(arrays)


def from_bytes(content: bytes, state: Any) -> Progress:
    """The progress that `to_bytes` wrote.

    Args:
      content: bytes.
      state: a state of the same structure; its values don't matter.
    """
    arrays = safetensors.numpy.load(content)
    return _progress(arrays, arrays.pop("seconds").tolist(), state)


def _named_leaves(state: Any) -> dict[str, Any]:
    """The state's arrays by their paths, in their order."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What has another value, with both."""
    return [
        f"{name} {before[name]!r}, not {now[name]!r}"
        for name in sorted(before.keys() & now.keys())
        if before[name] != now[name]
    ]


def _is_key(leaf: Any) -> bool:
    return jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _values(leaf: Any) -> np.ndarray:
    """An array's values on the host; a PRNG key's are the integers it consists of."""
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
    """State and metrics as arrays by name."""
    arrays = {name: _values(leaf) for name, leaf in _named_leaves(progress.state).items()}
    for name, sums in progress.metrics.items():
        for part, array in sums._asdict().items():
            arrays[f"{_METRIC}{name}/{part}"] = np.ascontiguousarray(array)
    return arrays


_METRIC = "metrics/"


def _progress(arrays: dict[str, np.ndarray], seconds: list[float], state: Any) -> Progress:
    """The progress of `_arrays`; raises a KeyError if `state` has another structure."""
    arrays = dict(arrays)
    metrics: Metrics = {}
    for name in [name for name in arrays if name.startswith(_METRIC)]:
        metric, part = name.removeprefix(_METRIC).rsplit("/", 1)
        before = metrics.get(metric, WeightedSum(np.zeros(0), np.zeros(0)))  # type: ignore[arg-type]
        metrics[metric] = before._replace(**{part: arrays.pop(name)})
    expected = _named_leaves(state)
    kinds = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name, leaf in expected.items():
        like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if kinds.pop(name, None) != (like.shape, like.dtype):
            raise KeyError(name)
    if kinds:
        raise KeyError(*kinds)
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
