"""The lecture's program by several processes, on one machine or on many.

python examples/many_hosts.py mnist-5k 10                      one process
python examples/many_hosts.py mnist-5k 10 127.0.0.1:12345 2 0  the first of two, and in another
python examples/many_hosts.py mnist-5k 10 127.0.0.1:12345 2 1  terminal the second
srun python examples/many_hosts.py mnist 10 auto               as many as SLURM tells of
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: every core of a CPU, and a cache of compiled programs

import jax
import numpy as np
import optax
from flax import nnx

from dlc_jax import data, models, sharding, training
from dlc_jax.sharding import processes

BATCH_SIZE = 100


def main(name: str = "mnist", epochs: str = "10", *others: str) -> None:
    if others == ("auto",):
        processes.initialize()
    elif others:
        address, count, rank = others
        processes.initialize(address, int(count), int(rank))
    with processes.primary_first():  # so that one alone downloads what is missing
        part = data.load(name, part=(jax.process_index(), jax.process_count()))
    dataset = processes.gather(part)
    normalise = data.Normalise.fit(dataset.train.images)

    model = models.create(
        "lecture", image_shape=dataset.image_shape, num_classes=10, rngs=nnx.Rngs(0)
    )
    state = training.create_state(model, optax.sgd(learning_rate=0.1))
    mesh = sharding.device_mesh(BATCH_SIZE)  # of the devices of all processes
    arguments = state, dataset.train, dataset.test, normalise
    state, train, test, normalise = sharding.replicate(arguments, mesh)
    for epoch in range(1, int(epochs) + 1):
        state, metrics = training.train_epoch(
            state, train, normalise, batch_size=BATCH_SIZE, mesh=mesh
        )
        _, result = training.evaluate(state, test, normalise, mesh=mesh)
        if processes.is_primary():
            loss, error = np.mean(metrics.loss), 100 * float(result.error)
            print(f"epoch {epoch:2d}  loss {loss:.6f}  test error {error:.2f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
