"""The first filters of a network, and what all of its stages make of an image.

    dlc-jax train --name first
    python examples/explain_filters.py runs/first [PICTURE.png]

Each filter and each feature map states its range; of filters, mid-grey is zero.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.filters import feature_maps, first_filters
from dlc_jax.explain.report.pictures import cells, maps_in_a_square, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "filters.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    kernels = np.asarray(first_filters(view))[:40]
    rows = [cells(kernels[i : i + 10], "signed") for i in range(0, len(kernels), 10)]
    titles = ["filters", *[""] * (len(rows) - 1)]
    pixels = dataset.test.images[:10].astype(np.float32) / 255
    rows.append(cells(pixels))
    titles.append("images")
    for stage, maps in feature_maps(view, pixels).items():
        rows.append([maps_in_a_square(of_image) for of_image in np.asarray(maps)])
        titles.append(stage)
        print(f"{stage}: {100 * float((maps > 0).mean()):.0f} % of activations are positive")
    figure = rows_of_images(rows, "First filters, and feature maps", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
