"""Where hiding a digit with a grey square takes a network's answer away.

python examples/explain_occlusion.py

The probability of the right class with a square of 7x7 pixels around each pixel in turn (Zeiler
and Fergus 2014, section 4.2). Writes occlusion.png.
"""

from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View
from dlc_jax.explain.occlusion import occlusion


def trained(digits: data.Dataset) -> View:
    normalise = data.Normalise.fit(digits.train.images)
    model = models.Lecture(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    state = training.create_state(model, optax.sgd(0.1))
    for _ in range(5):
        state, _ = training.train_epoch(state, digits.train, normalise, batch_size=50)
    return View.of(nnx.merge(state.graphdef, state.params, state.stats), normalise)


def main() -> None:
    digits = data.load("mnist-5k")
    view = trained(digits)
    labels = np.arange(10)
    firsts = [np.flatnonzero(digits.test.labels == label)[0] for label in labels]
    pixels = digits.test.images[firsts].astype(np.float32) / 255
    probabilities = np.asarray(occlusion(view, pixels, labels, size=7, stride=1))

    figure = Figure(figsize=(11, 2.9), dpi=120, layout="constrained")
    figure.suptitle(
        "digits, 0 black to 1 white; and the right class's probability with a grey square of 7x7 "
        "there,\n0 dark to 1 bright, and its least below",
        fontsize="medium",
    )
    grid = figure.subplots(2, 10)
    for i, (above, below) in enumerate(grid.T):
        above.imshow(pixels[i, ..., 0], cmap="gray", vmin=0, vmax=1)
        below.imshow(probabilities[i], cmap="magma", vmin=0, vmax=1)
        below.text(13.5, 31, f"{probabilities[i].min():.2f}", ha="center", fontsize=8)
    for axes in grid.flat:
        axes.axis("off")
    plots.save(figure, Path("occlusion.png"))

    corner, least = probabilities[:, 0, 0], probabilities.min((1, 2))
    print(f"a square in the corner leaves at least {100 * corner.min():.0f} % of certainty;")
    print(f"where it hides most, {(least < 0.5).sum()} of 10 digits are no longer recognised")
    assert (least < 0.5).sum() >= 2
    assert np.median(corner) > 0.9


if __name__ == "__main__":
    main()
