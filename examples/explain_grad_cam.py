"""Where in digits the feature maps that speak for a class answer: Grad-CAM.

python examples/explain_grad_cam.py

The second layer's maps, weighted by the gradient of the logit of the right class, and of the class
that the network finds least likely, for which next to no map speaks (Selvaraju et al.
2017, section 3). Writes grad_cam.png.
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
from dlc_jax.explain.class_activation import grad_cam


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
    right = np.arange(10)
    firsts = [np.flatnonzero(digits.test.labels == label)[0] for label in right]
    pixels = digits.test.images[firsts].astype(np.float32) / 255
    least = np.asarray(view.logits(pixels)).argmin(1)
    heats = [np.asarray(grad_cam(view, pixels, labels, "conv2")) for labels in (right, least)]

    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    figure.suptitle("digits, 0 black to 1 white; Grad-CAM for the right and the least likely class")
    grid = figure.subplots(3, 10)
    for i in range(10):
        grid[0, i].imshow(pixels[i, ..., 0], cmap="gray", vmin=0, vmax=1)
        most = max(heat[i].max() for heat in heats)
        for axes, heat, labels in zip(grid[1:, i], heats, (right, least), strict=True):
            axes.imshow(heat[i], cmap="magma", vmin=0, vmax=most)
            axes.set_title(f"as {labels[i]}: 0 to {most:.2g}", fontsize="small")
    for axes in grid.flat:
        axes.axis("off")
    plots.save(figure, Path("grad_cam.png"))

    for_right, for_least = (float(heat.mean()) for heat in heats)
    print(f"mean heat for the right class {for_right:.2f}, for the least likely {for_least:.2f}")
    assert for_right > 2 * for_least


if __name__ == "__main__":
    main()
