"""Training by a recipe: through a run's own loop, and as compiled programs for several seeds."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax

from dlc_jax import runs, training
from dlc_jax.data import Dataset
from dlc_jax.runs import fitting, recipes
from dlc_jax.runs.recipes import Recipe


class Epoch(NamedTuple):
    """An epoch of a run.

    Attributes:
      train_s: seconds of training, without compilation and testing.
      compile_s: seconds of compilation so far.
      accuracy_percent: of the test images, after the epoch.
    """

    train_s: float
    compile_s: float
    accuracy_percent: float


def find(name: str) -> Recipe:
    """A recipe by its name; raises an `InputError` if there is none."""
    return recipes.find(name)


def run_epochs(dataset: Dataset, name: str, recipe: Recipe, seed: int) -> Iterator[Epoch]:
    """Trains as `dlc-jax train` does, without writing files.

    Args:
      dataset: training and test images.
      name: name of the recipe.
      recipe: network, optimizer and augmentation.
      seed: random seed.
    """
    config = runs.configure(dataset, recipe, seed=seed, name=name)
    for report in runs.reports(config, dataset):
        if report.epoch:
            accuracy = 100 - runs.percent(report.test.error)
            yield Epoch(report.train_seconds, report.compile_seconds, accuracy)


class Trainer:
    """A recipe's programs, compiled once for several seeds, with the data on the device.

    Args:
      dataset: training and test images.
      recipe: network, optimizer and augmentation.
      seeds: random seeds.

    Attributes:
      compile_seconds: seconds of compilation.
      epochs: number of epochs of the recipe.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, seeds: Sequence[int]) -> None:
        config = runs.configure(dataset, recipe, seed=0)
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        self._states = fitting.new_states(configs, dataset)
        self._keys = [fitting.key_of(config) for config in configs]
        self.epochs = recipe.epochs
        arrays = (dataset.train, dataset.test, config.normalise)
        self._train, self._test, self._normalise = jax.device_put(arrays)
        start = time.perf_counter()
        epoch = partial(
            training.train_epoch,
            batch_size=config.batch_size,
            augmentation=config.augmentation,
            label_smoothing=config.label_smoothing,
        )
        arguments = self._states[0], self._train, self._normalise
        self._epoch = jax.jit(epoch).lower(*arguments, key=self._keys[0]).compile()
        self._evaluate = training.evaluate.lower(
            self._states[0],
            self._test,
            self._normalise,
            batch_size=2000 if len(self._test.labels) >= 2000 else 100,
            mirrored=config.mirrored_test,
            translated=config.translated_test,
        ).compile()
        self.compile_seconds = time.perf_counter() - start

    def first_epoch(self) -> Any:
        """Trains the first network for its first epoch, and discards the result."""
        return self._train_epoch(self._states[0], self._keys[0])

    def run(self, index: int) -> dict[str, float]:
        """Trains the network of the seed at an index, and tests it at the end."""
        state = jax.block_until_ready(self._states[index])
        start = time.perf_counter()
        for _ in range(self.epochs):
            state, metrics = self._train_epoch(state, self._keys[index])
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        return {"train_s": seconds, "accuracy_percent": self._accuracy(state)}

    def run_tested(self, index: int, every: int) -> Iterator[dict[str, float]]:
        """Like `run`, but tests every few epochs; testing is not counted."""
        state, seconds = self._states[index], 0.0
        for epoch in range(1, self.epochs + 1):
            start = time.perf_counter()
            state, _ = jax.block_until_ready(self._train_epoch(state, self._keys[index]))
            seconds += time.perf_counter() - start
            if epoch % every == 0 or epoch == self.epochs:
                accuracy = self._accuracy(state)
                yield {"epoch": epoch, "train_s": seconds, "accuracy_percent": accuracy}

    def _train_epoch(self, state: Any, key: Any) -> Any:
        return self._epoch(state, self._train, self._normalise, key=key)

    def _accuracy(self, state: Any) -> float:
        _, metrics = self._evaluate(state, self._test, self._normalise)
        return 100 * (1 - float(metrics.error))
