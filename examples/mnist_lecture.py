"""The lecture's program: a convnet that learns MNIST to about 1 % test error.

python examples/mnist_lecture.py            full MNIST, through TFDS
python examples/mnist_lecture.py mnist-5k   5,000 digits, without a download
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
import optax
from flax import nnx

from dlc_jax import data, models, sharding, training

BATCH_SIZE = 100
# Test errors that ten epochs reach with any seed.
MAX_ERROR_PERCENT = {"mnist": 1.3, "mnist-5k": 5.0}


def print_epoch(record: training.EpochRecord) -> None:
    if record.epoch:
        loss, error = record.losses.mean(), 100 * record.test["error"]
        print(f"epoch {record.epoch:2d}  loss {loss:.4f}  test error {error:.2f} %")


def main(name: str = "mnist") -> None:
    dataset = data.load(name)

    def create_model(key: jax.Array) -> nnx.Module:
        return models.create("lecture", image_shape=dataset.image_shape, rngs=nnx.Rngs(key))

    task = training.classification(
        create_model, optax.sgd(learning_rate=0.1), data.Normalize.fit(dataset.train.images)
    )
    mesh = sharding.cpu_mesh(BATCH_SIZE)
    *_, last = training.train(
        task,
        data.ArraySource(dataset.train, BATCH_SIZE, mesh=mesh),
        num_epochs=10,
        progress=training.Progress(task.init(jax.random.key(0))),
        test=data.ArraySource(dataset.test, BATCH_SIZE, mesh=mesh),
        callbacks=[training.LambdaCallback(print_epoch)],
    )
    error = 100 * last.test["error"]
    assert error <= MAX_ERROR_PERCENT[name], f"{error:.2f} % is over {MAX_ERROR_PERCENT[name]} %"


if __name__ == "__main__":
    main(*sys.argv[1:])
