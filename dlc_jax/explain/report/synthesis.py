"""Pictures of the methods that synthesize images."""

from collections.abc import Iterator

import jax
import numpy as np

from dlc_jax.explain.activation_maximization import maximize_activation
from dlc_jax.explain.deep_dream import deep_dream, octave_shapes
from dlc_jax.explain.report.context import (
    ExplainContext,
    ProgressFn,
    evenly_spaced,
    map_batches,
)
from dlc_jax.explain.report.html import Picture
from dlc_jax.explain.report.pictures import image_grid, image_row

_MAX_OCTAVES, _OCTAVE_SCALE = 3, 1.4


def draw_activation_maximization(
    context: ExplainContext, progress: ProgressFn
) -> Iterator[Picture]:
    """Draws an image that maximizes the logit of each class."""
    columns = 5

    def maximize(classes: np.ndarray) -> jax.Array:
        return maximize_activation(
            context.classifier,
            "logits",
            classes,
            key=context.key,
            image_shape=context.dataset.image_shape,
        ).images

    classes = np.arange(len(context.class_names))
    images = map_batches(maximize, classes, batch_size=columns, progress=progress)
    titles = context.class_titles(images)
    rows = [
        image_row(images[start : start + columns], "pixels", titles[start : start + columns])
        for start in range(0, len(images), columns)
    ]
    yield Picture(
        "activation-maximization",
        image_grid(rows, "Images that maximize the logit of each class"),
        "Made from smooth noise by gradient ascent. Above each image: the class, and the "
        "probability that the network gives it.",
    )


def draw_deep_dream(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws DeepDream of the images at some stages."""
    stages = evenly_spaced(context.spatial_stages, 4)[-3:]
    octaves = _num_octaves(context)
    for suffix, page in context.pages():
        rows = [image_row(page.pixels, "pixels", page.titles)]
        for done, stage in enumerate(stages, 1):
            result = deep_dream(
                page.classifier,
                page.pixels,
                stage,
                key=page.key,
                octaves=octaves,
                octave_scale=_OCTAVE_SCALE,
            )
            rows.append(image_row(result.images))
            progress(done / len(stages))
        yield Picture(
            f"deep-dream{suffix}",
            image_grid(rows, "DeepDream", row_titles=["image", *stages]),
            "Each image is changed so that the activations of a stage grow.",
        )


def _num_octaves(context: ExplainContext) -> int:
    """The largest number of octaves whose sizes the network accepts."""
    for octaves in range(_MAX_OCTAVES, 1, -1):
        shapes = octave_shapes(context.dataset.image_shape, octaves, _OCTAVE_SCALE)
        if all(context.classifier.accepts(shape) for shape in shapes):
            return octaves
    return 1
