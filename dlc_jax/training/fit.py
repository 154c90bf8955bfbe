"""The loop that a person watches: epochs, times, and what to do when it goes wrong."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray

from dlc_jax.data.dataset import Dataset, Normalise
from dlc_jax.data.records import RecordDataset
from dlc_jax.errors import InputError
from dlc_jax.sharding.mesh import replicate
from dlc_jax.training.epoch import evaluate, train_ensemble
from dlc_jax.training.programs import Task, compiled
from dlc_jax.training.state import TrainState, unstack
from dlc_jax.training.step import Metrics

# Short enough for Ctrl-C to seem immediate, long enough to cost nothing.
_POLL_SECONDS = 0.005
_NO_LOSSES = np.zeros(0, np.float32)


class Diverged(InputError):
    """A loss, or a parameter or statistic of the network, is no longer finite."""

    raised_on_all_processes = True


class NoRoom(InputError):
    """The device's memory does not hold so many networks in training."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    Attributes:
      epoch: 1 for the first; 0 for the network before training, which has no losses.
      state: the network after it.
      losses: the training loss of each step, in nats.
      test: loss and error on the test split.
      test_logits: the network's output for each test image.
      test_labels: the right classes of these.
      train_seconds: how long the epoch took, evaluation and compilation apart; of networks
        trained together, each one's share.
      test_seconds: how long the evaluation took, likewise.
      compile_seconds: how long compiling took; the same in every report.
    """

    epoch: int
    state: TrainState
    losses: Float[np.ndarray, " steps"]
    test: Metrics
    test_logits: Float[np.ndarray, "examples classes"]
    test_labels: Int[np.ndarray, " examples"]
    train_seconds: float
    test_seconds: float
    compile_seconds: float


def fit(
    state: TrainState,
    dataset: Dataset | RecordDataset,
    normalise: Normalise,
    *,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None = None,
    key: PRNGKeyArray | None = None,
    mirrored: bool = False,
    translated: int = 0,
    part_steps: int | None = None,
    losses: Float[np.ndarray, " steps"] = _NO_LOSSES,
    after_part: Callable[[TrainState, Float[np.ndarray, " steps"], float], None] | None = None,
    **how: Any,
) -> Iterator[EpochReport]:
    """Trains for some epochs, evaluating after each.

    It goes on from where the state stands: after some epochs, the last of which is evaluated
    again, or within one, if it stands where one of the epoch's parts ends. What becomes of it is
    then what would have become of it without the interruption, bit by bit, on one and the same
    machine.

    Args:
      state: the network to begin with.
      dataset: what to learn and what to test on; one on disk streams in, batch by batch in the
        same order, to the same result.
      normalise: what to apply to the images of both splits.
      epochs: passes over the training split.
      batch_size: examples an update.
      mesh: devices to spread each batch over, as `dlc_jax.sharding.mesh.cpu_mesh(batch_size)`.
      key: of order and augmentation, as for `train_epoch`.
      mirrored: whether to test on images and their mirror images, as `evaluate` does.
      translated: by how many pixels images are moved in the test, likewise.
      part_steps: steps a part; an epoch's last part may have fewer. By default an epoch is one.
      losses: of the steps before the state, where it stands within an epoch.
      after_part: called after each part with the state, the losses of the epoch so far, and
        the seconds that the part took.
      **how: further arguments of `train_epoch`: `augmentation`, `label_smoothing`.

    Returns:
      An iterator of reports: one on the network as it is, unless that is within an epoch, then
      one after each epoch. It raises `Diverged` when a loss, the test loss, a parameter or a
      statistic is not finite; what it gave before stays valid.

    Raises:
      InputError: the batch size is not between 1 and the number of training examples, or the
        state stands where no part ends.
    """
    check_batch_size(batch_size, dataset)
    parts = _Parts(dataset.sizes[0], batch_size, part_steps)
    parts.left(int(state.step))
    looks = {"mirrored": mirrored, "translated": translated}
    task = Task(state, normalise, key, batch_size, mesh, how, looks)

    def reports() -> Iterator[EpochReport]:
        programs = compiled(task, dataset, parts.examples)
        epoch, within = parts.place(int(state.step))
        before = [losses] if within else []

        def run_epoch(state: TrainState) -> tuple[TrainState, Float[np.ndarray, " steps"]]:
            so_far = [before.pop()] if before else []
            for examples in parts.left(int(state.step)):
                (state, metrics), taken = _timed(programs.train, state, examples)
                so_far.append(np.asarray(metrics.loss))
                _check_training(state, np.concatenate(so_far), parts.epoch(int(state.step)))
                if after_part is not None:
                    after_part(state, np.concatenate(so_far), taken)
            return state, np.concatenate(so_far)

        start = programs.state, run_epoch, programs.test
        yield from _reports(*start, epochs, programs.compile_seconds, epoch, within)

    return reports()


def fit_ensemble(
    states: TrainState,
    dataset: Dataset,
    normalise: Normalise,
    *,
    epochs: int,
    batch_size: int,
    keys: PRNGKeyArray | None = None,
    mirrored: bool = False,
    translated: int = 0,
    **how: Any,
) -> Iterator[list[EpochReport]]:
    """`fit` for several networks at once, in one program.

    Args:
      states: the networks to begin with, stacked; see `dlc_jax.training.stack`.
      dataset: as for `fit`, as are the following.
      normalise: what to apply to the images.
      epochs: passes over the training split.
      batch_size: examples an update of one network.
      keys: one for each network, as for `train_ensemble`.
      mirrored: as for `fit`.
      translated: likewise.
      **how: likewise.

    Returns:
      An iterator of reports as `fit` gives them, one for each network.

    Raises:
      InputError: the batch size is not between 1 and the number of training examples, or
        (`NoRoom`) the device has too little memory.
    """
    check_batch_size(batch_size, dataset)
    test_all = jax.jit(
        jax.vmap(partial(evaluate, mirrored=mirrored, translated=translated), (0, None, None))
    )
    arguments = states, dataset.train, dataset.test, normalise, keys
    states, train, test, normalise, keys = replicate(arguments, None)
    start = time.perf_counter()
    run_epoch = train_ensemble.lower(
        states, train, normalise, batch_size=batch_size, keys=keys, **how
    ).compile()
    run_test = test_all.lower(states, test, normalise).compile()
    _check_room([run_epoch, run_test])

    def losses_of_epoch(
        states: TrainState,
    ) -> tuple[TrainState, Float[np.ndarray, "networks steps"]]:
        states, metrics = run_epoch(states, train, normalise, keys=keys)
        losses = np.asarray(metrics.loss)
        _check_training(states, losses, int(states.step[0]) // losses.shape[-1])
        return states, losses

    def test_of_each(states: TrainState) -> tuple[Array, np.ndarray, Metrics]:
        logits, metrics = run_test(states, test, normalise)
        return logits, np.asarray(dataset.test.labels), metrics

    together = _reports(
        states,
        losses_of_epoch,
        test_of_each,
        epochs,
        time.perf_counter() - start,
    )
    return map(_each, together)


class _Parts:
    """An epoch's parts, each a program of its own."""

    def __init__(self, count: int, batch_size: int, steps: int | None) -> None:
        self._steps = -(-count // batch_size)
        self._part = self._steps if steps is None else min(steps, self._steps)
        starts = range(0, count, self._part * batch_size)
        self.examples = [min(self._part * batch_size, count - start) for start in starts]

    def left(self, step: int) -> list[int]:
        """How many examples each part has that is left of the epoch, where `step` are done."""
        within = step % self._steps
        if within % self._part:
            raise InputError(
                f"training stands at step {within} of an epoch, where no part of {self._part} "
                f"steps ends; go on with parts of which it is a multiple"
            )
        return self.examples[within // self._part :]

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, of which `step` is a part."""
        return -(-step // self._steps)

    def place(self, step: int) -> tuple[int, bool]:
        """The epoch of which `step` is a part, and whether there is more of it."""
        return self.epoch(step), step % self._steps > 0


def check_batch_size(batch_size: int, dataset: Dataset | RecordDataset) -> None:
    """Raises an InputError unless a dataset can be learned in batches of that size."""
    count = dataset.sizes[0]
    if not 1 <= batch_size <= count:
        raise InputError(
            f"a batch size of {batch_size} does not fit {dataset.name}'s {count} training "
            f"examples; choose one from 1 to {count}"
        )


def _check_room(programs: list[Any]) -> None:
    """Raises `NoRoom` where the device knows that it lacks the memory for one of them."""
    room = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    for program in programs:
        sizes = program.memory_analysis()
        if room is None or sizes is None:
            return
        needed = (
            sizes.temp_size_in_bytes + sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        )
        if needed > room:
            raise NoRoom(
                f"so many networks need {needed / 2**30:.1f} GiB on a device of "
                f"{room / 2**30:.1f} GiB; train fewer at once, or one by one"
            )


def _reports(
    state: TrainState,
    run_epoch: Callable[[TrainState], tuple[TrainState, Any]],
    run_test: Callable[[TrainState], tuple[Any, np.ndarray, Metrics]],
    epochs: int,
    compile_seconds: float,
    first: int = 0,
    within: bool = False,
) -> Iterator[EpochReport]:
    _check_state(state, "before training")
    losses, train_seconds = np.zeros((*state.step.shape, 0), np.float32), 0.0
    for epoch in range(first, epochs + 1):
        if epoch > first or within:
            (state, losses), train_seconds = _timed(run_epoch, state)
            losses = np.asarray(losses)
        (logits, labels, test_metrics), test_seconds = _timed(run_test, state)
        _check_test(test_metrics, len(labels), epoch)
        yield EpochReport(
            epoch,
            state,
            losses,
            test_metrics,
            np.asarray(logits),
            labels,
            train_seconds,
            test_seconds,
            compile_seconds,
        )


def _each(together: EpochReport) -> list[EpochReport]:
    """The report of each of several networks."""
    states = unstack(together.state)
    return [
        dataclasses.replace(
            together,
            state=state,
            losses=together.losses[network],
            test=Metrics(*(values[network] for values in together.test)),
            test_logits=together.test_logits[network],
            train_seconds=together.train_seconds / len(states),
            test_seconds=together.test_seconds / len(states),
        )
        for network, state in enumerate(states)
    ]


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The results of a compiled function, and how long they took in seconds.

    It waits for them without shutting out Ctrl-C, as `jax.block_until_ready` would.
    """
    start = time.perf_counter()
    results = function(*args)
    while not all(
        leaf.is_ready() for leaf in jax.tree.leaves(results) if hasattr(leaf, "is_ready")
    ):
        time.sleep(_POLL_SECONDS)
    return results, time.perf_counter() - start


def _check_training(
    state: TrainState, losses: Float[np.ndarray, "*networks steps"], epoch: int
) -> None:
    """Raises `Diverged` unless the losses up to a state, and the state, are finite."""
    last = int(np.max(state.step))
    broken = np.argwhere(~np.isfinite(losses))
    if broken.size:
        place = tuple(broken[0])
        step = last - losses.shape[-1] + place[-1] + 1
        raise _diverged(
            f"the loss{_whose(place[:-1])} became {losses[place]} at step {step} (epoch {epoch})"
        )
    _check_state(state, f"after step {last} (epoch {epoch})")


def _check_state(state: TrainState, when: str) -> None:
    """Raises `Diverged` unless parameters and statistics of each network are finite."""
    # On the host, to which a run's parameters come anyway; a program would have to be compiled.
    for kind, variables in (("parameter", state.params), ("statistic", state.stats)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
            if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.inexact):
                continue
            values = np.asarray(leaf)
            broken = np.argwhere(~np.isfinite(values))
            if broken.size:
                name = jax.tree_util.keystr(path, simple=True, separator=".")
                whose = _whose(tuple(broken[0])[: state.step.ndim])
                value = values[tuple(broken[0])]
                raise _diverged(
                    f"the {kind} {name.removesuffix('.value')}{whose} is {value} {when}"
                )


def _check_test(test: Metrics, examples: int, epoch: int) -> None:
    """Raises `Diverged` unless the test loss of each network is finite."""
    losses = np.asarray(test.loss)
    broken = np.argwhere(~np.isfinite(losses))
    # The mean over no examples is not a number, whatever the network.
    if examples and len(broken):
        place = tuple(broken[0])
        when = f"after epoch {epoch}" if epoch else "before training"
        raise _diverged(f"the test loss{_whose(place)} is {losses[place]} {when}")


def _whose(place: tuple[int, ...]) -> str:
    """Of which of several networks, in words."""
    return f" of network {place[0] + 1}" if place else ""


def _diverged(what: str) -> Diverged:
    return Diverged(f"{what}; try a smaller learning rate")
