"""What in digits excites six feature maps most, projected back to pixels by three rules.

python examples/explain_deconvnet.py

For each of six maps of the second layer it finds the test digit with the strongest activation,
draws what of the digit the map sees, and projects the activation back (Zeiler and Fergus 2014,
section 2.1; Springenberg et al. 2015, section 3.4). Writes deconvnet.png.
"""

from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View, deconvnet
from dlc_jax.explain.rectifiers import RULES

STAGE, MAPS = "conv2", 6


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
    pixels = digits.test.images.astype(np.float32) / 255
    indices, values = deconvnet.strongest(view, pixels, STAGE, count=1)
    maps = np.argsort(-np.asarray(values[:, 0]))[:MAPS]
    chosen = pixels[np.asarray(indices)[maps, 0]]
    projections = {rule: deconvnet.project(view, chosen, STAGE, maps, rule=rule) for rule in RULES}

    figure = Figure(figsize=(1.5 * MAPS, 7.2), dpi=120, layout="constrained")
    figure.suptitle(f"What excites {MAPS} maps of {STAGE} most; grey is zero, white and black ±")
    grid = figure.subplots(1 + len(RULES), MAPS)
    places = np.asarray(projections["deconvnet"].place)
    for i, (row, column) in enumerate(places):
        top, bottom, left, right = deconvnet.receptive_box(
            view, digits.image_shape, STAGE, row, column
        )
        shown = np.s_[top:bottom, left:right, 0]
        grid[0, i].imshow(chosen[i][shown], cmap="gray", vmin=0, vmax=1)
        grid[0, i].set_title(f"map {maps[i]}: patch,\n0 to 1", fontsize="small")
        for axes, (rule, projection) in zip(grid[1:, i], projections.items(), strict=True):
            image = np.asarray(projection.pixels[i])
            most = float(np.abs(image).max())
            axes.imshow(image[shown], cmap="gray", vmin=-most, vmax=most)
            axes.set_title(f"{rule},\n±{most:.2g}", fontsize="small")
            outside = image.copy()
            outside[shown] = 0
            assert not outside.any(), "a position is excited by pixels that it does not see"
    for axes in grid.flat:
        axes.axis("off")
    plots.save(figure, Path("deconvnet.png"))

    ink = {
        rule: float(np.abs(projection.pixels)[chosen > 0.5].sum() / np.abs(projection.pixels).sum())
        for rule, projection in projections.items()
    }
    print(
        "of each projection on ink:", *(f"{rule} {100 * part:.0f} %," for rule, part in ink.items())
    )
    assert ink["guided"] > ink["gradient"]


if __name__ == "__main__":
    main()
