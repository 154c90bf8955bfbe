"""The lecture's program in several processes, on one machine or on many.

python examples/many_hosts.py mnist-5k 10                      one process
python examples/many_hosts.py mnist-5k 10 127.0.0.1:12345 2 0  the first of two processes
python examples/many_hosts.py mnist-5k 10 127.0.0.1:12345 2 1  the second, in another terminal
srun python examples/many_hosts.py mnist 10 auto               the processes of a SLURM job
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
import optax
from flax import nnx

from dlc_jax import data, models, sharding, training
from dlc_jax.data.distributed import gather_shards
from dlc_jax.sharding import processes

BATCH_SIZE = 100


def print_epoch(record: training.EpochRecord) -> None:
    if record.epoch and processes.is_primary():
        loss, error = record.losses.mean(), 100 * record.test["error"]
        print(f"epoch {record.epoch:2d}  loss {loss:.6f}  test error {error:.2f} %")


def main(name: str = "mnist", epochs: str = "10", *connection: str) -> None:
    if connection == ("auto",):
        processes.initialize()
    elif connection:
        address, count, rank = connection
        processes.initialize(address, int(count), int(rank))
    with processes.primary_first():  # only the first process downloads a missing dataset
        shard = data.load(name, shard=(jax.process_index(), jax.process_count()))
    dataset = gather_shards(shard)

    def create_model(key: jax.Array) -> nnx.Module:
        return models.create("lecture", image_shape=dataset.image_shape, rngs=nnx.Rngs(key))

    task = training.classification(
        create_model, optax.sgd(learning_rate=0.1), data.Normalize.fit(dataset.train.images)
    )
    mesh = sharding.device_mesh(BATCH_SIZE)  # the devices of all processes
    training.train(
        task,
        data.ArraySource(dataset.train, BATCH_SIZE, mesh=mesh),
        num_epochs=int(epochs),
        progress=training.Progress(task.init(jax.random.key(0))),
        test=data.ArraySource(dataset.test, 50, mesh=mesh),
        callbacks=[training.LambdaCallback(print_epoch)],
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
