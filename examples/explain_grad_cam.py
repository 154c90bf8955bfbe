"""Grad-CAM of the most and the least probable class.

    dlc-jax train --name first
    python examples/explain_grad_cam.py runs/first [PICTURE.png]

The feature maps that increase the logit of a class (Selvaraju et al. 2017, section 3); almost none
do so for the least probable class.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.grad_cam import grad_cam
from dlc_jax.explain.report.context import first_image_of_each_class
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "grad_cam.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels, names = first_image_of_each_class(dataset)
    shapes = classifier.stage_shapes(dataset.image_shape)
    stage = [name for name, shape in shapes.items() if len(shape) == 3][-1]
    logits = np.asarray(classifier.logits(pixels))
    rows, titles = [image_row(pixels, "pixels", names)], ["image"]
    for name, labels in {
        "most probable": logits.argmax(1),
        "least probable": logits.argmin(1),
    }.items():
        heatmaps = grad_cam(classifier, pixels, labels, stage)
        classes = [dataset.class_names[label] for label in labels]
        rows.append(image_row(heatmaps, "heatmap", classes, background=pixels))
        titles.append(name)
        print(f"{name}: {float(heatmaps.mean()):.3f} of a logit for each position, on average")
    figure = image_grid(rows, f"Grad-CAM of {stage}", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
