"""Images that are nothing to a person, and of which a network is sure that it knows their class.

    dlc-jax train --name first
    python examples/explain_fooling.py runs/first [PICTURE.png]

By gradient ascent, and by evolution of pixels and of pattern-producing networks (Nguyen et al.
2015).
"""

import sys
from pathlib import Path

from dlc_jax.utils.environment import prepare_jax

prepare_jax()  # before JAX is imported: a cache of compiled programs

import jax
import numpy as np

from dlc_jax import data
from dlc_jax.explain import View, fooling
from dlc_jax.explain.report.pictures import cells, rows_of_images
from dlc_jax.runs import plots
from dlc_jax.runs.folder import Run


def main(folder: str, picture: str = "fooling.png") -> None:
    run = Run.open(Path(folder))
    view, dataset = View.of_run(run), data.load(run.config.dataset)
    shape, classes, key = dataset.image_shape, np.arange(10), jax.random.key(0)
    found = {"gradient": fooling.by_gradient(view, classes, key=key, image_shape=shape)}
    for encoding in ("direct", "cppn"):
        evolved = fooling.by_evolution(view, key=key, image_shape=shape, encoding=encoding)
        found[encoding] = evolved.elites[:10]
        first = np.argmax(np.asarray(evolved.history).min(1) > 0.99)
        print(f"{encoding}: the network is 99 % sure of all after {first} generations")
    rows = []
    for name, images in found.items():
        confidences = np.asarray(jax.nn.softmax(view.logits(images))).diagonal()
        texts = [f"{100 * confidence:.1f} %" for confidence in confidences]
        rows.append(cells(images, "pixels", texts))
        print(f"{name}: least confidence {100 * confidences.min():.2f} %")
    title = f"What the network takes for {', '.join(dataset.class_names[:10])}"
    figure = rows_of_images(rows, title, row_titles=list(found))
    plots.save(figure, Path(picture))
    print(picture)


if __name__ == "__main__":
    main(*sys.argv[1:])
