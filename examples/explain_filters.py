"""The first filters of a network, and what both of its layers make of a digit.

python examples/explain_filters.py

Writes filters.png.
"""

from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View, filters


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
    kernels = np.asarray(filters.first_filters(view))[..., 0]
    pixels = digits.test.images[:1].astype(np.float32) / 255
    maps = {name: np.asarray(of)[0] for name, of in filters.feature_maps(view, pixels).items()}

    most = np.abs(kernels).max()
    rows = [(f"filters, ±{most:.2g}", kernels, "RdGy_r", -most, most)]
    for name, of_stage in maps.items():
        title = f"{name}, the first 32 of {of_stage.shape[2]} maps, 0 to {of_stage.max():.2g}"
        rows.append((title, of_stage.transpose(2, 0, 1)[:32], "magma", 0, of_stage.max()))
    figure = Figure(figsize=(11, 6.6), dpi=120, layout="constrained")
    for part, (title, images, colours, low, high) in zip(
        figure.subfigures(len(rows), 1), rows, strict=True
    ):
        part.suptitle(title, fontsize="medium")
        for axes, image in zip(part.subplots(2, 16).flat, images, strict=True):
            axes.imshow(image, cmap=colours, vmin=low, vmax=high)
            axes.axis("off")
    plots.save(figure, Path("filters.png"))

    initial = models.Lecture(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    before = np.asarray(initial.conv1.kernel[...])[:, :, 0].transpose(2, 0, 1)
    grown = np.linalg.norm(kernels) / np.linalg.norm(before)
    print(f"{len(kernels)} filters, whose norm grew {grown:.2f} times in training")
    assert grown > 1.1


if __name__ == "__main__":
    main()
