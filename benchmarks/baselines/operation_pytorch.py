"""Single operations of PyTorch."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from baselines.server import MIN_SECONDS, serve_operations


def _prepare(
    layout: torch.memory_format,
    *,
    size: int,
    channels: int,
    features: int,
    window: int,
    stride: int,
    batch_size: int,
    groups: int,
    transposed: bool,
) -> Callable[[], float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    x = torch.randn(batch_size, channels, size, size, device=device)
    x = x.to(memory_format=layout).requires_grad_()
    sizes = (channels, features) if transposed else (max(features, 1), channels // groups)
    kernel = torch.randn(*sizes, window, window, device=device)
    kernel = kernel.to(memory_format=layout).requires_grad_()

    def operation() -> torch.Tensor:
        padding = (window - 1) // 2
        if transposed:
            return functional.conv_transpose2d(x, kernel, stride=stride, padding=padding)
        if features:
            return functional.conv2d(x, kernel, stride=stride, padding=padding, groups=groups)
        return functional.max_pool2d(x, window, stride)

    grad = torch.randn_like(operation())
    inputs = (x, kernel) if features else (x,)

    def once() -> None:
        torch.autograd.grad(operation(), inputs, grad)

    _seconds(once, 1)
    repetitions = max(1, round(MIN_SECONDS / _seconds(once, 1)))
    return lambda: _seconds(once, repetitions) / repetitions


def _seconds(once: Any, repetitions: int) -> float:
    start = time.perf_counter()
    for _ in range(repetitions):
        once()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--channels-last", action="store_true")
    last = parser.parse_args().channels_last
    serve_operations(partial(_prepare, torch.channels_last if last else torch.contiguous_format))
