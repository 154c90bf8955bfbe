"""Which pixels of digits a network's answer depends on.

python examples/explain_saliency.py

The gradient of the right class's logit with respect to the pixels, and its absolute value
(Simonyan et al. 2014, section 3). Writes saliency.png.
"""

from pathlib import Path

from dlc_jax.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

from dlc_jax import data, models, plots, training
from dlc_jax.explain import View, saliency


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
    gradients = np.asarray(saliency.gradient(view, pixels, labels))
    maps = np.asarray(saliency.saliency(view, pixels, labels))

    figure = Figure(figsize=(11, 4.4), dpi=120, layout="constrained")
    figure.suptitle("digits, 0 black to 1 white; the gradient, zero grey; its absolute value")
    grid = figure.subplots(3, 10)
    for i, (image, gradient, absolute) in enumerate(grid.T):
        most = maps[i].max()
        image.imshow(pixels[i, ..., 0], cmap="gray", vmin=0, vmax=1)
        gradient.imshow(gradients[i, ..., 0], cmap="gray", vmin=-most, vmax=most)
        gradient.set_title(f"±{most:.2g}", fontsize="small")
        absolute.imshow(maps[i], cmap="magma", vmin=0, vmax=most)
        absolute.set_title(f"0 to {most:.2g}", fontsize="small")
    for axes in grid.flat:
        axes.axis("off")
    plots.save(figure, Path("saliency.png"))

    # A small step along the gradient: the logit grows by what the gradient says.
    step = 1e-3 * gradients / np.sqrt((gradients**2).sum((1, 2, 3), keepdims=True))
    logits = np.asarray(view.logits(np.concatenate([pixels + step, pixels - step])))
    grown = (logits[:10] - logits[10:])[labels, labels] / 2
    expected = (step * gradients).sum((1, 2, 3))
    print(f"logits grow {(grown / expected).min():.3f} to {(grown / expected).max():.3f} times")
    print("as much along the gradient as it says")
    np.testing.assert_allclose(grown, expected, rtol=0.1)


if __name__ == "__main__":
    main()
