"""What a network's stages add to images when they dream.

    dlc-jax train --name first
    python examples/explain_dream.py runs/first [PICTURE.png]

Gradient ascent on half the squared norm of a stage's activations (Mordvintsev et al. 2015,
"Inceptionism"). A network that takes images of one size alone dreams at one octave.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.dream import dream
from dlc_jax.explain.report.context import first_of_each_class
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "dream.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels, names = first_of_each_class(dataset)
    shapes = view.stage_shapes(dataset.image_shape)
    stages = [name for name, shape in shapes.items() if len(shape) == 3]
    rows = [cells(pixels, "pixels", names)]
    for stage in stages:
        result = dream(view, pixels, stage, key=jax.random.key(0), octaves=1, steps=40)
        rows.append(cells(result.images))
        growth = np.sqrt(result.objectives[0, -1] / result.objectives[0, 0])
        print(f"{stage}: its norm grew {growth.min():.1f} to {growth.max():.1f} times")
    figure = rows_of_images(rows, "What stages dream of images", row_titles=["image", *stages])
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
