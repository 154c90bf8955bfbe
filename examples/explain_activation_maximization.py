"""For each class an image that its logit answers to most, beside the test image that does.

    dlc-jax train --name first
    python examples/explain_maximise.py runs/first [PICTURE.png]

Activation maximisation (Simonyan et al. 2014, section 2) with regularisers that make it legible.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.maximisation import maximise
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "maximise.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    classes, key = np.arange(min(10, len(dataset.class_names))), jax.random.key(0)
    images = maximise(view, "logits", classes, key=key, image_shape=dataset.image_shape).images
    logits = np.asarray(view.logits(images))

    real = dataset.test.images[:1000].astype(np.float32) / 255
    of_real = np.asarray(view.logits(real))
    best = of_real.argmax(0)[classes]
    rows = [
        cells(images, "pixels", [f"{logit:.0f}" for logit in logits[classes, classes]]),
        cells(real[best], "pixels", [f"{logit:.0f}" for logit in of_real[best, classes]]),
    ]
    figure = rows_of_images(
        rows,
        "Images of the largest logits",
        row_titles=["made by\nascent", "of 1,000\ntest images"],
    )
    right = (logits.argmax(1) == classes).sum()
    print(f"{right} of {len(classes)} images are taken for the class that they were made for")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
