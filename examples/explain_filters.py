"""Filters of the first layer, and feature maps of all stages.

    dlc-jax train --name first
    python examples/explain_filters.py runs/first [PICTURE.png]

Each image states its range; zero is mid-gray in filters.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.filters import feature_maps, first_layer_filters
from dlc_jax.explain.report.pictures import feature_map_cell, image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "filters.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    kernels = np.asarray(first_layer_filters(classifier))[:40]
    rows = [image_row(kernels[i : i + 10], "signed") for i in range(0, len(kernels), 10)]
    titles = ["filters", *[""] * (len(rows) - 1)]
    pixels = dataset.test.images[:10].astype(np.float32) / 255
    rows.append(image_row(pixels))
    titles.append("images")
    for stage, maps in feature_maps(classifier, pixels).items():
        rows.append([feature_map_cell(image_maps) for image_maps in np.asarray(maps)])
        titles.append(stage)
        print(f"{stage}: {100 * float((maps > 0).mean()):.0f} % of activations are positive")
    figure = image_grid(rows, "Filters of the first layer, and feature maps", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
