"""What in test images excites feature maps most, projected back to pixels by three rules.

    dlc-jax train --name first
    python examples/explain_deconvnet.py runs/first [PICTURE.png]

For six maps of the last stage with positions: the test image with the strongest activation, with
what the map sees of it in red; and the projections (Zeiler and Fergus 2014, section 2.1;
Springenberg et al. 2015, section 3.4).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import View
from dlc_jax.explain.deconvnet import project, receptive_box, strongest
from dlc_jax.explain.rectifiers import RULES
from dlc_jax.explain.report.pictures import Cell, cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "deconvnet.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels = dataset.test.images[:1000].astype(np.float32) / 255
    shapes = view.stage_shapes(dataset.image_shape)
    stage = [name for name, shape in shapes.items() if len(shape) == 3 and shape[0] > 1][-1]
    indices, values = strongest(view, pixels, stage, count=1)
    maps = np.argsort(-np.asarray(values[:, 0]))[:6]
    chosen = pixels[np.asarray(indices)[maps, 0]]
    projections = {rule: project(view, chosen, stage, maps, rule=rule) for rule in RULES}

    places = np.asarray(projections["deconvnet"].place).tolist()
    boxes = [receptive_box(view, dataset.image_shape, stage, *place) for place in places]
    seen = [
        Cell(image, "pixels", f"map {number}", box)
        for image, number, box in zip(chosen, maps, boxes, strict=True)
    ]
    rows = [seen, *(cells(projections[rule].pixels, "signed") for rule in RULES)]
    titles = ["image", *RULES]
    figure = rows_of_images(rows, f"What excites maps of {stage} most", row_titles=titles)
    for (top, bottom, left, right), number in zip(boxes, maps, strict=True):
        print(f"map {number} sees rows {top} to {bottom - 1}, columns {left} to {right - 1}")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
