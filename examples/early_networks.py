"""Four early networks, from threshold logic units to LeNet-5, in about a minute.

python examples/early_networks.py         on 5,000 digits, without a download
python examples/early_networks.py mnist   on full MNIST, through TFDS; takes some minutes
"""

import sys

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: uses all cores of a CPU, and caches compiled programs

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from dlc_jax import data, sharding, training
from dlc_jax.models import perceptron, tc_problem
from dlc_jax.models.lenet5 import LeNet5
from dlc_jax.models.perceptron import Perceptron
from dlc_jax.models.tc_problem import TC
from dlc_jax.models.threshold_logic_unit import ThresholdLogicUnit


def compute_xor() -> None:
    model = ThresholdLogicUnit(
        image_shape=(1, 2, 1), num_classes=2, rngs=nnx.Rngs(0), function="xor"
    )
    inputs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    outputs = model(jnp.asarray(inputs.reshape(4, 1, 2, 1))).argmax(1)
    table = ", ".join(
        f"{a} xor {b} = {y}" for (a, b), y in zip(inputs.tolist(), outputs.tolist(), strict=True)
    )
    print(f"threshold logic units (1943): {table}")
    assert outputs.tolist() == [0, 1, 1, 0]


def train_perceptron(digits: data.Dataset, epochs: int = 20) -> None:
    model = Perceptron(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    train, test = (jnp.asarray(split.images, jnp.float32) for split in (digits.train, digits.test))
    for _ in range(epochs):
        model, corrections = perceptron.update(model, train, digits.train.labels)
    error = 100 * (model(test).argmax(1) != digits.test.labels).mean()
    print(
        f"perceptron (1958): test error {error:.1f} % on {digits.name} after {epochs} epochs, "
        f"{corrections} corrections in the last"
    )
    assert error <= 20


def train_tc(size: int = 6, steps: int = 3000) -> None:
    model = TC(image_shape=(size, size, 1), num_classes=2, rngs=nnx.Rngs(0))
    images, labels = tc_problem.patterns(size)
    task = training.classification(
        lambda key: model, optax.sgd(0.3, momentum=0.9), data.Normalize((0.0,), (1.0,))
    )
    # An epoch consists of copies of the patterns, so that each step gets all of them.
    copies = data.Examples(np.tile(images, (steps, 1, 1, 1)), np.tile(labels, steps))
    [epoch] = data.ArraySource(copies, batch_size=len(labels)).chunks(0, steps)
    state = task.init(jax.random.key(0))
    state, metrics = training.train_steps(task, state, epoch)
    patterns = data.ArraySource(data.Examples(images, labels), batch_size=len(labels))
    error = training.evaluate(task, state, patterns)["error"].mean
    last = np.flatnonzero(metrics["error"].total)[-1] + 1
    print(
        f"T-C problem (1986): {100 * (1 - error):.0f} % of {len(labels)} patterns correct "
        f"after {last} steps"
    )
    assert error == 0


def train_lenet5(digits: data.Dataset, batch_size: int = 50) -> None:
    epochs, target = {"mnist": (10, 1.2), "mnist-5k": (5, 6.0)}[digits.name]
    model = LeNet5(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    steps = epochs * digits.num_train // batch_size
    learning_rate = optax.linear_schedule(0.002, 0.00002, steps)
    task = training.classification(
        lambda key: model,
        optax.sgd(learning_rate, momentum=0.9),
        data.Normalize.fit(digits.train.images),
    )
    mesh = sharding.cpu_mesh(batch_size)
    *_, last = training.train(
        task,
        data.ArraySource(digits.train, batch_size, mesh=mesh),
        num_epochs=epochs,
        progress=training.Progress(task.init(jax.random.key(0))),
        test=data.ArraySource(digits.test, 500, mesh=mesh),
    )
    error = 100 * float(last.test["error"])
    print(f"LeNet-5 (1998): test error {error:.2f} % on {digits.name} after {epochs} epochs")
    assert error <= target


def main(name: str = "mnist-5k") -> None:
    digits = data.load(name)
    compute_xor()
    train_perceptron(digits)
    train_tc()
    train_lenet5(digits)


if __name__ == "__main__":
    main(*sys.argv[1:])
