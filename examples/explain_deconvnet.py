"""Images with the strongest activations of feature maps, projected to pixels.

    dlc-jax train --name first
    python examples/explain_deconvnet.py runs/first [PICTURE.png]

For six maps of the last stage with feature maps: the test image with the strongest activation, with
the receptive field in red, and the projections by three rules for rectifiers (Zeiler and Fergus
2014, section 2.1; Springenberg et al. 2015, section 3.4).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.deconvnet import project_activation, receptive_field, top_activating_images
from dlc_jax.explain.relu_rules import RELU_RULES
from dlc_jax.explain.report.pictures import ImageCell, image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "deconvnet.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels = dataset.test.images[:1000].astype(np.float32) / 255
    shapes = classifier.stage_shapes(dataset.image_shape)
    stage = [name for name, shape in shapes.items() if len(shape) == 3 and shape[0] > 1][-1]
    indices, activations = top_activating_images(classifier, pixels, stage, count=1)
    maps = np.argsort(-np.asarray(activations[:, 0]))[:6]
    images = pixels[np.asarray(indices)[maps, 0]]
    projections = {
        rule: project_activation(classifier, images, stage, maps, rule=rule) for rule in RELU_RULES
    }

    positions = np.asarray(projections["deconvnet"].position).tolist()
    boxes = [
        receptive_field(classifier, dataset.image_shape, stage, *position) for position in positions
    ]
    cells = [
        ImageCell(image, "pixels", f"map {index}", box)
        for image, index, box in zip(images, maps, boxes, strict=True)
    ]
    rows = [cells, *(image_row(projections[rule].pixels, "signed") for rule in RELU_RULES)]
    title = f"Images with the strongest activations of {stage}"
    figure = image_grid(rows, title, row_titles=["image", *RELU_RULES])
    for (top, bottom, left, right), index in zip(boxes, maps, strict=True):
        print(f"map {index}: rows {top} to {bottom - 1}, columns {left} to {right - 1}")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
