"""Classifying digits from few labels: linear classifiers of neocognitron cells and of pixels.

python examples/neocognitron.py             5,000 digits, without a download
python examples/neocognitron.py mnist       full MNIST, through TFDS; tests on 10,000 digits
python examples/neocognitron.py mnist-5k 1  one run instead of three

A neocognitron self-organizes on 3,000 digits without labels. Then linear classifiers are trained
on some of these digits with labels: on pixels, on the cells of one C-layer, and on those of all
three. For each, 1,000 further training digits select the weight decay. It prints test errors,
averaged over runs with different networks and labeled digits.
"""

import sys
from typing import Any, TypeAlias

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import Array, lax

from dlc_jax import data
from dlc_jax.models import neocognitron
from dlc_jax.nn import losses

NUM_UNLABELLED, NUM_TRAIN = 3000, 4000
NUM_LABELLED = (100, 500, 1000)
FEATURES = ("pixels", "C1", "C2", "C3", "all cells")
DECAYS = jnp.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2])
# Largest ratio of the error with all cells to the error with pixels.
MAX_RATIO = {100: 0.6, 500: 0.5, 1000: 0.45}

Linear: TypeAlias = tuple[Array, Array]  # weights [features, classes] and biases [classes]


def fit(train: data.Examples, decay: Array, steps: int = 150) -> Linear:
    """Minimizes cross-entropy + decay * |weights|² of a linear classifier on [digits, features]."""
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))

    def loss(params: Linear) -> Array:
        weights, biases = params
        logits = train.images @ weights + biases
        return losses.cross_entropy(logits, train.labels).mean() + decay * jnp.square(weights).sum()

    def step(state: tuple[Linear, Any], _: None) -> tuple[tuple[Linear, Any], None]:
        params, opt_state = state
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    params = jnp.zeros((train.images.shape[1], 10)), jnp.zeros(10)
    return lax.scan(step, (params, optimizer.init(params)), length=steps)[0][0]


def error(params: Linear, examples: data.Examples) -> Array:
    """Returns the fraction of misclassified digits."""
    weights, biases = params
    return losses.misclassified(examples.images @ weights + biases, examples.labels).mean()


@jax.jit
def test_error(train: data.Examples, held_out: data.Examples, test: data.Examples) -> Array:
    """Returns the test error with the weight decay that is best on the held-out digits."""
    mean = train.images.mean(0)
    # Cells and pixels have the same scale, so that the same decays and learning rate can be used.
    scale = 10 / jnp.sqrt(jnp.square(train.images - mean).sum(1).mean())
    train, held_out, test = (
        data.Examples((images - mean) * scale, labels) for images, labels in (train, held_out, test)
    )
    params = jax.vmap(fit, in_axes=(None, 0))(train, DECAYS)
    best = jax.vmap(error, in_axes=(0, None))(params, held_out).argmin()
    return error(jax.tree.map(lambda values: values[best], params), test)


@jax.jit
def extract_features(model: neocognitron.Neocognitron, images: Array) -> dict[str, Array]:
    """Returns the features of each image by name, [images, features]."""

    def of_image(image: Array) -> dict[str, Array]:
        stages = model.stages(image[None])
        layers = {name.upper(): stages[name].ravel() for name in ("c1", "c2", "c3")}
        return {"pixels": image.ravel(), **layers, "all cells": neocognitron.features(stages)[0]}

    return lax.map(of_image, images, batch_size=100)


def one_run(digits: data.Dataset, seed: int) -> dict[str, list[float]]:
    """Returns test errors in percent for each number of labeled digits, by features."""
    normalize = data.Normalize.fit(digits.train.images)
    images, labels = normalize(digits.train.images[:NUM_TRAIN]), digits.train.labels[:NUM_TRAIN]
    model = neocognitron.Neocognitron(
        image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(seed)
    )
    model = neocognitron.self_organize(model, images[:NUM_UNLABELLED], jax.random.key(seed))
    train = extract_features(model, images)
    test = extract_features(model, normalize(digits.test.images))
    order = np.random.default_rng(seed).permutation(NUM_UNLABELLED)

    def errors(train: Array, test: data.Examples) -> list[float]:
        held_out = data.Examples(train[NUM_UNLABELLED:], labels[NUM_UNLABELLED:])
        chosen = (order[:count] for count in NUM_LABELLED)
        labelled = (data.Examples(train[some], labels[some]) for some in chosen)
        return [100 * float(test_error(examples, held_out, test)) for examples in labelled]

    tests = {name: data.Examples(test[name], digits.test.labels) for name in FEATURES}
    return {name: errors(train[name], tests[name]) for name in FEATURES}


def main(name: str = "mnist-5k", num_runs: str = "3") -> None:
    digits = data.load(name)
    runs = [one_run(digits, seed) for seed in range(int(num_runs))]
    errors = {name: np.mean([run[name] for run in runs], 0) for name in FEATURES}
    print("labeled digits; test error in %, from", ", ".join(FEATURES))
    for row, count in enumerate(NUM_LABELLED):
        print(f"{count:5d}  ", *(f"{errors[name][row]:6.2f}" for name in FEATURES))
        ratio = errors["all cells"][row] / errors["pixels"][row]
        assert ratio <= MAX_RATIO[count], f"{ratio:.2f} is over {MAX_RATIO[count]}"


if __name__ == "__main__":
    main(*sys.argv[1:])
