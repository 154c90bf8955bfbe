"""Photographs of handwritten digits, brought into the form of MNIST's.

LeCun, Bottou, Bengio and Haffner, "Gradient-based learning applied to document recognition"
(1998), section III A: a digit is scaled into 20x20 pixels with its proportions kept, and its
centre of mass is put in the middle of 28x28 pixels. Before that, a photograph's paper has to be
evened out, and its ink to be found.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

SIDE = 28
_BOX = 20
# Photographs are searched at this size; a small digit is then looked at again by itself.
_MOST, _LEAST = 384, 112
# How wide the strokes of most of MNIST's digits are, in pixels of the 20x20 box.
_THIN, _THICK = 2.2, 4.0


class Ink(NamedTuple):
    """Where a picture's ink is."""

    strength: Float[np.ndarray, "height width"]
    """0 for paper, 1 for full ink."""
    mask: Bool[np.ndarray, "height width"]
    """The pixels of the digit."""
    dark: bool
    """Whether the ink is darker than the paper."""


def prepare(
    pixels: UInt8[np.ndarray, "height width channels"], *, invert: bool | None = None
) -> tuple[UInt8[np.ndarray, "28 28"], bool] | None:
    """A digit as MNIST has it, from a picture of any size.

    A picture that is in MNIST's form already stays as it is, or is only inverted.

    Args:
      pixels: grey or RGB.
      invert: whether the ink is dark; by default that is found out.

    Returns:
      The digit, bright on black, and whether its ink was dark; None where there is no ink.
    """
    ready = _in_form(pixels, invert)
    if ready is not None:
        return ready
    ink = _find(_fit(pixels), invert)
    if ink is None:
        return None
    # A small digit is cut out of the picture, and looked at again at the picture's own size.
    rows, columns = _bounds(ink.mask)
    shape = np.array(ink.mask.shape)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    if side < max(shape) / 3 and side * max(pixels.shape[:2]) / max(shape) >= 8:
        margin = side // 2 + 2
        scale = np.array(pixels.shape[:2]) / shape
        top, left = (np.array([rows[0], columns[0]]) - margin).clip(0) * scale
        bottom, right = np.minimum(np.array([rows[1], columns[1]]) + margin, shape) * scale
        cut = pixels[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))]
        ink = _find(_fit(cut), ink.dark if invert is None else invert) or ink
    return _centred(_boxed(ink)), ink.dark


def _in_form(
    pixels: np.ndarray, invert: bool | None
) -> tuple[UInt8[np.ndarray, "28 28"], bool] | None:
    """A picture of 28x28 pixels whose digit is where MNIST has it."""
    if pixels.shape[:2] != (SIDE, SIDE) or np.ptp(pixels, axis=2).any():
        return None
    grey = pixels[..., 0]
    frame = np.concatenate([grey[:2].ravel(), grey[-2:].ravel(), grey[:, :2].ravel()])
    bright = bool(np.median(frame) > 127)
    digit = 255 - grey if bright else grey
    if invert not in (None, bright) or np.mean(digit == 0) < 0.3 or not digit.any():
        return None
    rows, columns = _bounds(digit > 0)
    sides = rows[1] - rows[0], columns[1] - columns[0]
    middle = _centre_of_mass(digit.astype(float))
    centred = np.abs(middle - (SIDE - 1) / 2).max() <= 1.5
    return (digit, bright) if max(sides) in range(15, 23) and centred else None


def _fit(pixels: np.ndarray) -> Float[np.ndarray, "height width channels"]:
    """The picture at a size that suits the search."""
    from PIL import Image

    longest = max(pixels.shape[:2])
    if longest < _LEAST:
        scale = _LEAST / longest
    elif longest > _MOST:
        scale = _MOST / longest
    else:
        return pixels.astype(float)
    size = [max(1, round(side * scale)) for side in pixels.shape[1::-1]]
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    channels = [
        np.asarray(Image.fromarray(np.ascontiguousarray(pixels[..., k])).resize(size, how))
        for k in range(pixels.shape[2])
    ]
    return np.stack(channels, -1).astype(float)


def _find(picture: np.ndarray, invert: bool | None) -> Ink | None:
    """Tells ink from paper."""
    from scipy import ndimage

    paper = _paper(picture)
    ink = _strength(picture, paper, invert)
    if ink is None:
        return None
    # The paper again, by what lies around the ink: follows shadows with an edge, too.
    near = ndimage.binary_dilation(ink[0] > ink[1] / 2, iterations=2)
    blur = max(picture.shape[:2]) / 24
    weight = ndimage.gaussian_filter((~near).astype(float), blur)
    left = np.where(near[..., None], 0, picture - paper)
    rest = np.stack([ndimage.gaussian_filter(left[..., k], blur) for k in range(left.shape[2])], -1)
    paper = paper + rest / np.maximum(weight, 0.05)[..., None]
    ink = _strength(picture, paper, invert)
    if ink is None:
        return None
    strength, threshold, noise, dark = ink
    mask = _digit(strength > threshold, strength)
    if mask is None:
        return None
    full = float(np.median(strength[mask]))
    lowest = max(2.5 * noise, 0.15 * full)
    around = ndimage.binary_dilation(mask, iterations=2)
    clear = ((strength - lowest) / max(full - lowest, 1e-6)).clip(0, 1) * around
    return Ink(clear, mask, dark)


def _paper(picture: np.ndarray) -> np.ndarray:
    """A smooth surface through most of the picture, by iteratively reweighted least squares."""
    height, width, channels = picture.shape
    y, x = (np.linspace(-1, 1, side)[:, None] ** np.arange(4) for side in (height, width))
    step = max(1, max(height, width) // 96)
    every = np.einsum("rj,ci->rcji", y[::step], x[::step]).reshape(-1, 4, 4)
    degrees = {degree: np.add.outer(range(4), range(4)) <= degree for degree in (1, 2, 3)}
    terms = {degree: every[:, some] for degree, some in degrees.items()}
    result = np.empty_like(picture)
    for channel in range(channels):
        values = picture[::step, ::step, channel].ravel()
        guess = np.full(values.shape, np.median(values))
        for degree in (1, 1, 1, 2, 2, 2, 3, 3, 3, 3):
            some = terms[degree]
            residual = np.abs(values - guess)
            spread = max(1.5 * float(np.median(residual)), 2.0)
            weighted = some.T / (1 + (residual / spread) ** 2)
            gram = weighted @ some + 1e-6 * len(some) * np.eye(some.shape[1])
            coefficients = np.linalg.solve(gram, weighted @ values)
            guess = some @ coefficients
        surface = np.zeros((4, 4))
        surface[degrees[3]] = coefficients
        result[..., channel] = y @ surface @ x.T
    return result.clip(0, 255)


def _strength(
    picture: np.ndarray, paper: np.ndarray, invert: bool | None
) -> tuple[np.ndarray, float, float, bool] | None:
    """How far pixels differ from the paper towards the ink's colour, and from where on it is ink.

    Returns:
      The differences, the threshold, the noise's standard deviation, and whether the ink is dark.
    """
    from scipy import ndimage

    # Ink in a shadow differs less from its paper: by the same part of it.
    change = (picture - paper) / (paper + 30)
    change = ndimage.gaussian_filter(change, (0.7, 0.7, 0))
    size = np.sqrt((change**2).sum(-1))
    far = change[size >= max(np.quantile(size, 0.98), 0.5 * float(size.max()))]
    _, _, axes = np.linalg.svd(far, full_matrices=False)
    along = change @ axes[0]
    noise = 1.4826 * float(np.median(np.abs(along - np.median(along))))
    # Ink is where the far pixels are.
    if (along**3).sum() < 0:
        along, axes = -along, -axes
    dark = bool(axes[0].sum() < 0)
    if invert is not None and invert != dark:
        along, dark = -along, invert
    most = float(along.max())
    if most < max(6 * noise, 0.06):
        return None
    full = float(np.median(along[along > 0.5 * most]))
    return along, max(0.45 * full, 4 * noise), noise, dark


def _digit(mask: np.ndarray, strength: np.ndarray) -> np.ndarray | None:
    """The largest piece of ink, and those that belong to it; no specks, lines or edges."""
    from scipy import ndimage

    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if not count:
        return None
    numbers = np.arange(1, count + 1)
    mass = ndimage.sum(strength, labels, numbers)
    places = ndimage.find_objects(labels)
    height, width = mask.shape
    tops, bottoms, lefts, rights = np.array(
        [(p[0].start, p[0].stop, p[1].start, p[1].stop) for p in places]
    ).T
    tall, wide = bottoms - tops, rights - lefts
    edge = (tops == 0) | (lefts == 0) | (bottoms == height) | (rights == width)
    line = ((wide > 0.9 * width) & (tall < 0.1 * height)) | (
        (tall > 0.97 * height) & (wide < 0.05 * width)
    )
    worth = np.where(line, 0.01, np.where(edge, 0.2, 1.0)) * mass
    first = int(worth.argmax())
    if mass[first] < 0.5 or max(tall[first], wide[first]) < 4:
        return None
    reach = 0.4 * max(tall[first], wide[first])
    apart = np.maximum.reduce(
        [
            tops - bottoms[first],
            tops[first] - bottoms,
            lefts - rights[first],
            lefts[first] - rights,
        ]
    )
    kept = (worth >= 0.06 * worth[first]) & (apart <= reach) & ~line
    kept[first] = True
    return np.isin(labels, numbers[kept])


def _boxed(ink: Ink) -> Float[np.ndarray, "height width"]:
    """The digit in at most 20x20 pixels, its strokes about as wide as MNIST's."""
    from PIL import Image
    from scipy import ndimage

    strength, mask = ink.strength, ink.mask
    rows, columns = _bounds(mask)
    side = max(rows[1] - rows[0], columns[1] - columns[0])
    # In a stroke the mean distance to its edge is a quarter of its width.
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    stroke = (4 * float(inside[mask].mean()) - 1) * _BOX / side
    change = max(_THIN - stroke, 0) - max(stroke - _THICK, 0)
    radius = abs(change) / 2 * side / _BOX
    if radius >= 0.5:
        room = int(np.ceil(radius)) + 1
        strength, mask = np.pad(strength, room), np.pad(mask, room)
        away = np.hypot(*np.mgrid[-room : room + 1, -room : room + 1])
        disc = away <= radius + 0.2
        if change > 0:
            strength = ndimage.grey_dilation(strength, footprint=disc)
            mask = ndimage.binary_dilation(mask, disc)
        else:
            thin = ndimage.binary_erosion(mask, disc)
            if thin.any():
                strength, mask = ndimage.grey_erosion(strength, footprint=disc), thin
        rows, columns = _bounds(mask)
    cut = strength[rows[0] : rows[1], columns[0] : columns[1]]
    scale = _BOX / max(cut.shape)
    size = [max(1, round(length * scale)) for length in cut.shape[::-1]]
    how = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    small = np.asarray(Image.fromarray(cut.astype(np.float32)).resize(size, how))
    return (small / max(float(np.quantile(small, 0.95)), 0.25)).clip(0, 1)


def _centred(digit: np.ndarray) -> UInt8[np.ndarray, "28 28"]:
    """The digit with its centre of mass in the middle."""
    height, width = digit.shape
    middle = _centre_of_mass(digit)
    top, left = (
        int(np.clip(round((SIDE - 1) / 2 - at), 0, SIDE - length))
        for at, length in zip(middle, (height, width), strict=True)
    )
    result = np.zeros((SIDE, SIDE), np.uint8)
    result[top : top + height, left : left + width] = np.round(255 * digit)
    return result


def _centre_of_mass(digit: np.ndarray) -> np.ndarray:
    total = digit.sum()
    return np.array(
        [np.arange(n) @ digit.sum(1 - axis) / total for axis, n in enumerate(digit.shape)]
    )


def _bounds(mask: np.ndarray) -> Any:
    """First and last but one row and column of what is set."""
    found = (np.flatnonzero(mask.any(1 - axis)) for axis in range(2))
    return [(int(where[0]), int(where[-1]) + 1) for where in found]
