"""Photographs of digits converted to MNIST's format."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from dlc_jax import runs
from dlc_jax.data import Dataset, handwriting
from dlc_jax.runs.folder import Run

KINDS = [
    "grey",
    "linear shadow",
    "smooth shadow",
    "corner",
    "large",
    "thin",
    "thick",
    "coloured",
    "chalk",
    "ruled",
]


def photograph(path: Path, digit: np.ndarray, kind: str, rng: np.random.Generator) -> None:
    """Saves a synthetic photograph of a digit written on paper, as a JPEG."""
    height, width = (int(rng.integers(220, 440)) for _ in range(2))
    part = {"corner": rng.uniform(0.12, 0.25), "large": 0.95}.get(kind, rng.uniform(0.3, 0.8))
    side = int(part * min(height, width))
    rows, columns = (np.flatnonzero(digit.max(axis)) for axis in (1, 0))
    tight = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].astype(np.float32)
    scale = side / max(tight.shape)
    size = [max(3, round(length * scale)) for length in tight.shape[::-1]]
    smooth = np.asarray(Image.fromarray(tight).resize(size, Image.Resampling.BICUBIC))
    pen = (smooth.clip(0, 255) / 255 - 0.3).clip(0, 0.4) / 0.4
    by = max(1, int(0.035 * side))
    if kind == "thin":
        pen = np.maximum(
            ndimage.grey_erosion(pen, (by, by)),
            0.6 * (pen > 0.9) * (ndimage.gaussian_filter(pen, by) > 0.93),
        )
        pen = pen if (pen > 0.5).sum() > 0.2 * (smooth > 127).sum() else smooth / 255
    elif kind == "thick":
        pen = ndimage.grey_dilation(np.pad(pen, by), (2 * by + 1, 2 * by + 1))
    ink = np.zeros((height, width))
    free = [total - length for total, length in zip(ink.shape, pen.shape, strict=True)]
    where = (0.04, 0.08) if kind == "corner" else (0.1, 0.9)
    top, left = (int(max(room, 0) * rng.uniform(*where)) for room in free)
    pen = pen[:height, :width].clip(0, 1)
    ink[top : top + pen.shape[0], left : left + pen.shape[1]] = pen
    paper, colour = np.full(3, rng.uniform(110, 240)), np.full(3, rng.uniform(10, 50))
    if kind == "coloured":
        paper = np.array([[230, 220, 150], [160, 210, 230], [230, 170, 190]])[rng.integers(3)]
        colour = np.array([[30, 40, 150], [150, 20, 30], [20, 90, 40]])[rng.integers(3)]
    elif kind == "chalk":
        paper, colour = np.array([35, 60, 45]), np.full(3, rng.uniform(170, 240))
    sheet = np.broadcast_to(paper, (height, width, 3)).astype(float)
    if kind == "ruled":
        sheet = sheet.copy()
        sheet[:: height // 12] *= 0.8
    picture = sheet + ink[..., None] * (colour - sheet)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    if kind == "linear shadow":
        angle = rng.uniform(0, 2 * np.pi)
        picture *= (0.75 + 0.25 * (np.cos(angle) * x + np.sin(angle) * y).clip(-1, 1))[..., None]
    elif kind == "smooth shadow":
        bell = np.exp(-((x - rng.uniform(-1, 1)) ** 2 + (y - rng.uniform(-1, 1)) ** 2) / 0.7)
        picture *= (1 - 0.5 * bell)[..., None]
    picture += rng.normal(0, rng.uniform(1, 8), picture.shape)
    shot = Image.fromarray(picture.clip(0, 255).astype(np.uint8))
    shot.save(path, "JPEG", quality=int(rng.integers(60, 95)))


def test_mnist_digits_are_unchanged(digits: Dataset) -> None:
    for digit in np.asarray(digits.test.images)[:200]:
        for picture, dark in ((digit, False), (255 - digit, True)):
            converted = handwriting.to_mnist_format(picture)
            assert converted is not None
            np.testing.assert_array_equal(converted[0], digit[..., 0])
            assert converted[1] == dark


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[pytest.mark.slow] if i % 3 else []) for i, kind in enumerate(KINDS)],
)
def test_photographs_of_digits_are_classified_correctly(
    kind: str, digits: Dataset, lecture_run: Run, tmp_path: Path
) -> None:
    labels = np.asarray(digits.test.labels)
    indices = [np.flatnonzero(labels == label)[0] for label in range(0, 10, 2)]
    paths = []
    for index in indices:
        digit = np.asarray(digits.test.images)[index, ..., 0]
        paths.append(f"{tmp_path}/{index}.jpg")
        photograph(Path(paths[-1]), digit, kind, np.random.default_rng(index))
    answers = runs.predict(lecture_run, lecture_run.load_model(), paths)
    correct = np.array([int(answer["class"]) for answer in answers]) == labels[indices]
    assert correct.sum() >= 4


def test_a_blank_sheet_has_no_ink() -> None:
    noise = np.random.default_rng(0).normal(180, 5, (200, 300, 1)).astype(np.uint8)
    assert handwriting.to_mnist_format(noise) is None
    assert handwriting.to_mnist_format(np.full((1, 1, 3), 255, np.uint8)) is None
