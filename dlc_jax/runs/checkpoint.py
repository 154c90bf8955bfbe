"""Where a run stands, so that one that was stopped at any moment goes on as if it had not been.

Orbax writes each checkpoint beside its final place and renames it when it is complete, in the
background. Each carries a fingerprint of its arrays: one that is damaged is passed over.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
import safetensors.numpy
import xxhash
from jaxtyping import Float

from dlc_jax.utils import strict_json
from dlc_jax.errors import InputError, one_line
from dlc_jax.utils.files import check_encodable, make_folder
from dlc_jax.utils.signals import defer_signals
from dlc_jax.training.state import TrainState

_NO_LOSSES = np.zeros(0, np.float32)
Describe = Callable[[int], dict[str, Any]]


@dataclass(frozen=True)
class Progress:
    """How far training has come.

    Attributes:
      state: of the network.
      losses: of all steps so far.
      seconds: how long each epoch took that has been begun, evaluation apart.
    """

    state: TrainState
    losses: Float[np.ndarray, " steps"]
    seconds: tuple[float, ...]

    @property
    def step(self) -> int:
        """How many updates have been made."""
        return int(self.state.step)


class Checkpoints:
    """A folder of checkpoints, of which the last few are kept.

    It is a context manager: on leaving it waits until the last one is written.
    """

    def __init__(self, folder: Path, keep: int, describe: Describe = lambda step: {}) -> None:
        """Opens the folder, makes it where it is missing, and clears what was half written.

        Args:
          folder: whose it is.
          keep: how many checkpoints stay, the newest ones.
          describe: what a checkpoint at a step tells of the training, besides how far it is, as
            JSON; under "recipe" what must be the same for those who go on with it.
        """
        # It takes a second to import, which only who trains needs.
        import orbax.checkpoint as orbax

        from dlc_jax.runs import checkpoint_arrays
        self._orbax, self._arrays, self._folder = orbax, checkpoint_arrays, folder
        check_encodable(folder)
        make_folder(folder)
        # Of several processes one alone keeps them, and waits for no other.
        alone = orbax.options.MultiprocessingOptions(
            primary_host=jax.process_index(),
            active_processes={jax.process_index()},
            barrier_sync_key_prefix="checkpoints",
        )
        options = orbax.CheckpointManagerOptions(
            max_to_keep=keep,
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
            # Whoever is to write into a folder that can't be made would wait for it for minutes.
            async_options=orbax.AsyncOptions(create_directories_asynchronously=False),
            create=False,
            multiprocessing_options=alone,
        )
        self._describe = describe
        # What Orbax does is no news to a person; what goes wrong, it raises.
        logging.getLogger("absl").addFilter(self._is_others)
        try:
            self._manager = orbax.CheckpointManager(folder.resolve(), options=options)
        except BaseException:
            logging.getLogger("absl").removeFilter(self._is_others)
            raise

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            with defer_signals(), self._told():
                self._manager.close()
        finally:
            logging.getLogger("absl").removeFilter(self._is_others)

    def _is_others(self, record: logging.LogRecord) -> bool:
        """Whether something else than Orbax logs with the logger that it uses, too."""
        return "orbax" not in Path(record.pathname).parts

    def save(self, progress: Progress) -> None:
        """Begins to write a checkpoint, and goes on meanwhile."""
        arrays = _arrays(progress)
        facts = {
            "fingerprint": _fingerprint(arrays),
            "seconds": list(progress.seconds),
            **self._describe(progress.step),
        }
        args = self._orbax.args.Composite(
            arrays=self._arrays.ArraysSave(arrays), facts=self._orbax.args.JsonSave(facts)
        )
        with self._told():
            self._manager.save(progress.step, args=args, force=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Has what goes wrong in writing end in one line."""
        try:
            yield
        except Exception as error:  # whatever a full or read-only disk makes the libraries raise
            raise InputError(
                f"can't write a checkpoint in {str(self._folder)!r} ({one_line(error, 120)}); what "
                "was written before is whole: make room, and resume the run"
            ) from error

    def newest(
        self, state: TrainState, complain: Callable[[str], None] = lambda message: None
    ) -> Progress | None:
        """The newest checkpoint that is whole, or None where there is none.

        Args:
          state: one of the same structure, of which the values do not matter.
          complain: told of each newer one that is damaged.

        Raises:
          InputError: it is of another network or another recipe.
        """
        steps = sorted(self._manager.all_steps())
        while steps:
            step = steps.pop()
            try:
                return self._restored(step, state, complain)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes the libraries raise
                instead = "taking the one before" if steps else "it is the last: beginning anew"
                complain(
                    f"the checkpoint of step {step} is damaged ({one_line(error, 120)}); {instead}"
                )
                self._manager.delete(step)
        return None

    def _restored(self, step: int, state: TrainState, complain: Callable[[str], None]) -> Progress:
        args = self._orbax.args.Composite(
            arrays=self._arrays.ArraysRestore(), facts=self._orbax.args.JsonRestore()
        )
        found = self._manager.restore(step, args=args)
        arrays = found.arrays
        if _fingerprint(arrays) != found.facts["fingerprint"]:
            raise ValueError("its arrays are not those that were written")
        self._compare(step, found.facts, complain)
        try:
            return _progress(arrays, tuple(found.facts["seconds"]), state)
        except KeyError as error:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} is whole, but of another "
                "network; resume it with the version that made it"
            ) from error

    def _compare(self, step: int, facts: dict[str, Any], complain: Callable[[str], None]) -> None:
        """Tells what is not as it was when a checkpoint was made."""
        now = json.loads(strict_json.dumps(self._describe(step)))
        recipe = _differences(facts.get("recipe", {}), now.get("recipe", {}))
        if recipe:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} was made by another "
                f"recipe: {'; '.join(recipe)}; go on with that one, or begin a new run"
            )
        others = _differences(facts.get("versions", {}), now.get("versions", {}))
        if others:
            complain(
                f"the checkpoint was made by {'; '.join(others)}: the run may end with other "
                "numbers than it would have"
            )
        if any(facts.get(name) != now.get(name) for name in ("key", "order") if name in facts):
            complain(
                "the training examples come in another order than when the checkpoint was made: "
                "some may be taken twice in this epoch, and others not at all"
            )


class Keeper:
    """Notes how far training is, and writes it down every so many seconds."""

    def __init__(
        self, checkpoints: Checkpoints, every: float, begun: Progress | None, steps: int
    ) -> None:
        """What to note it in.

        Args:
          checkpoints: where to.
          every: after so many seconds; 0 after each part of an epoch.
          begun: where training goes on from; None where it begins.
          steps: of an epoch.
        """
        self._checkpoints, self._every, self._steps = checkpoints, every, steps
        self._latest = begun
        # The step alone: what is written need not stay in memory.
        self._saved = begun.step if begun else None
        self._since = time.monotonic()

    def after_part(
        self, state: TrainState, losses: Float[np.ndarray, " steps"], seconds: float
    ) -> None:
        """To be told of each part of an epoch, as `dlc_jax.training.fit` does."""
        before = self._latest
        epoch = -(-int(state.step) // self._steps)
        spent = list(before.seconds if before else ())
        spent += [0.0] * (epoch - len(spent))
        spent[-1] += seconds
        past = before.losses[: (epoch - 1) * self._steps] if before else _NO_LOSSES
        self._latest = Progress(state, np.concatenate([past, losses]), tuple(spent))
        if time.monotonic() - self._since >= self._every:
            self.write()

    def write(self) -> None:
        """Writes down the latest that it was told of."""
        if self._latest is not None and self._latest.step != self._saved:
            # An interruption must not come between what is written and what is known of it.
            with defer_signals():
                self._checkpoints.save(self._latest)
                self._saved, self._since = self._latest.step, time.monotonic()


def to_bytes(progress: Progress) -> bytes:
    """Progress as bytes, to be sent to other processes."""
    arrays = {**_arrays(progress), "seconds": np.array(progress.seconds, np.float64)}
    return safetensors.numpy.save(arrays)


def from_bytes(content: bytes, state: TrainState) -> Progress:
    """The opposite of `to_bytes`.

    Args:
      content: what it returned.
      state: one of the same structure, of which the values do not matter.
    """
    arrays = safetensors.numpy.load(content)
    return _progress(arrays, tuple(arrays.pop("seconds").tolist()), state)


def _named(state: TrainState) -> dict[str, Any]:
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


def _numbers(leaf: Any) -> np.ndarray:
    """An array's values on the host; a PRNG key's are the integers it consists of."""
    # A copy, so that training can go on with its own.
    return np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
    state = {name: _numbers(leaf) for name, leaf in _named(progress.state).items()}
    return {**state, "losses": np.asarray(progress.losses)}


def _progress(
    arrays: dict[str, np.ndarray], seconds: tuple[float, ...], state: TrainState
) -> Progress:
    """What `_arrays` made arrays of; raises a KeyError where `state` has another structure."""
    losses, expected = arrays.pop("losses"), _named(state)
    kinds = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    for name, leaf in expected.items():
        like = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        if kinds.pop(name, None) != (like.shape, like.dtype):
            raise KeyError(name)
    if kinds:
        raise KeyError(*kinds)
    leaves = [
        jax.random.wrap_key_data(jax.numpy.asarray(arrays[name]), impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else jax.numpy.asarray(arrays[name])
        for name, leaf in expected.items()
    ]
    return Progress(jax.tree.unflatten(jax.tree.structure(state), leaves), losses, seconds)


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
