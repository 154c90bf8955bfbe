"""The image that each class of the lecture's network answers most to.

python examples/explain_maximise.py                 writes maximised.png
python examples/explain_maximise.py picture.png     writes picture.png

Activation maximisation (Simonyan et al. 2014, section 2) with regularisers: above, for each of
the ten classes the image that its logit was climbed on; below, the test digit that excites it
most.
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
from dlc_jax.explain import View
from dlc_jax.explain.maximisation import maximise


def trained(digits: data.Dataset) -> View:
    normalise = data.Normalise.fit(digits.train.images)
    model = models.Lecture(image_shape=digits.image_shape, num_classes=10, rngs=nnx.Rngs(0))
    state = training.create_state(model, optax.sgd(0.1))
    for _ in range(5):
        state, _ = training.train_epoch(state, digits.train, normalise, batch_size=50)
    return View.of(nnx.merge(state.graphdef, state.params, state.stats), normalise)


def main(picture: str = "maximised.png") -> None:
    digits = data.load("mnist-5k")
    view = trained(digits)
    classes = np.arange(10)
    key, shape = jax.random.key(0), digits.image_shape
    images = maximise(view, "logits", classes, key=key, image_shape=shape).images
    logits = np.asarray(view.logits(images))
    real = digits.test.images / np.float32(255)
    real_logits = np.asarray(view.logits(real))
    best = real_logits.argmax(0)

    figure = Figure(figsize=(12, 3.1), dpi=120, layout="constrained")
    figure.suptitle("maximised logits, and the test digits of the largest; 0 black to 1 white")
    for column, (above, below) in enumerate(figure.subplots(2, 10).T):
        for axes, image, logit in (
            (above, images[column], logits[column, column]),
            (below, real[best[column]], real_logits[best[column], column]),
        ):
            axes.imshow(np.squeeze(image), cmap="gray", vmin=0, vmax=1)
            axes.set_title(f"{column}: {logit:.0f}", fontsize="small")
            axes.axis("off")
    plots.save(figure, Path(picture))

    ratio = logits.diagonal() / real_logits.max(0)
    right = (logits.argmax(1) == classes).sum()
    print(f"{right} of 10 taken for their class; logits {ratio.min():.1f} to {ratio.max():.1f}"
          f" times the largest of 1,000 test digits': {picture}")  # fmt: skip
    assert right == 10
    assert ratio.min() > 1


if __name__ == "__main__":
    main(*sys.argv[1:])
