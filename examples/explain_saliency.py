"""Which pixels a network's answer depends on: the gradient of a logit, and its size.

    dlc-jax train --name first
    python examples/explain_saliency.py runs/first [PICTURE.png]

The gradient of the right class's logit with respect to the pixels (Simonyan et al. 2014, section
3), as it is, and with the rectifiers of guided backpropagation (Springenberg et al. 2015).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.report.context import first_of_each_class
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.explain.saliency import gradient, saliency
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "saliency.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels, names = first_of_each_class(dataset)
    labels = np.arange(len(pixels))
    gradients = np.asarray(gradient(view, pixels, labels))
    rows = [
        cells(pixels, "pixels", names),
        cells(gradients, "signed"),
        cells(saliency(view, pixels, labels), "heat"),
        cells(gradient(view, pixels, labels, rule="guided"), "signed"),
    ]
    titles = ["image", "gradient", "its size", "guided"]
    figure = rows_of_images(rows, "What the right class's logit depends on", row_titles=titles)

    # A small step along the gradient: by how much the logit grows, and by how much it should.
    step = 1e-3 * gradients / np.linalg.norm(gradients.reshape(len(pixels), -1), axis=1).max()
    grown = np.asarray(view.logits(pixels + step) - view.logits(pixels))[labels, labels]
    print(f"logits grow by {grown.sum():.4f}, of {(step * gradients).sum():.4f} to first order")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
