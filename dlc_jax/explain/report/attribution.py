"""Pictures of the methods that explain predictions and features on images."""

from collections.abc import Iterator
from functools import partial

import numpy as np

from dlc_jax.explain.deconvnet import (
    project_activation,
    receptive_field,
    top_activating_images,
)
from dlc_jax.explain.filters import feature_maps, first_layer_filters
from dlc_jax.explain.grad_cam import grad_cam
from dlc_jax.explain.occlusion import occlusion_sensitivity
from dlc_jax.explain.relu_rules import RELU_RULES
from dlc_jax.explain.report.context import (
    ExplainContext,
    ProgressFn,
    evenly_spaced,
    map_batches,
    subprogress,
)
from dlc_jax.explain.report.html import Picture
from dlc_jax.explain.report.pictures import ImageCell, feature_map_cell, image_grid, image_row
from dlc_jax.explain.saliency import input_gradient

_MAX_FILTERS = 96
# Deconvnet: test images to search, feature maps of each stage, and images of each map.
_TEST_IMAGES, _MAPS, _IMAGES_PER_MAP = 1000, 6, 4
# Ratio of an image's height to that of the occluding square.
_OCCLUSION_RATIO = 4


def draw_filters(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws the first layer's filters, and the feature maps of all stages."""
    kernels = np.asarray(first_layer_filters(context.classifier))[:_MAX_FILTERS]
    rows = [image_row(kernels[i : i + 12], "signed") for i in range(0, len(kernels), 12)]
    yield Picture(
        "filters",
        image_grid(rows, "Filters of the first layer"),
        "Each filter responds to bright pixels where it is bright and to dark pixels where it is "
        "dark; mid-gray is zero.",
    )
    progress(0.3)
    for suffix, page in context.pages():
        maps = {
            name: np.asarray(stage)
            for name, stage in feature_maps(page.classifier, page.pixels).items()
        }
        spatial = [name for name in maps if maps[name].shape[1] > 1]
        stages = evenly_spaced(spatial or list(maps), 8)
        rows = [image_row(page.pixels, "pixels", page.titles)]
        rows += [[feature_map_cell(image_maps) for image_maps in maps[name]] for name in stages]
        yield Picture(
            f"feature-maps{suffix}",
            image_grid(rows, "Feature maps", row_titles=["image", *stages]),
            "Each row is a stage of the network, from the first to the last. Each small square is "
            "one feature map; brighter means a larger activation.",
        )


def draw_saliency(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws gradients of the predicted class's logit, by three rules for rectifiers."""
    for suffix, page in context.pages():
        rows = [image_row(page.pixels, "pixels", page.titles)]
        for done, rule in enumerate(RELU_RULES, 1):
            gradients = input_gradient(page.classifier, page.pixels, page.predictions, rule=rule)
            rows.append(image_row(gradients, "signed"))
            progress(done / len(RELU_RULES))
        yield Picture(
            f"saliency{suffix}",
            image_grid(
                rows,
                "Gradient of the predicted class's logit with respect to the pixels",
                row_titles=["image", *RELU_RULES],
            ),
            "Brightening a pixel increases the logit of the predicted class where the gradient is "
            "brighter than mid-gray, and decreases it where it is darker. The rows differ in the "
            "backward pass of the rectifiers.",
        )


def draw_deconvnet(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws test images with the strongest activations of some stages, and their projections."""
    pixels, _ = context.test_examples(_TEST_IMAGES)
    stages = evenly_spaced(context.spatial_stages, 4)
    for done, stage in enumerate(stages):
        stage_progress = subprogress(progress, done / len(stages), (done + 1) / len(stages))
        yield _top_images(context, stage, pixels, stage_progress)
    for suffix, page in context.pages():
        yield _image_projections(page, suffix, stages)


def _image_projections(context: ExplainContext, suffix: str, stages: list[str]) -> Picture:
    """Projections of the strongest feature map of each stage for each image."""
    classifier, pixels = context.classifier, context.pixels
    rows = [image_row(pixels, "pixels", context.titles)]
    for stage in stages:
        activations = np.asarray(classifier.activations(pixels, stage))
        maps = activations.max((1, 2)).argmax(1)
        projections = project_activation(classifier, pixels, stage, maps).pixels
        rows.append(image_row(projections, "signed", [f"map {index}" for index in maps]))
    return Picture(
        f"deconvnet{suffix}",
        image_grid(
            rows,
            "Strongest activation of each stage, projected to pixels",
            row_titles=["image", *stages],
        ),
        "Below each image, for some stages from the first to the last: the strongest activation of "
        "the strongest feature map, projected to pixels by the deconvnet.",
    )


def _top_images(
    context: ExplainContext, stage: str, pixels: np.ndarray, progress: ProgressFn
) -> Picture:
    """Images with the strongest activations of a stage's strongest feature maps."""
    classifier, image_shape = context.classifier, context.dataset.image_shape
    count = min(_IMAGES_PER_MAP, len(pixels))
    indices, activations = top_activating_images(classifier, pixels, stage, count=count)
    progress(0.4)
    maps = np.argsort(-np.asarray(activations)[:, 0])[:_MAPS]
    images = pixels[np.asarray(indices)[maps]].reshape(-1, *pixels.shape[1:])
    projection = project_activation(classifier, images, stage, np.repeat(maps, count))
    positions = np.asarray(projection.position).tolist()
    cells = []
    for i, (row, column) in enumerate(positions):
        box = receptive_field(classifier, image_shape, stage, row, column)
        cells.append(ImageCell(images[i], "pixels", box=box))
        cells.append(ImageCell(np.asarray(projection.pixels[i]), "signed"))
        progress(0.4 + 0.6 * (i + 1) / len(positions))
    width = 2 * count
    return Picture(
        f"deconvnet-{stage}",
        image_grid(
            [cells[start : start + width] for start in range(0, len(cells), width)],
            f"Images with the strongest activations of {stage}",
            row_titles=[f"map {index}" for index in maps],
        ),
        f"Each row is a feature map of {stage}: the {count} of {len(pixels):,} test images with "
        "its strongest activations and the receptive field in red; beside each, the activation "
        "projected to pixels by the deconvnet.",
    )


def draw_occlusion(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws the predicted class's probability while a gray square covers part of the image."""
    height, width, _ = context.dataset.image_shape
    size = max(1, min(height, width) // _OCCLUSION_RATIO)
    for suffix, page in context.pages():
        probabilities = map_batches(
            partial(
                occlusion_sensitivity,
                page.classifier,
                patch_size=size,
                stride=max(1, size // 7),
            ),
            page.pixels,
            page.predictions,
            batch_size=1,
            progress=progress,
        )
        rows = [
            image_row(page.pixels, "pixels", page.titles),
            image_row(probabilities, "probability"),
        ]
        yield Picture(
            f"occlusion{suffix}",
            image_grid(
                rows,
                f"Probability of the predicted class with a gray square of {size}x{size} pixels",
                row_titles=["image", "probability"],
            ),
            "Dark where a gray square around that position changes the prediction; bright where "
            "the prediction does not depend on that part alone.",
        )


def draw_grad_cam(context: ExplainContext, progress: ProgressFn) -> Iterator[Picture]:
    """Draws Grad-CAM of the last stages with feature maps."""
    stages = context.spatial_stages[-2:]
    for suffix, page in context.pages():
        rows = [image_row(page.pixels, "pixels", page.titles)]
        for done, stage in enumerate(stages, 1):
            heatmaps = grad_cam(page.classifier, page.pixels, page.predictions, stage)
            rows.append(image_row(heatmaps, "heatmap", background=page.pixels))
            progress(done / len(stages))
        yield Picture(
            f"grad-cam{suffix}",
            image_grid(rows, "Grad-CAM", row_titles=["image", *stages]),
            "Overlay on each image: bright where the stage's feature maps increase the logit of "
            "the predicted class, in units of that logit.",
        )
