"""Adversarial examples by four attacks.

    dlc-jax train --name first
    python examples/explain_adversarial.py runs/first [PICTURE.png]

Fast gradient sign (Goodfellow et al. 2015), projected gradient descent in two norms (Madry et al.
2018) and box-constrained L-BFGS (Szegedy et al. 2014).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: caches compiled programs

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import ImageClassifier, adversarial
from dlc_jax.explain.report.context import first_image_of_each_class
from dlc_jax.explain.report.pictures import image_grid, image_row
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run

KEY = jax.random.key(0)
ATTACKS: dict[str, Callable[..., adversarial.AttackResult]] = {
    "FGSM": partial(adversarial.fast_gradient_sign, epsilon=0.2),
    "PGD": partial(adversarial.projected_gradient_descent, key=KEY, epsilon=0.2),
    "PGD, 2-norm": partial(adversarial.projected_gradient_descent, key=KEY, epsilon=2.0, norm="2"),
    "L-BFGS": adversarial.lbfgs_attack,
}


def main(folder: str, picture: str = "adversarial.png") -> None:
    run = Run.open(Path(folder))
    classifier, dataset = ImageClassifier.from_run(run), data.load(run.config.dataset)
    pixels, names = first_image_of_each_class(dataset)
    labels = np.arange(len(pixels))
    rows, titles = [image_row(pixels, "pixels", names)], ["image"]
    for name, attack in ATTACKS.items():
        result = attack(classifier, pixels, labels)
        predictions = np.asarray(classifier.logits(result.pixels)).argmax(1)
        texts = [
            f"{dataset.class_names[prediction]}, {100 * confidence:.0f} %"
            for prediction, confidence in zip(
                predictions, np.asarray(result.confidence), strict=True
            )
        ]
        perturbations = result.pixels - pixels
        rows += [image_row(result.pixels, "pixels", texts), image_row(perturbations, "signed")]
        titles += [name, "difference"]
        summary = adversarial.summarize_attack(result)
        print(
            f"{name}: success rate {100 * summary.success_rate:.0f} %, mean 2-norm "
            f"{summary.l2_distance:.2f}, mean confidence {100 * summary.confidence:.0f} %"
        )
    figure = image_grid(rows, "Adversarial examples", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
