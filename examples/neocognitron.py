"""Digits from few labels: a neocognitron's cells against raw pixels, under the same readout.

python examples/neocognitron.py             5,000 digits that need no download
python examples/neocognitron.py mnist       full MNIST, through TFDS; tests on 10,000 digits
python examples/neocognitron.py mnist-5k 1  one run instead of three

A neocognitron organises itself on 3,000 digits without labels. Then a linear softmax readout
is trained on some of these with their labels: on pixels, on one C-layer's cells, and on those
of all three. For each the weight decay is the best of five on 1,000 further training digits.
The test errors printed are means over the runs, with networks and labelled digits of their own.
"""

import sys
from typing import Any, TypeAlias

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from dlc_jax import data
from dlc_jax.models import neocognitron
from dlc_jax.nn import losses

UNLABELLED, ALL = 3000, 4000
LABELLED = (100, 500, 1000)
READ = ("pixels", "C1", "C2", "C3", "all cells")
DECAYS = jnp.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2])
# The error on all cells as a part of that on pixels, with room for unlucky runs.
MOST = {100: 0.6, 500: 0.5, 1000: 0.45}

Readout: TypeAlias = tuple[Array, Array]  # weights [features, classes] and biases [classes]


def fit(train: data.Examples, decay: Array, steps: int = 150) -> Readout:
    """The readout with the least cross-entropy + decay * |weights|² on [digits, features]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def loss(readout: Readout) -> Array:
        weights, biases = readout
        logits = train.images @ weights + biases
        return losses.cross_entropy(logits, train.labels) + decay * jnp.square(weights).sum()

    def step(state: tuple[Readout, Any], _: None) -> tuple[tuple[Readout, Any], None]:
        readout, memory = state
        updates, memory = optimizer.update(jax.grad(loss)(readout), memory)
        return (optax.apply_updates(readout, updates), memory), None

    readout = jnp.zeros((train.images.shape[1], 10)), jnp.zeros(10)
    return lax.scan(step, (readout, optimizer.init(readout)), length=steps)[0][0]


def error(readout: Readout, examples: data.Examples) -> Array:
    """The fraction of digits that it gets wrong."""
    weights, biases = readout
    return losses.misclassified(examples.images @ weights + biases, examples.labels).mean()


@jax.jit
def test_error(train: data.Examples, held_out: data.Examples, test: data.Examples) -> Array:
    """The test error with the decay that does best on the held-out digits."""
    mean = train.images.mean(0)
    # The same scale for cells and pixels, so that the same decays and learning rate suit them.
    scale = 10 / jnp.sqrt(jnp.square(train.images - mean).sum(1).mean())
    train, held_out, test = (
        data.Examples((images - mean) * scale, labels) for images, labels in (train, held_out, test)
    )
    readouts = jax.vmap(fit, in_axes=(None, 0))(train, DECAYS)
    best = jax.vmap(error, in_axes=(0, None))(readouts, held_out).argmin()
    return error(jax.tree.map(lambda values: values[best], readouts), test)


@jax.jit
def seen(model: neocognitron.Neocognitron, images: Array) -> dict[str, Array]:
    """What a readout may read of each image, [images, features]."""

    def of_one(image: Array) -> dict[str, Array]:
        stages = model.stages(image[None])
        layers = {name.upper(): stages[name].ravel() for name in ("c1", "c2", "c3")}
        return {"pixels": image.ravel(), **layers, "all cells": neocognitron.features(stages)[0]}

    return lax.map(of_one, images, batch_size=100)


def one_run(digits: data.Dataset, seed: int) -> dict[str, list[float]]:
    """Test errors in percent for each number of labelled digits, by what the readout reads."""
    normalise = data.Normalise.fit(digits.train.images)
    images, labels = normalise(digits.train.images[:ALL]), digits.train.labels[:ALL]
    model = neocognitron.Neocognitron(
        image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(seed)
    )
    model = neocognitron.self_organise(model, images[:UNLABELLED], jax.random.key(seed))
    train, test = seen(model, images), seen(model, normalise(digits.test.images))
    order = np.random.default_rng(seed).permutation(UNLABELLED)

    def errors(train: Array, test: data.Examples) -> list[float]:
        held_out = data.Examples(train[UNLABELLED:], labels[UNLABELLED:])
        chosen = (order[:count] for count in LABELLED)
        labelled = (data.Examples(train[some], labels[some]) for some in chosen)
        return [100 * float(test_error(examples, held_out, test)) for examples in labelled]

    tests = {name: data.Examples(test[name], digits.test.labels) for name in READ}
    return {name: errors(train[name], tests[name]) for name in READ}


def main(name: str = "mnist-5k", how_many: str = "3") -> None:
    digits = data.load(name)
    runs = [one_run(digits, seed) for seed in range(int(how_many))]
    errors = {name: np.mean([run[name] for run in runs], 0) for name in READ}
    print("labelled digits; test error in %, reading", ", ".join(READ))
    for row, count in enumerate(LABELLED):
        print(f"{count:5d}  ", *(f"{errors[name][row]:6.2f}" for name in READ))
        ratio = errors["all cells"][row] / errors["pixels"][row]
        assert ratio <= MOST[count], f"{ratio:.2f} is over {MOST[count]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
