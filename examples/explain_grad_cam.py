"""Where the feature maps that speak for a class answer: Grad-CAM.

    dlc-jax train --name first
    python examples/explain_grad_cam.py runs/first [PICTURE.png]

For the class that the network finds most likely, and for the one that it finds least likely, for
which next to no map speaks (Selvaraju et al. 2017, section 3).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.class_activation import grad_cam
from dlc_jax.explain.report.context import first_of_each_class
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "grad_cam.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels, names = first_of_each_class(dataset)
    shapes = view.stage_shapes(dataset.image_shape)
    stage = [name for name, shape in shapes.items() if len(shape) == 3][-1]
    logits = np.asarray(view.logits(pixels))
    rows, titles = [cells(pixels, "pixels", names)], ["image"]
    for name, labels in {"most likely": logits.argmax(1), "least likely": logits.argmin(1)}.items():
        heat = grad_cam(view, pixels, labels, stage)
        classes = [dataset.class_names[label] for label in labels]
        rows.append(cells(heat, "heat", classes, under=pixels))
        titles.append(name)
        print(f"{name}: {float(heat.mean()):.3f} of a logit by position, on average")
    figure = rows_of_images(rows, f"Where {stage} speaks for a class", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
