"""Where a run stands, so that one that was stopped at any moment goes on as if it had not been.

Orbax writes each checkpoint beside its final place and renames it when it is complete, in the
background. Each carries a fingerprint of its arrays: one that is damaged is passed over.
"""

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
import xxhash
from jaxtyping import Float

from dlc_jax.errors import InputError
from dlc_jax.interruption import deferred
from dlc_jax.training.state import TrainState

_NO_LOSSES = np.zeros(0, np.float32)


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

    def __init__(self, folder: Path, keep: int) -> None:
        """Opens the folder, makes it where it is missing, and clears what was half written.

        Args:
          folder: whose it is.
          keep: how many checkpoints stay, the newest ones.
        """
        # It takes a second to import, which only who trains needs.
        import orbax.checkpoint as orbax

        # What it does is no news to a person; what goes wrong, it raises.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._orbax, self._folder = orbax, folder
        options = orbax.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = orbax.CheckpointManager(folder.resolve(), options=options)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with deferred(), self._told():
            self._manager.close()

    def save(self, progress: Progress) -> None:
        """Begins to write a checkpoint, and goes on meanwhile."""
        arrays = _arrays(progress)
        facts = {"fingerprint": _fingerprint(arrays), "seconds": list(progress.seconds)}
        save = self._orbax.args
        args = save.Composite(arrays=save.StandardSave(arrays), facts=save.JsonSave(facts))
        with self._told():
            self._manager.save(progress.step, args=args, force=True)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Has what goes wrong in writing end in one line."""
        try:
            yield
        except Exception as error:  # whatever a full or read-only disk makes the libraries raise
            reason = " ".join(str(error).split())[:160] or type(error).__name__
            raise InputError(
                f"can't write a checkpoint in {str(self._folder)!r} ({reason}); what was written "
                "before is whole: make room, and resume the run"
            ) from error

    def newest(
        self, state: TrainState, complain: Callable[[str], None] = lambda message: None
    ) -> Progress | None:
        """The newest checkpoint that is whole, or None where there is none.

        Args:
          state: one of the same structure, of which the values do not matter.
          complain: told of each newer one that is damaged.

        Raises:
          InputError: it is of another network.
        """
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restored(step, state)
            except InputError:
                raise
            except Exception as error:  # whatever a damaged file makes the libraries raise
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                complain(
                    f"the checkpoint of step {step} is damaged ({reason}); taking an earlier one"
                )
                self._manager.delete(step)
        return None

    def _restored(self, step: int, state: TrainState) -> Progress:
        restore = self._orbax.args
        found = self._manager.restore(
            step,
            args=restore.Composite(arrays=restore.StandardRestore(), facts=restore.JsonRestore()),
        )
        arrays = {name: np.asarray(array) for name, array in found.arrays.items()}
        if _fingerprint(arrays) != found.facts["fingerprint"]:
            raise ValueError("its arrays are not those that were written")
        losses = arrays.pop("losses")
        expected = _named(state)
        if {name: (a.shape, a.dtype) for name, a in arrays.items()} != {
            name: (a.shape, a.dtype) for name, a in expected.items()
        }:
            raise InputError(
                f"the checkpoint of step {step} in {str(self._folder)!r} is whole, but of another "
                "network; resume it with the version that made it"
            )
        leaves = [jax.numpy.asarray(arrays[name]) for name in expected]
        return Progress(
            jax.tree.unflatten(jax.tree.structure(state), leaves),
            losses,
            tuple(found.facts["seconds"]),
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
        self._latest, self._saved = begun, begun
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
        if self._latest is not None and self._latest is not self._saved:
            # An interruption must not come between what is written and what is known of it.
            with deferred():
                self._checkpoints.save(self._latest)
                self._saved, self._since = self._latest, time.monotonic()


def _named(state: TrainState) -> dict[str, Any]:
    """The state's arrays by their paths, in their order."""
    leaves = jax.tree_util.tree_flatten_with_path(state)[0]
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def _arrays(progress: Progress) -> dict[str, np.ndarray]:
    # Copies on the host, so that training can go on with its own.
    state = {name: np.array(leaf) for name, leaf in _named(progress.state).items()}
    return {**state, "losses": np.asarray(progress.losses)}


def _fingerprint(arrays: dict[str, np.ndarray]) -> str:
    digest = xxhash.xxh3_128()
    for name in sorted(arrays):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(arrays[name]).tobytes())
    return digest.hexdigest()
