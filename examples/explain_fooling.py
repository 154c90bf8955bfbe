"""Unrecognizable images that a network classifies with high confidence.

    dlc-jax train --name first
    python examples/explain_fooling.py runs/first [PICTURE.png]

By gradient ascent, and by evolution of pixels and of compositional pattern-producing networks
(Nguyen et al. 2015).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier, fooling
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run

ENCODINGS: tuple[fooling.EncodingName, ...] = ("direct", "cppn")


def main(folder: str, picture: str = "fooling.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    shape, classes, key = dataset.image_shape, np.arange(10), jax.random.key(0)
    images = {
        "gradient": fooling.fooling_images_by_gradient(
            classifier, classes, key=key, image_shape=shape
        )
    }
    for encoding in ENCODINGS:
        result = fooling.fooling_images_by_evolution(
            classifier, key=key, image_shape=shape, encoding=encoding
        )
        images[encoding] = result.images[:10]
        first = np.argmax(np.asarray(result.history).min(1) > 0.99)
        print(f"{encoding}: all confidences are above 99 % after {first} generations")
    rows = []
    for name, each in images.items():
        confidences = np.asarray(classifier.probabilities(each)).diagonal()
        rows.append(image_row(each, "pixels", [f"{100 * value:.1f} %" for value in confidences]))
        print(f"{name}: smallest confidence {100 * confidences.min():.2f} %")
    title = f"Fooling images of {', '.join(dataset.class_names[:10])}"
    figure = image_grid(rows, title, row_titles=list(images))
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
