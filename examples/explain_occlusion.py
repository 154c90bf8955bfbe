"""Probability of the correct class while a gray square covers part of the image.

    dlc-jax train --name first
    python examples/explain_occlusion.py runs/first [PICTURE.png]

Occlusion sensitivity, with a square around each pixel (Zeiler and Fergus 2014, section 4.2).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.occlusion import occlusion_sensitivity
from dlc_jax.explain.report.context import first_image_of_each_class
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "occlusion.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels, names = first_image_of_each_class(dataset)
    size = dataset.image_shape[0] // 3
    probabilities = occlusion_sensitivity(
        classifier, pixels, np.arange(len(pixels)), patch_size=size, stride=1
    )
    rows = [image_row(pixels, "pixels", names), image_row(probabilities, "probability")]
    title = f"Probability of the correct class with a square of {size}x{size}"
    figure = image_grid(rows, title, row_titles=["image", "probability"])
    smallest = np.asarray(probabilities).min((1, 2))
    count = (smallest < 0.5).sum()
    print(f"{count} of {len(pixels)} images fall below a probability of 50 % with a part covered")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
