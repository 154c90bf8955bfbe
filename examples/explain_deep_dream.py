"""Images changed so that the activations of a stage grow.

    dlc-jax train --name first
    python examples/explain_deep_dream.py runs/first [PICTURE.png]

Gradient ascent on half the squared norm of a stage's activations (Mordvintsev et al. 2015,
"Inceptionism"), with one octave, since some networks accept one image size only.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.deep_dream import deep_dream
from dlc_jax.explain.report.context import first_image_of_each_class
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "deep_dream.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels, names = first_image_of_each_class(dataset)
    shapes = classifier.stage_shapes(dataset.image_shape)
    stages = [name for name, shape in shapes.items() if len(shape) == 3]
    rows = [image_row(pixels, "pixels", names)]
    for stage in stages:
        result = deep_dream(classifier, pixels, stage, key=jax.random.key(0), octaves=1, steps=40)
        rows.append(image_row(result.images))
        growth = np.sqrt(result.objectives[0, -1] / result.objectives[0, 0])
        print(f"{stage}: the norm grew {growth.min():.1f} to {growth.max():.1f} times")
    figure = image_grid(rows, "DeepDream", row_titles=["image", *stages])
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
