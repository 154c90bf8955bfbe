"""What a network sees in images, as pictures."""

from collections.abc import Iterator
from functools import partial

import jax
import numpy as np

from dlc_jax.explain import class_activation, deconvnet, filters, occlusion, saliency
from dlc_jax.explain.classifier import View
from dlc_jax.explain.rectifiers import RULES
from dlc_jax.explain.report.context import Subject, Tick, one_by_one, part_of, spread
from dlc_jax.explain.report.html import Picture
from dlc_jax.explain.report.pictures import Cell, cells, maps_in_a_square, rows_of_images

# So many test images are searched for what excites a feature map most, so many maps of a stage
# are shown and so many images of each; and of the first layer so many filters.
_SEARCHED, _MAPS, _EXCITING, _FILTERS = 1000, 6, 4, 96
# What of an image's height a square hides.
_HIDDEN = 4


def draw_filters(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """The first layer's filters, and each stage's feature maps of the images."""
    kernels = np.asarray(filters.first_filters(subject.view))[:_FILTERS]
    starts = range(0, len(kernels), 12)
    rows = [cells(kernels[start : start + 12], "signed") for start in starts]
    yield Picture(
        "filters",
        rows_of_images(rows, "The first layer's filters"),
        "What each feature map of the first layer looks for: bright where it wants bright pixels, "
        "dark where it wants dark ones, grey where it does not care.",
    )
    tick(0.3)
    for page, part in subject.pages():
        maps = jax.jit(filters.feature_maps)(part.view, part.pixels)
        maps = {name: np.asarray(of_stage) for name, of_stage in maps.items()}
        shown = spread([name for name in maps if maps[name].shape[1] > 1] or list(maps), 8)
        rows = [cells(part.pixels, "pixels", part.titles)]
        rows += [[maps_in_a_square(of_image) for of_image in maps[name]] for name in shown]
        yield Picture(
            f"feature-maps{page}",
            rows_of_images(rows, "What each stage makes of an image", row_titles=["image", *shown]),
            "Each row is a stage of the network, from the first to the last. Every small square is "
            "one feature map, brighter where it answers more.",
        )


def draw_saliency(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """The gradient of the answer with respect to the pixels, by three rules."""
    gradient = jax.jit(saliency.gradient, static_argnames="rule")
    for page, part in subject.pages():
        rows = [cells(part.pixels, "pixels", part.titles)]
        for done, rule in enumerate(RULES, 1):
            gradients = gradient(part.view, part.pixels, part.predictions, rule=rule)
            rows.append(cells(gradients, "signed"))
            tick(done / len(RULES))
        yield Picture(
            f"saliency{page}",
            rows_of_images(
                rows,
                "Gradient of the answer's logit with respect to each pixel",
                row_titles=["image", *RULES],
            ),
            "Where a pixel is brighter than mid-grey, brightening it makes the network surer of "
            "its answer; where darker, less sure. The rows differ in what passes back through a "
            "rectifier.",
        )


def draw_deconvnet(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """For some stages the test images that excite feature maps most, projected back."""
    pixels, _ = subject.test_examples(_SEARCHED)
    stages = spread(subject.spatial_stages, 4)
    for done, stage in enumerate(stages):
        part = part_of(tick, done / len(stages), (done + 1) / len(stages))
        yield _excited(subject, stage, pixels, part)
    for page, own in subject.pages():
        yield _own(own, page, stages)


def _own(subject: Subject, page: str, stages: list[str]) -> Picture:
    """What in each of the images excites a stage's map most, of the map that answers it most."""
    project = jax.jit(deconvnet.project, static_argnames="stage")
    rows = [cells(subject.pixels, "pixels", subject.titles)]
    for stage in stages:
        activations = jax.jit(View.activations, static_argnames="stage")
        answers = np.asarray(activations(subject.view, subject.pixels, stage=stage))
        maps = answers.max((1, 2)).argmax(1)
        projected = project(subject.view, subject.pixels, stage, maps).pixels
        rows.append(cells(projected, "signed", [f"map {number}" for number in maps]))
    return Picture(
        f"deconvnet{page}",
        rows_of_images(
            rows, "What in each image excites a stage most", row_titles=["image", *stages]
        ),
        "Below each image, for some stages from the first to the last, what in it excites the "
        "feature map most that answers it most, by the deconvnet.",
    )


def _excited(subject: Subject, stage: str, pixels: np.ndarray, tick: Tick) -> Picture:
    count = min(_EXCITING, len(pixels))
    strongest = jax.jit(deconvnet.strongest, static_argnames=("stage", "count"))
    indices, values = strongest(subject.view, pixels, stage, count=count)
    tick(0.4)
    maps = np.argsort(-np.asarray(values)[:, 0])[:_MAPS]
    chosen = pixels[np.asarray(indices)[maps]].reshape(-1, *pixels.shape[1:])
    project = jax.jit(deconvnet.project, static_argnames="stage")
    projection = project(subject.view, chosen, stage, np.repeat(maps, count))
    places = np.asarray(projection.place).tolist()
    image_shape = subject.dataset.image_shape
    pairs = []
    for i, (row, column) in enumerate(places):
        box = deconvnet.receptive_box(subject.view, image_shape, stage, row, column)
        pairs.append(Cell(chosen[i], "pixels", box=box))
        pairs.append(Cell(np.asarray(projection.pixels[i]), "signed"))
        tick(0.4 + 0.6 * (i + 1) / len(places))
    width = 2 * count
    rows = [pairs[start : start + width] for start in range(0, len(pairs), width)]
    return Picture(
        f"deconvnet-{stage}",
        rows_of_images(
            rows,
            f"What excites feature maps of {stage} most, projected back to pixels",
            row_titles=[f"map {m}" for m in maps],
        ),
        f"Each row is a feature map of {stage}: the {count} of {len(pixels):,} test images that "
        "excite it most, with the patch that it sees in red; and beside each, by the deconvnet, "
        "what in it did so.",
    )


def draw_occlusion(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """The probability of the answer while a grey square hides a part of the image."""
    height, width, _ = subject.dataset.image_shape
    size = max(1, min(height, width) // _HIDDEN)
    hide = jax.jit(occlusion.occlusion, static_argnames=("size", "stride"))
    for page, part in subject.pages():
        probabilities = one_by_one(
            partial(hide, part.view, size=size, stride=max(1, size // 7)),
            tick,
            part.pixels,
            part.predictions,
        )
        yield Picture(
            f"occlusion{page}",
            rows_of_images(
                [
                    cells(part.pixels, "pixels", part.titles),
                    cells(probabilities, "probability"),
                ],
                f"Probability of the answer while a grey square of {size}x{size} pixels moves",
                row_titles=["image", "probability"],
            ),
            "Where it is dark, a grey square around that place takes the network's answer away; "
            "where it is bright, the answer does not depend on that part alone.",
        )


def draw_grad_cam(subject: Subject, tick: Tick) -> Iterator[Picture]:
    """Class activation maps of the last stages that have positions."""
    stages = subject.spatial_stages[-2:]
    grad_cam = jax.jit(class_activation.grad_cam, static_argnames="stage")
    for page, part in subject.pages():
        rows = [cells(part.pixels, "pixels", part.titles)]
        for done, stage in enumerate(stages, 1):
            heat = grad_cam(part.view, part.pixels, part.predictions, stage)
            rows.append(cells(heat, "heat", under=part.pixels))
            tick(done / len(stages))
        yield Picture(
            f"grad-cam{page}",
            rows_of_images(
                rows, "Where the answer comes from (Grad-CAM)", row_titles=["image", *stages]
            ),
            "Laid over each image: bright is where a stage's feature maps speak for the answer, "
            "in units of its logit.",
        )
