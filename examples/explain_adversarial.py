"""Images changed a little, so that a network takes them for something else: four attacks.

    dlc-jax train --name first
    python examples/explain_adversarial.py runs/first [PICTURE.png]

Fast gradient sign (Goodfellow et al. 2015), projected gradient descent in two norms (Madry et al.
2018) and box-constrained L-BFGS (Szegedy et al. 2014).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

from collections.abc import Callable
from functools import partial

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import View, adversarial
from dlc_jax.explain.report.context import first_of_each_class
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run

KEY = jax.random.key(0)
ATTACKS: dict[str, Callable[..., adversarial.Attack]] = {
    "FGSM": partial(adversarial.fast_gradient_sign, epsilon=0.2),
    "PGD": partial(adversarial.projected_gradient_descent, key=KEY, epsilon=0.2),
    "PGD, 2-norm": partial(adversarial.projected_gradient_descent, key=KEY, epsilon=2.0, norm="2"),
    "L-BFGS": adversarial.smallest_perturbation,
}


def main(folder: str, picture: str = "adversarial.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    pixels, names = first_of_each_class(dataset)
    labels = np.arange(len(pixels))
    rows, titles = [cells(pixels, "pixels", names)], ["image"]
    for name, attack in ATTACKS.items():
        made = attack(view, pixels, labels)
        answers = np.asarray(view.logits(made.pixels)).argmax(1)
        texts = [
            f"{dataset.class_names[answer]}, {100 * confidence:.0f} %"
            for answer, confidence in zip(answers, np.asarray(made.confidence), strict=True)
        ]
        rows += [cells(made.pixels, "pixels", texts), cells(made.pixels - pixels, "signed")]
        titles += [name, "difference"]
        report = adversarial.report(made)
        print(
            f"{name}: {100 * report.success_rate:.0f} % succeed, at a mean distance of "
            f"{report.distance_2:.2f}, with a confidence of {100 * report.confidence:.0f} %"
        )
    figure = rows_of_images(rows, "Adversarial images", row_titles=titles)
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
