"""ResNet-20 on CIFAR-10 as its paper trains it (He et al. 2015, section 4.2).

python examples/cifar10_resnet.py            64,000 steps, to about 8.75 % test error; for a GPU
python examples/cifar10_resnet.py EPOCHS     only the first epochs
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
from flax import nnx

from dlc_jax import data, models, sharding, training
from dlc_jax.data.augmentation import Augmentation
from dlc_jax.training import optimizers

STEPS, BATCH_SIZE = 64_000, 128


def print_epoch(record: training.EpochRecord) -> None:
    error = 100 * record.test["error"]
    print(f"epoch {record.epoch}  step {record.step}  test error {error:.2f} %")


def main(epochs: int | None = None) -> None:
    dataset = data.load("cifar10")
    # The paper adds its decay of 0.0001 to the gradients, and a momentum of 0.9 makes it ten times
    # larger; here it is added after the momentum.
    optimizer = optimizers.sgd(
        optimizers.create_schedule("step", 0.1, STEPS), momentum=0.9, weight_decay=0.001
    )
    task = training.classification(
        lambda key: models.create("resnet20", rngs=nnx.Rngs(key)),
        optimizer,
        data.Normalize.fit(dataset.train.images),
        augmentation=Augmentation("random", translate=4),
    )
    key, mesh = jax.random.key(0), sharding.cpu_mesh(BATCH_SIZE)
    *_, last = training.train(
        task,
        data.ArraySource(dataset.train, BATCH_SIZE, key=key, mesh=mesh),
        num_epochs=epochs or STEPS * BATCH_SIZE // dataset.num_train + 1,
        progress=training.Progress(task.init(jax.random.key(0))),
        key=key,
        test=data.ArraySource(dataset.test, 500, mesh=mesh),
        callbacks=[training.LambdaCallback(print_epoch)],
    )
    error = 100 * last.test["error"]
    assert epochs or error <= 9.5, f"{error:.2f} % is over 9.5 %"


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
