"""The training programs of dlc_jax that are timed.

Only this module, `harness.recipe_training` and `baselines.first_step` use the package's training
functions.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from dlc_jax import models, sharding, training
from dlc_jax.data import ArraySource, Batch, Examples, Normalize

BATCH_SIZE = 100
SGD = optax.sgd(0.1)


def lecture_network(rngs: nnx.Rngs, dtype: Any = np.float32) -> Any:
    """Creates the lecture's network for MNIST.

    Args:
      rngs: Random number generators of the weights.
      dtype: Dtype of the computation.
    """
    return models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=rngs, dtype=dtype)


def classification(
    create: Callable[[nnx.Rngs], Any],
    images: Any,
    optimizer: optax.GradientTransformation = SGD,
) -> training.Supervised:
    """Creates the task of classifying images.

    Args:
      create: Creates the network.
      images: Training images, which are normalized by their mean and standard deviation.
      optimizer: Optimizer.
    """
    normalize = Normalize.fit(images)
    return training.classification(lambda key: create(nnx.Rngs(key)), optimizer, normalize)


def repeat_step(task: training.Supervised, steps: int) -> Callable[[Any, Examples], Any]:
    """Returns a function (state, examples) that takes several steps on one batch."""

    def repeat(state: Any, examples: Examples) -> Any:
        batch = Batch.from_examples(examples)
        return jax.lax.scan(lambda state, _: task.step(state, batch), state, length=steps)

    return repeat


class EpochProgram:
    """A task's epoch as one program, with its data on the devices.

    Args:
      task: The task.
      keys: Key of the weights; keys [networks] to train several networks at once.
      examples: Training data.
      batch_size: Batch size.
      mesh: Devices that share each batch.
    """

    def __init__(
        self,
        task: training.Supervised,
        keys: jax.Array,
        examples: Examples,
        batch_size: int = BATCH_SIZE,
        mesh: Mesh | None = None,
    ) -> None:
        self._task: Any = training.Ensemble(task) if keys.ndim else task
        self._mesh = mesh
        self._state = sharding.replicate(jax.jit(self._task.init)(keys), mesh)
        source = ArraySource(examples, batch_size, mesh=mesh)
        [self._epoch] = source.chunks(0, source.plan.steps_per_epoch)
        self._program: Any = None
        self._metrics: Any = None

    def compile(self) -> None:
        """Compiles the epoch."""
        lowered = training.train_steps.lower(self._task, self._state, self._epoch, None, self._mesh)
        self._program = lowered.compile()

    def train(self) -> None:
        """Trains for an epoch, and waits for the end."""
        result = self._program(self._state, self._epoch, None)
        self._state, self._metrics = jax.block_until_ready(result)

    def losses(self) -> np.ndarray:
        """Returns the loss of each step of the last epoch, [steps, *networks]."""
        return training.means(self._metrics)["loss"]

    def test_error(self, examples: Examples) -> float:
        """Returns the fraction of examples that are misclassified, averaged over networks."""
        test = ArraySource(examples, min(1000, len(examples.labels)), mesh=self._mesh)
        metrics = training.evaluate(self._task, self._state, test)
        return float(training.means(metrics)["error"].mean())
