"""What two layers of the lecture's network add to digits when they dream.

python examples/explain_dream.py                digits of mnist-5k
python examples/explain_dream.py picture.png    and a picture of your own, PNG or JPEG

Gradient ascent on half the squared norm of a layer's activations (Mordvintsev et al. 2015,
"Inceptionism"). The network takes images of one size alone, so that there is one octave. Writes
dream.png.
"""

import sys
from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from dlc_jax import data, models, plots, training
from dlc_jax.data.images import read_image
from dlc_jax.explain import View
from dlc_jax.explain.dream import dream

STAGES = ("conv1", "conv2")


def trained(digits: data.Dataset) -> View:
    normalise = data.Normalise.fit(digits.train.images)
    model = models.Lecture(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    state = training.create_state(model, optax.sgd(0.1))
    for _ in range(5):
        state, _ = training.train_epoch(state, digits.train, normalise, batch_size=50)
    return View.of(nnx.merge(state.graphdef, state.params, state.stats), normalise)


def main(*paths: str) -> None:
    digits = data.load("mnist-5k")
    view = trained(digits)
    own = [read_image(path, digits.image_shape, dark_background=True)[0] for path in paths]
    firsts = [np.flatnonzero(digits.test.labels == label)[0] for label in range(10)]
    pixels = np.stack([*digits.test.images[firsts], *own]) / np.float32(255)
    rows = {"as it is": pixels}
    for stage in STAGES:
        result = dream(view, pixels, stage, key=jax.random.key(0), octaves=1, steps=40)
        rows[stage] = np.asarray(result.images)
        growth = np.sqrt(result.objectives[0, -1] / result.objectives[0, 0])
        print(f"{stage}: norms grew {growth.min():.1f} to {growth.max():.1f} times")
        assert growth.min() > 1.1

    figure = Figure(figsize=(1.1 * len(pixels), 3.8), dpi=120, layout="constrained")
    figure.suptitle("digits, and what two layers dream of them; 0 black to 1 white")
    grid = figure.subplots(len(rows), len(pixels), squeeze=False)
    for of_row, (name, images) in zip(grid, rows.items(), strict=True):
        of_row[0].set_title(name, fontsize="small", loc="left")
        for axes, image in zip(of_row, images, strict=True):
            axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=1)
            axes.axis("off")
    plots.save(figure, Path("dream.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
