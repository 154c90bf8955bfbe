"""Gradients of a logit with respect to the pixels, and saliency maps.

    dlc-jax train --name first
    python examples/explain_saliency.py runs/first [PICTURE.png]

The gradient of the correct class's logit (Simonyan et al. 2014, section 3), its absolute value, and
guided backpropagation (Springenberg et al. 2015).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.report.context import first_image_of_each_class
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.explain.saliency import input_gradient, saliency_map
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "saliency.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels, names = first_image_of_each_class(dataset)
    labels = np.arange(len(pixels))
    gradients = np.asarray(input_gradient(classifier, pixels, labels))
    rows = [
        image_row(pixels, "pixels", names),
        image_row(gradients, "signed"),
        image_row(saliency_map(classifier, pixels, labels), "heatmap"),
        image_row(input_gradient(classifier, pixels, labels, rule="guided"), "signed"),
    ]
    titles = ["image", "gradient", "saliency", "guided"]
    figure = image_grid(rows, "Gradient of the correct class's logit", row_titles=titles)

    # The increase of the logits after a small step along the gradient, and its prediction.
    step = 1e-3 * gradients / np.linalg.norm(gradients.reshape(len(pixels), -1), axis=1).max()
    before, after = (np.asarray(classifier.logits(each)) for each in (pixels, pixels + step))
    increase = (after - before)[labels, labels].sum()
    print(f"logits grow by {increase:.4f}; first-order estimate {(step * gradients).sum():.4f}")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
