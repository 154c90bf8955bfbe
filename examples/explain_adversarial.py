"""Digits changed a little, so that a network takes them for others: three attacks in a picture.

python examples/explain_adversarial.py [PICTURE]

Two lecture networks are trained on mnist-5k. The digits are attacked by fast gradient sign
(Goodfellow et al. 2015), projected gradient descent (Madry et al. 2018) and box-constrained L-BFGS
(Szegedy et al. 2014). What is made for each network is tested on both.
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np
import optax
from flax import nnx

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View, adversarial
from dlc_jax.explain.pictures import Cell, rows_of_images

ATTACKS: dict[str, Callable[..., adversarial.Attack]] = {
    "fast gradient sign": partial(adversarial.fast_gradient_sign, epsilon=0.2),
    "projected gradient descent": partial(
        adversarial.projected_gradient_descent, key=jax.random.key(0), epsilon=0.1, steps=20
    ),
    "L-BFGS": adversarial.smallest_perturbation,
}
# Of all digits, how many an attack must mislead at least.
LEAST = {"fast gradient sign": 0.5, "projected gradient descent": 0.3, "L-BFGS": 0.95}


def train(digits: data.Dataset, seed: int, epochs: int = 5) -> View:
    model = models.Lecture(image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(seed))
    normalise = data.Normalise.fit(digits.train.images)
    state = training.create_state(model, optax.sgd(0.1))
    for _ in range(epochs):
        state, _ = training.train_epoch(
            state, digits.train, normalise, batch_size=50, key=jax.random.key(seed)
        )
    return View.of(state.model, normalise)  # type: ignore[arg-type]


def cells(view: View, pixels: np.ndarray, attack: adversarial.Attack) -> list[list[Cell]]:
    """A row of perturbations, and a row of what they make of the digits."""
    images = np.asarray(attack.pixels)
    predictions = np.asarray(view.logits(images)).argmax(1)
    certain = [f"{100 * confidence:.0f} %" for confidence in np.asarray(attack.confidence)]
    return [
        [Cell(change, "signed") for change in images - pixels],
        [
            Cell(image, "pixels", f"{prediction}, {confidence}")
            for image, prediction, confidence in zip(images, predictions, certain, strict=True)
        ],
    ]


def main(picture: str = "explain_adversarial.png") -> None:
    digits = data.load("mnist-5k")
    views = [train(digits, seed) for seed in range(2)]
    # Five of each digit, of which one is drawn.
    labels = np.asarray(digits.test.labels)
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:5] for digit in range(10)])
    labels, pixels = labels[chosen], np.asarray(digits.test.images, np.float32)[chosen] / 255
    rows = [[Cell(pixels[i], "pixels", str(labels[i])) for i in range(0, 50, 5)]]
    row_titles = ["digit"]
    for name, attack in ATTACKS.items():
        attacks = [attack(view, pixels, labels) for view in views]
        drawn = jax.tree.map(lambda of: of[::5], attacks[0])
        rows += cells(views[0], pixels[::5], drawn)
        row_titles += [name, ""]
        report = adversarial.report(attacks[0])
        print(
            f"{name}: {100 * report.success_rate:.0f} % succeed, with a confidence of "
            f"{100 * report.confidence:.0f} %, by {report.distance_2:.2f} in norm 2, "
            f"{report.distance_inf:.2f} at most"
        )
        assert report.success_rate >= LEAST[name]
        table = 100 * np.asarray(adversarial.transfer(views, [of.pixels for of in attacks], labels))
        print("  errors in %, [made for, tested on]:", table.round().astype(int).tolist())
    title = "Digits, perturbations, and what the adversarial digits (0 to 1) are taken for"
    plots.save(rows_of_images(rows, title, row_titles=row_titles), Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
