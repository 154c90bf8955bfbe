"""Where hiding a part of an image with a grey square takes the network's answer away.

    dlc-jax train --name first
    python examples/explain_occlusion.py runs/first [PICTURE.png]

The probability of the right class with a square around each pixel in turn (Zeiler and Fergus 2014,
section 4.2).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.occlusion import occlusion
from dlc_jax.explain.report.context import first_of_each_class
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "occlusion.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels, names = first_of_each_class(dataset)
    size = dataset.image_shape[0] // 3
    probabilities = occlusion(view, pixels, np.arange(len(pixels)), size=size, stride=1)
    rows = [cells(pixels, "pixels", names), cells(probabilities, "probability")]
    title = f"The right class's probability with a square of {size}x{size} there"
    figure = rows_of_images(rows, title, row_titles=["image", "probability"])
    least = np.asarray(probabilities).min((1, 2))
    print(f"of {len(pixels)} images {(least < 0.5).sum()} are no longer known with a part hidden")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
