"""Training by a recipe, in a run's training loop or as compiled programs for several seeds."""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from dlc_jax import runs, training
from dlc_jax.data import ArraySource, Dataset
from dlc_jax.runs import Recipe, recipes, setup
from dlc_jax.runs.summary import percent
from dlc_jax.training import Progress


def find(name: str) -> Recipe:
    """Returns a recipe by its name; raises an `InputError` if there is none."""
    return recipes.find(name)


def train(
    dataset: Dataset, name: str, recipe: Recipe, seed: int, on_epoch_end: Callable[[int], None]
) -> dict[str, Any]:
    """Trains as `dlc-jax train` does, without writing files.

    Args:
      dataset: Training and test images.
      name: Name of the recipe.
      recipe: Network, optimizer and augmentation.
      seed: Random seed.
      on_epoch_end: Called with the number of epochs done.

    Returns:
      Seconds of compilation and of training, and the accuracies by epoch.
    """
    config = runs.configure(dataset, recipe, seed=seed, name=name)
    run = setup.Setup.from_config(config, dataset)
    _, *records = training.train(
        run.task,
        run.source,
        num_epochs=config.epochs,
        progress=Progress(run.state),
        key=run.key,
        test=run.test,
        callbacks=[training.LambdaCallback(lambda record: on_epoch_end(record.epoch))],
    )
    accuracies = [percent(1 - float(record.test["error"])) for record in records]
    return {
        "seed": seed,
        "compile_s": records[-1].compile_seconds,
        "train_s": sum(record.train_seconds for record in records),
        "accuracy_percent": accuracies[-1],
        "accuracy_percent_by_epoch": accuracies,
    }


class Trainer:
    """A recipe's programs, compiled once for several seeds, with the data on the device.

    Args:
      dataset: Training and test images.
      recipe: Network, optimizer and augmentation.
      seeds: Random seeds.

    Attributes:
      compile_seconds: Seconds of compilation.
      epochs: Number of epochs of the recipe.
    """

    def __init__(self, dataset: Dataset, recipe: Recipe, seeds: Sequence[int]) -> None:
        config = runs.configure(dataset, recipe, seed=0)
        configs = [dataclasses.replace(config, seed=seed) for seed in seeds]
        self._task = setup.make_task(config, dataset.num_train)
        self._states = setup.new_states(configs, dataset, self._task)
        self._keys = [setup.run_key(config) for config in configs]
        self._train, self._batch_size = jax.device_put(dataset.train), config.batch_size
        self._test = setup.make_test_source(dataset)
        self.epochs = recipe.epochs
        start = time.perf_counter()
        epoch = next(self._chunks(0))
        lowered = training.train_steps.lower(self._task, self._states[0], epoch, self._keys[0])
        self._program = lowered.compile()
        self._accuracy(self._states[0])
        self.compile_seconds = time.perf_counter() - start

    def first_epoch(self) -> Any:
        """Trains the first network for its first epoch, and discards the result."""
        return next(self._epochs(0))

    def run(self, index: int) -> dict[str, float]:
        """Trains the network of the seed at an index, and tests it at the end."""
        start = time.perf_counter()
        *_, state = self._epochs(index)
        jax.block_until_ready(state)
        seconds = time.perf_counter() - start
        return {"train_s": seconds, "accuracy_percent": self._accuracy(state)}

    def run_tested(self, index: int, every: int) -> Iterator[dict[str, float]]:
        """Trains like `run`, but also tests every few epochs; testing is not timed."""
        seconds, start = 0.0, time.perf_counter()
        for epoch, state in enumerate(self._epochs(index), start=1):
            jax.block_until_ready(state)
            seconds += time.perf_counter() - start
            if epoch % every == 0 or epoch == self.epochs:
                accuracy = self._accuracy(state)
                yield {"epoch": epoch, "train_s": seconds, "accuracy_percent": accuracy}
            start = time.perf_counter()

    def _epochs(self, index: int) -> Iterator[Any]:
        """The states of the network of a seed after each epoch."""
        state, key = self._states[index], self._keys[index]
        for epoch in self._chunks(index):
            state, _ = self._program(state, epoch, key)
            yield state

    def _chunks(self, index: int) -> Iterator[Any]:
        """The batches of each epoch of a seed."""
        source = ArraySource(self._train, self._batch_size, key=self._keys[index])
        return source.chunks(0, self.epochs * source.plan.steps_per_epoch)

    def _accuracy(self, state: Any) -> float:
        metrics = training.evaluate(self._task, state, self._test)
        return percent(1 - float(training.means(metrics)["error"]))
