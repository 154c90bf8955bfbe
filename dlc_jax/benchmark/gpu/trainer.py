"""Runs of a recipe by several seeds, for which everything is compiled once."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax

from dlc_jax import runs, training
from dlc_jax.data import Dataset
from dlc_jax.runs import fitting
from dlc_jax.runs.recipes import Recipe


class Trainer:
    """A recipe's programs, compiled, with the data on the device.

    Args:
      dataset: what to train and to test on.
      recipe: what to train and how.
      seeds: of initial weights, order and augmentation.

    Attributes:
      compile_seconds: how long compiling took.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, seeds: Sequence[int]) -> None:
        config = runs.configure(dataset, recipe, seed=0)
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        self._states = fitting.new_states(configs, dataset)
        self._keys = [fitting.key_of(config) for config in configs]
        self.epochs = recipe.epochs
        placed = jax.device_put((dataset.train, dataset.test, config.normalise))
        self._train, self._test, self._normalise = placed
        start = time.perf_counter()
        epoch = partial(
            training.train_epoch,
            batch_size=config.batch_size,
            augmentation=config.augmentation,
            label_smoothing=config.label_smoothing,
        )
        arguments = self._states[0], self._train, self._normalise
        self.epoch = jax.jit(epoch).lower(*arguments, key=self._keys[0]).compile()
        self._evaluate = training.evaluate.lower(
            self._states[0],
            self._test,
            self._normalise,
            batch_size=2000 if len(self._test.labels) >= 2000 else 100,
            mirrored=config.mirrored_test,
            translated=config.translated_test,
        ).compile()
        self.compile_seconds = time.perf_counter() - start

    def one_epoch(self) -> Any:
        """Trains the first network for its first epoch; changes nothing here."""
        return self.epoch(self._states[0], self._train, self._normalise, key=self._keys[0])

    def run(self, place: int) -> dict[str, float]:
        """Trains the network of one of the seeds, and tests it at the end.

        Args:
          place: which of the seeds, from 0 on.
        """
        state, key = self._states[place], self._keys[place]
        jax.block_until_ready(state)
        start = time.perf_counter()
        for _ in range(self.epochs):
            state, metrics = self.epoch(state, self._train, self._normalise, key=key)
        jax.block_until_ready((state, metrics))
        seconds = time.perf_counter() - start
        return {"train_s": seconds, "accuracy_percent": self._accuracy(state)}

    def tested(self, place: int, every: int) -> Iterator[dict[str, float]]:
        """The same, tested after so many epochs again and again; testing is not counted."""
        state, key, seconds = self._states[place], self._keys[place], 0.0
        for epoch in range(1, self.epochs + 1):
            start = time.perf_counter()
            state, metrics = self.epoch(state, self._train, self._normalise, key=key)
            jax.block_until_ready((state, metrics))
            seconds += time.perf_counter() - start
            if epoch % every == 0 or epoch == self.epochs:
                accuracy = self._accuracy(state)
                yield {"epoch": epoch, "train_s": seconds, "accuracy_percent": accuracy}

    def _accuracy(self, state: Any) -> float:
        _, metrics = self._evaluate(state, self._test, self._normalise)
        return 100 * (1 - float(metrics.error))
