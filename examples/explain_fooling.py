"""Images that are nothing to a person, and of which a network is sure that they are digits.

python examples/explain_fooling.py [PICTURE]

A lecture network is trained on mnist-5k, and fooled by gradient ascent and by evolution of pixels
and of pattern-producing networks (Nguyen et al. 2015).
"""

import sys
from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np
import optax
from flax import nnx

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View, fooling
from dlc_jax.explain.pictures import Cell, rows_of_images

SHAPE = (28, 28, 1)


def train(digits: data.Dataset, epochs: int = 5) -> View:
    model = models.Lecture(image_shape=SHAPE, num_classes=10, rngs=nnx.Rngs(0))
    normalise = data.Normalise.fit(digits.train.images)
    state = training.create_state(model, optax.sgd(0.1))
    for _ in range(epochs):
        state, _ = training.train_epoch(state, digits.train, normalise, batch_size=50)
    return View.of(state.model, normalise)  # type: ignore[arg-type]


def main(picture: str = "explain_fooling.png") -> None:
    view, key = train(data.load("mnist-5k")), jax.random.key(0)
    found = {"gradient": fooling.by_gradient(view, np.arange(10), key=key, image_shape=SHAPE)}
    for encoding in ("direct", "cppn"):
        evolved = fooling.by_evolution(
            view, key=key, image_shape=SHAPE, classes=10, encoding=encoding
        )
        found[f"evolution, {encoding}"] = evolved.elites
        first = [int(at) for at in np.argmax(np.asarray(evolved.history) > 0.99, 0)]
        print(f"{encoding}: generations until 99 %, for each digit: {first}")
    rows = []
    for name, images in found.items():
        confidences = np.asarray(jax.nn.softmax(view.logits(images))).diagonal()
        print(f"{name}: least confidence {100 * confidences.min():.2f} %")
        assert confidences.min() >= 0.99
        rows.append(
            [
                Cell(image, "pixels", f"{digit}, {100 * confidence:.2f} %")
                for digit, (image, confidence) in enumerate(
                    zip(np.asarray(images), confidences, strict=True)
                )
            ]
        )
    title = "What a network takes for digits; pixels from 0 to 1"
    plots.save(rows_of_images(rows, title, row_titles=list(found)), Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
