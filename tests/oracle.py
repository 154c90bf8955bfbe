"""Convolution and max-pooling with their gradients, in NumPy and float64, for tests.

They loop over the positions in a window, and use neither XLA nor compilation.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jax import lax

Result = tuple[np.ndarray, ...]


def explicit(x: Any, window: Sequence[int], strides: Sequence[int], padding: Any) -> Any:
    """Padding in pixels."""
    if isinstance(padding, str):
        return lax.padtype_to_pads(x.shape[1:3], window[:2], strides, padding)
    return padding


def convolved(x: Any, kernel: Any, strides: Any, padding: Any, cotangent: Any = None) -> Result:
    """A convolution and its gradients with respect to images and kernel.

    Without a cotangent, they are the gradients of the mean square of the result.
    """
    x, kernel = (np.asarray(array, np.float64) for array in (x, kernel))
    pads = explicit(x, kernel.shape, strides, padding)
    padded = _padded(x, pads, 0.0)
    taps = list(_taps(padded, kernel.shape[:2], strides))
    y = sum(padded[tap] @ kernel[position] for position, tap in taps)
    grad = 2 * y / y.size if cotangent is None else np.asarray(cotangent, np.float64)
    grad_padded, grad_kernel = np.zeros(padded.shape), np.zeros(kernel.shape)
    flat = grad.reshape(-1, grad.shape[3])
    for position, tap in taps:
        grad_kernel[position] = padded[tap].reshape(-1, x.shape[3]).T @ flat
        grad_padded[tap] += grad @ kernel[position].T
    return y, _cropped(grad_padded, x, pads), grad_kernel


def largest(x: Any, window: Any, strides: Any, padding: Any, cotangent: Any) -> Result:
    """Max-pooling and its gradient, which goes to the first maximum of a window."""
    x, grad = (np.asarray(array, np.float64) for array in (x, cotangent))
    pads = explicit(x, window, strides, padding)
    padded = _padded(x, pads, -np.inf)
    taps = list(_taps(padded, window, strides))
    values = np.stack([padded[tap] for _, tap in taps])
    first = values.argmax(0)
    grad_padded = np.zeros(padded.shape)
    for i, (_, tap) in enumerate(taps):
        grad_padded[tap] += np.where(first == i, grad, 0)
    return values.max(0), _cropped(grad_padded, x, pads)


def _padded(x: np.ndarray, pads: Any, value: float) -> np.ndarray:
    """Negative padding crops."""
    added = [(0, 0), *((max(0, before), max(0, after)) for before, after in pads), (0, 0)]
    enlarged = np.pad(x, added, constant_values=value)
    height, width = (x.shape[1 + axis] + sum(pads[axis]) for axis in (0, 1))
    row, column = (max(0, -before) for before, _ in pads)
    return enlarged[:, row : row + height, column : column + width]


def _cropped(padded: np.ndarray, x: np.ndarray, pads: Any) -> np.ndarray:
    back = [(-before, -after) for before, after in pads]
    return _padded(padded, back, 0.0)


def _taps(padded: np.ndarray, window: Any, strides: Any) -> Any:
    """Slices of the images that each position in a window reads."""
    counts = [(padded.shape[1 + i] - window[i]) // strides[i] + 1 for i in (0, 1)]
    for row, column in np.ndindex(*window[:2]):
        starts = (row, column)
        yield (
            starts,
            (
                slice(None),
                *(
                    slice(start, start + (count - 1) * stride + 1, stride)
                    for start, count, stride in zip(starts, counts, strides, strict=True)
                ),
            ),
        )
