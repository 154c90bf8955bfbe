"""What a network would like to see, as pictures."""

from collections.abc import Iterator

import jax
import numpy as np

from dlc_jax.explain import ascent, dream, maximisation
from dlc_jax.explain.report.context import Subject, Tick, one_by_one, spread
from dlc_jax.explain.report.html import Picture
from dlc_jax.explain.report.pictures import cells, rows_of_images

_OCTAVES, _OCTAVE_SCALE = 3, 1.4


def draw_maximised(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """For each class an image that its logit answers to most."""
    names, half = subject.classes, 5

    def maximise(maps: np.ndarray) -> jax.Array:
        return maximisation.maximise(
            subject.view,
            "logits",
            maps,
            key=subject.key,
            image_shape=subject.dataset.image_shape,
        ).images

    images = one_by_one(maximise, tick, np.arange(len(names)), at_once=half)
    titles = subject.confidences(images)
    rows = [
        cells(images[start : start + half], "pixels", titles[start : start + half])
        for start in range(0, len(names), half)
    ]
    yield Picture(
        "maximise",
        rows_of_images(rows, "An image that each class's logit answers to most"),
        "Made by gradient ascent from smooth noise: what the network looks for in each class. "
        "Above each stands the class, and the probability that the network gives it.",
    )


def draw_dreams(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """The images after some stages have dreamt of them."""
    stages = spread(subject.spatial_stages, 4)[-3:]
    octaves = _octaves(subject)
    for page, part in subject.pages():
        rows = [cells(part.pixels, "pixels", part.titles)]
        for done, stage in enumerate(stages, 1):
            dreamt = dream.dream(
                part.view,
                part.pixels,
                stage,
                key=part.key,
                octaves=octaves,
                octave_scale=_OCTAVE_SCALE,
            )
            rows.append(cells(dreamt.images))
            tick(done / len(stages))
        yield Picture(
            f"dream{page}",
            rows_of_images(rows, "Deep Dream", row_titles=["image", *stages]),
            "Each image changed so that whatever a stage sees in it, it sees more of.",
        )


def _octaves(subject: Subject) -> int:
    """As many as the network takes images of; some take one size alone."""
    shape = subject.dataset.image_shape
    for octaves in range(_OCTAVES, 1, -1):
        sizes = dream.octave_shapes(shape, octaves, _OCTAVE_SCALE)
        if all(ascent.accepts(subject.view, size) for size in sizes):
            return octaves
    return 1
