"""The lecture's program: a convnet that learns MNIST to about 1 % test error.

python examples/mnist_lecture.py            full MNIST, through TFDS
python examples/mnist_lecture.py mnist-5k   5,000 digits that need no download
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: every core of a CPU, and a cache of compiled programs

import optax
from flax import nnx

from dlc_jax import data, models, sharding, training

# What ten epochs reach, with room for an unlucky seed.
TARGET_PERCENT = {"mnist": 1.3, "mnist-5k": 5.0}


def main(name: str = "mnist") -> None:
    dataset = data.load(name)
    normalise = data.Normalise.fit(dataset.train.images)

    model = models.create(
        "lecture", image_shape=dataset.image_shape, num_classes=10, rngs=nnx.Rngs(0)
    )
    state = training.create_state(model, optax.sgd(learning_rate=0.1))
    mesh = sharding.cpu_mesh(batch_size=100)
    arguments = state, dataset.train, dataset.test, normalise
    state, train, test, normalise = sharding.replicate(arguments, mesh)
    for epoch in range(1, 11):
        state, metrics = training.train_epoch(state, train, normalise, batch_size=100, mesh=mesh)
        _, result = training.evaluate(state, test, normalise, mesh=mesh)
        error = 100 * float(result.error)
        print(f"epoch {epoch:2d}  loss {metrics.loss.mean():.4f}  test error {error:.2f} %")
    assert error <= TARGET_PERCENT[name], f"{error:.2f} % is over {TARGET_PERCENT[name]} %"


if __name__ == "__main__":
    main(*sys.argv[1:])
