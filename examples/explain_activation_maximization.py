"""An image that maximizes the logit of each class, beside the test image with the largest one.

    dlc-jax train --name first
    python examples/explain_activation_maximization.py runs/first [PICTURE.png]

Activation maximization (Simonyan et al. 2014, section 2) with regularization.
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier
from dlc_jax.explain.activation_maximization import maximize_activation
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "activation_maximization.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    classes, key = np.arange(min(10, len(dataset.class_names))), jax.random.key(0)
    images = maximize_activation(
        classifier, "logits", classes, key=key, image_shape=dataset.image_shape
    ).images
    logits = np.asarray(classifier.logits(images))

    test_images = dataset.test.images[:1000].astype(np.float32) / 255
    test_logits = np.asarray(classifier.logits(test_images))
    best = test_logits.argmax(0)[classes]
    rows = [
        image_row(images, "pixels", [f"{logit:.0f}" for logit in logits[classes, classes]]),
        image_row(
            test_images[best], "pixels", [f"{logit:.0f}" for logit in test_logits[best, classes]]
        ),
    ]
    figure = image_grid(
        rows,
        "Images with the largest logits",
        row_titles=["gradient\nascent", "of 1,000\ntest images"],
    )
    correct = (logits.argmax(1) == classes).sum()
    print(f"{correct} of {len(classes)} images are classified as the class they were made for")
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
