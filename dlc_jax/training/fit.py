"""The loop that a person watches: epochs, times, and what to do when it goes wrong."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, PRNGKeyArray

from dlc_jax.data.examples import Dataset, Normalise
from dlc_jax.errors import InputError
from dlc_jax.sharding import replicate
from dlc_jax.training.epoch import evaluate, train_epoch
from dlc_jax.training.state import TrainState
from dlc_jax.training.step import Metrics

# Short enough for Ctrl-C to seem immediate, long enough to cost nothing.
_POLL_SECONDS = 0.005


class Diverged(InputError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class EpochReport:
    """What one epoch did.

    Attributes:
      epoch: 1 for the first; 0 for the network before training, which has no losses.
      state: the network after it.
      losses: the training loss of each step, in nats.
      test: loss and error on the test split.
      test_logits: the network's output for each test image.
      train_seconds: how long the epoch took, evaluation and compilation apart.
      test_seconds: how long the evaluation took.
      compile_seconds: how long compiling took; the same in every report.
    """

    epoch: int
    state: TrainState
    losses: Float[np.ndarray, " steps"]
    test: Metrics
    test_logits: Float[np.ndarray, "examples classes"]
    train_seconds: float
    test_seconds: float
    compile_seconds: float


def fit(
    state: TrainState,
    dataset: Dataset,
    normalise: Normalise,
    *,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None = None,
    key: PRNGKeyArray | None = None,
    mirrored: bool = False,
    **how: Any,
) -> Iterator[EpochReport]:
    """Trains for some epochs, evaluating after each.

    Args:
      state: the network to begin with.
      dataset: what to learn and what to test on.
      normalise: what to apply to the images of both splits.
      epochs: passes over the training split.
      batch_size: examples an update.
      mesh: devices to spread each batch over, as `dlc_jax.sharding.cpu_mesh(batch_size)`.
      key: of order and augmentation, as for `train_epoch`.
      mirrored: whether to test on images and their mirror images, as `evaluate` does.
      **how: further arguments of `train_epoch`: `augmentation`, `label_smoothing`.

    Returns:
      An iterator of reports: one on the untrained network, then one after each epoch. It
      raises `Diverged` when a loss is not finite; what it gave before stays valid.

    Raises:
      InputError: the batch size is not between 1 and the number of training examples.
    """
    count = len(dataset.train.labels)
    if not 1 <= batch_size <= count:
        raise InputError(
            f"a batch size of {batch_size} does not fit {dataset.name}'s {count} training "
            f"examples; choose one from 1 to {count}"
        )
    return _reports(state, dataset, normalise, epochs, batch_size, mesh, key, mirrored, how)


def _reports(
    state: TrainState,
    dataset: Dataset,
    normalise: Normalise,
    epochs: int,
    batch_size: int,
    mesh: Mesh | None,
    key: PRNGKeyArray | None,
    mirrored: bool,
    how: dict[str, Any],
) -> Iterator[EpochReport]:
    arguments = state, dataset.train, dataset.test, normalise, key
    state, train, test, normalise, key = replicate(arguments, mesh)
    start = time.perf_counter()
    run_epoch = train_epoch.lower(
        state, train, normalise, batch_size=batch_size, mesh=mesh, key=key, **how
    ).compile()
    run_test = evaluate.lower(state, test, normalise, mesh=mesh, mirrored=mirrored).compile()
    compile_seconds = time.perf_counter() - start
    losses, train_seconds = np.zeros(0, np.float32), 0.0
    for epoch in range(epochs + 1):
        if epoch:
            (state, metrics), train_seconds = _timed(
                partial(run_epoch, key=key), state, train, normalise
            )
            losses = np.asarray(metrics.loss)
            _check_finite(losses, epoch)
        (logits, test_metrics), test_seconds = _timed(run_test, state, test, normalise)
        yield EpochReport(
            epoch,
            state,
            losses,
            test_metrics,
            np.asarray(logits),
            train_seconds,
            test_seconds,
            compile_seconds,
        )


def _timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The results of a compiled function, and how long they took in seconds.

    It waits for them without shutting out Ctrl-C, as `jax.block_until_ready` would.
    """
    start = time.perf_counter()
    results = function(*args)
    while not all(leaf.is_ready() for leaf in jax.tree.leaves(results)):
        time.sleep(_POLL_SECONDS)
    return results, time.perf_counter() - start


def _check_finite(losses: Float[np.ndarray, " steps"], epoch: int) -> None:
    broken = np.flatnonzero(~np.isfinite(losses))
    if broken.size:
        step = (epoch - 1) * len(losses) + broken[0] + 1
        raise Diverged(
            f"the loss became {losses[broken[0]]} at step {step} (epoch {epoch}); "
            "try a smaller learning rate"
        )
