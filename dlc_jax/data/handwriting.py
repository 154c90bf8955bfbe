"""Converts photographs of handwritten digits to MNIST's format.

The paper's shading is removed, the digit is segmented, scaled to 20x20 pixels with its aspect
ratio kept, and its center of mass is moved to the center of 28x28 pixels (LeCun, Bottou, Bengio
and Haffner 1998, section III.A).
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

IMAGE_SIZE = 28
_BOX_SIZE = 20
# Range of the longest side of the photograph when the digit is searched, in pixels.
_MIN_SIDE, _MAX_SIDE = 112, 384
# Typical stroke widths of MNIST's digits, in pixels of the 20x20 box.
_MIN_STROKE, _MAX_STROKE = 2.2, 4.0


class Ink(NamedTuple):
    """The ink of a photograph.

    Attributes:
      strength: Strength of the ink, 0 for paper and 1 for full ink.
      mask: The digit's pixels.
      dark: Whether the ink is darker than the paper.
    """

    strength: Float[np.ndarray, "height width"]
    mask: Bool[np.ndarray, "height width"]
    dark: bool


def to_mnist_format(
    pixels: UInt8[np.ndarray, "height width channels"], *, invert: bool | None = None
) -> tuple[UInt8[np.ndarray, "28 28"], bool] | None:
    """Converts a picture of a digit to MNIST's format.

    Pictures that are already in this format are at most inverted.

    Args:
      pixels: Gray or RGB picture of any size.
      invert: Whether the ink is darker than the paper; by default detected.

    Returns:
      The digit, bright on black, and whether the ink was dark; None if there is no ink.

    Example:
      >>> paper = np.full((100, 80, 1), 200, np.uint8)
      >>> to_mnist_format(paper) is None
      True
      >>> paper[20:80, 35:45] = 30
      >>> digit, dark = to_mnist_format(paper)
      >>> digit.shape, dark
      ((28, 28), True)
    """
    mnist_digit = _unchanged_digit(pixels, invert)
    if mnist_digit is not None:
        return mnist_digit
    ink = _find_ink(_resize(pixels), invert)
    if ink is None:
        return None
    # A small digit is cropped and searched again at full resolution.
    rows, columns = _bounds(ink.mask)
    shape = np.array(ink.mask.shape)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    if side < max(shape) / 3 and side * max(pixels.shape[:2]) / max(shape) >= 8:
        margin = side // 2 + 2
        scale = np.array(pixels.shape[:2]) / shape
        top, left = (np.array([rows[0], columns[0]]) - margin).clip(0) * scale
        bottom, right = np.minimum(np.array([rows[1], columns[1]]) + margin, shape) * scale
        window = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        ink = _find_ink(_resize(window), ink.dark if invert is None else invert) or ink
    return _center(_scale_to_box(ink)), ink.dark


def _unchanged_digit(
    pixels: np.ndarray, invert: bool | None
) -> tuple[UInt8[np.ndarray, "28 28"], bool] | None:
    """The digit of a picture that is already in MNIST's format; None for others."""
    if pixels.shape[:2] != (IMAGE_SIZE, IMAGE_SIZE) or np.ptp(pixels, axis=2).any():
        return None
    gray = pixels[..., 0]
    frame = np.concatenate([gray[:2].ravel(), gray[-2:].ravel(), gray[:, :2].ravel()])
    bright = bool(np.median(frame) > 127)
    digit = 255 - gray if bright else gray
    if invert not in (None, bright) or np.mean(digit == 0) < 0.3 or not digit.any():
        return None
    rows, columns = _bounds(digit > 0)
    sides = rows[1] - rows[0], columns[1] - columns[0]
    middle = _center_of_mass(digit.astype(float))
    centered = np.abs(middle - (IMAGE_SIZE - 1) / 2).max() <= 1.5
    return (digit, bright) if max(sides) in range(15, 23) and centered else None


def _resize(pixels: np.ndarray) -> Float[np.ndarray, "height width channels"]:
    """The picture at the resolution of the search."""
    from PIL import Image

    longest = max(pixels.shape[:2])
    if longest < _MIN_SIDE:
        scale = _MIN_SIDE / longest
    elif longest > _MAX_SIDE:
        scale = _MAX_SIDE / longest
    else:
        return pixels.astype(float)
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., k])).resize(size, resample))
        for k in range(pixels.shape[2])
    ]
    return np.stack(channels, -1).astype(float)


def _find_ink(picture: np.ndarray, invert: bool | None) -> Ink | None:
    """Segments the ink; None if there is none."""
    from scipy import ndimage

    paper = _estimate_paper(picture)
    ink = _strength(picture, paper, invert)
    if ink is None:
        return None
    # Estimates the paper again from the surroundings of the ink, to follow sharp shadows.
    near = ndimage.binary_dilation(ink[0] > ink[1] / 2, iterations=2)
    blur = max(picture.shape[:2]) / 24
    weight = ndimage.gaussian_filter((~near).astype(float), blur)
    residual = np.where(near[..., None], 0, picture - paper)
    smooth = np.stack(
        [ndimage.gaussian_filter(residual[..., k], blur) for k in range(residual.shape[2])], -1
    )
    paper = paper + smooth / np.maximum(weight, 0.05)[..., None]
    ink = _strength(picture, paper, invert)
    if ink is None:
        return None
    strength, threshold, noise, dark = ink
    mask = _select_components(strength > threshold, strength)
    if mask is None:
        return None
    full = float(np.median(strength[mask]))
    lowest = max(2.5 * noise, 0.15 * full)
    around = ndimage.binary_dilation(mask, iterations=2)
    clean = ((strength - lowest) / max(full - lowest, 1e-6)).clip(0, 1) * around
    return Ink(clean, mask, dark)


def _estimate_paper(picture: np.ndarray) -> np.ndarray:
    """A cubic surface fitted to the picture by iteratively reweighted least squares."""
    height, width, channels = picture.shape
    y, x = (np.linspace(-1, 1, side)[:, None] ** np.arange(4) for side in (height, width))
    step = max(1, max(height, width) // 96)
    monomials = np.einsum("rj,ci->rcji", y[::step], x[::step]).reshape(-1, 4, 4)
    degrees = {degree: np.add.outer(range(4), range(4)) <= degree for degree in (1, 2, 3)}
    terms = {degree: monomials[:, mask] for degree, mask in degrees.items()}
    result = np.empty_like(picture)
    for channel in range(channels):
        values = picture[::step, ::step, channel].ravel()
        fitted = np.full(values.shape, np.median(values))
        for degree in (1, 1, 1, 2, 2, 2, 3, 3, 3, 3):
            design = terms[degree]
            residual = np.abs(values - fitted)
            scale = max(1.5 * float(np.median(residual)), 2.0)
            weighted = design.T / (1 + (residual / scale) ** 2)
            gram = weighted @ design + 1e-6 * len(design) * np.eye(design.shape[1])
            coefficients = np.linalg.solve(gram, weighted @ values)
            fitted = design @ coefficients
        surface = np.zeros((4, 4))
        surface[degrees[3]] = coefficients
        result[..., channel] = y @ surface @ x.T
    return result.clip(0, 255)


def _strength(
    picture: np.ndarray, paper: np.ndarray, invert: bool | None
) -> tuple[np.ndarray, float, float, bool] | None:
    """Differences between pixels and paper along the ink's color.

    Returns:
      The differences, the threshold for ink, the standard deviation of the noise, and whether the
      ink is dark; None if there is no ink.
    """
    from scipy import ndimage

    # Relative to the paper, since ink in a shadow differs less from it.
    change = (picture - paper) / (paper + 30)
    change = ndimage.gaussian_filter(change, (0.7, 0.7, 0))
    size = np.sqrt((change**2).sum(-1))
    far = change[size >= max(np.quantile(size, 0.98), 0.5 * float(size.max()))]
    _, _, axes = np.linalg.svd(far, full_matrices=False)
    along = change @ axes[0]
    noise = 1.4826 * float(np.median(np.abs(along - np.median(along))))
    # Orients the axis from paper to ink.
    if (along**3).sum() < 0:
        along, axes = -along, -axes
    dark = bool(axes[0].sum() < 0)
    if invert is not None and invert != dark:
        along, dark = -along, invert
    largest = float(along.max())
    if largest < max(6 * noise, 0.06):
        return None
    full = float(np.median(along[along > 0.5 * largest]))
    return along, max(0.45 * full, 4 * noise), noise, dark


def _select_components(mask: np.ndarray, strength: np.ndarray) -> np.ndarray | None:
    """The largest component of the ink and those close to it, without specks, lines and edges."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return None
    numbers = np.arange(1, count + 1)
    mass = ndimage.sum(strength, labels, numbers)
    slices = ndimage.find_objects(labels)
    height, width = mask.shape
    tops, bottoms, lefts, rights = np.array(
        [(p[0].start, p[0].stop, p[1].start, p[1].stop) for p in slices]
    ).T
    tall, wide = bottoms - tops, rights - lefts
    at_edge = (tops == 0) | (lefts == 0) | (bottoms == height) | (rights == width)
    is_line = ((wide > 0.9 * width) & (tall < 0.1 * height)) | (
        (tall > 0.97 * height) & (wide < 0.05 * width)
    )
    score = np.where(is_line, 0.01, np.where(at_edge, 0.2, 1.0)) * mass
    first = int(score.argmax())
    if mass[first] < 0.5 or max(tall[first], wide[first]) < 4:
        return None
    max_distance = 0.4 * max(tall[first], wide[first])
    distance = np.maximum.reduce(
        [
            tops - bottoms[first],
            tops[first] - bottoms,
            lefts - rights[first],
            lefts[first] - rights,
        ]
    )
    kept = (score >= 0.06 * score[first]) & (distance <= max_distance) & ~is_line
    kept[first] = True
    return np.isin(labels, numbers[kept])


def _scale_to_box(ink: Ink) -> Float[np.ndarray, "height width"]:
    """The digit in at most 20x20 pixels, with strokes about as wide as MNIST's."""
    from PIL import Image
    from scipy import ndimage

    strength, mask = ink.strength, ink.mask
    rows, columns = _bounds(mask)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    # The mean distance to the edge of a stroke is a quarter of its width.
    depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    stroke = (4 * float(depth[mask].mean()) - 1) * _BOX_SIZE / side
    change = max(_MIN_STROKE - stroke, 0) - max(stroke - _MAX_STROKE, 0)
    radius = abs(change) / 2 * side / _BOX_SIZE
    if radius >= 0.5:
        pad = int(np.ceil(radius)) + 1
        strength, mask = np.pad(strength, pad), np.pad(mask, pad)
        distance = np.hypot(*np.mgrid[-pad : pad + 1, -pad : pad + 1])
        disc = distance <= radius + 0.2
        if change > 0:
            strength = ndimage.grey_dilation(strength, footprint=disc)
            mask = ndimage.binary_dilation(mask, disc)
        else:
            eroded = ndimage.binary_erosion(mask, disc)
            if eroded.any():
                strength, mask = ndimage.grey_erosion(strength, footprint=disc), eroded
        rows, columns = _bounds(mask)
    tight = strength[rows[0] : rows[1], columns[0] : columns[1]]
    scale = _BOX_SIZE / max(tight.shape)
    size = [max(1, round(length * scale)) for length in tight.shape[::-1]]
    resample = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(tight.astype(np.float32)).resize(size, resample))
    return (small / max(float(np.quantile(small, 0.95)), 0.25)).clip(0, 1)


def _center(digit: np.ndarray) -> UInt8[np.ndarray, "28 28"]:
    """The digit in 28x28 pixels, with its center of mass at the center."""
    height, width = digit.shape
    middle = _center_of_mass(digit)
    top, left = (
        int(np.clip(round((IMAGE_SIZE - 1) / 2 - at), 0, IMAGE_SIZE - length))
        for at, length in zip(middle, (height, width), strict=True)
    )
    result = np.zeros((IMAGE_SIZE, IMAGE_SIZE), np.uint8)
    result[top : top + height, left : left + width] = np.round(255 * digit)
    return result


def _center_of_mass(digit: np.ndarray) -> np.ndarray:
    total = digit.sum()
    return np.array(
        [np.arange(n) @ digit.sum(1 - axis) / total for axis, n in enumerate(digit.shape)]
    )


def _bounds(mask: np.ndarray) -> Any:
    """Start and stop row, and start and stop column, of the pixels that are set."""
    found = (np.flatnonzero(mask.any(1 - axis)) for axis in range(2))
    return [(int(where[0]), int(where[-1]) + 1) for where in found]
