"""Single operations of PyTorch."""

import argparse
import time
from typing import Any

import torch
from torch.nn import functional

from dlc_jax.benchmark.rounds import answer

# How long one answer should take, in seconds; short operations are repeated.
_LEAST_SECONDS = 0.3


def main() -> None:
    """Prepares an operation when asked for one, and else times the one prepared."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--channels-last", action="store_true")
    layout = torch.contiguous_format
    if parser.parse_args().channels_last:
        layout = torch.channels_last
    prepared: Any = None

    def respond(prepare: dict[str, int] | None = None) -> dict[str, float]:
        nonlocal prepared
        if prepare is not None:
            prepared = _prepare(layout, **prepare)
            return {}
        once, times = prepared
        return {"milliseconds": 1e3 * _seconds(once, times) / times}

    answer(respond)


def _prepare(
    layout: torch.memory_format,
    *,
    size: int,
    channels: int,
    features: int,
    window: int,
    stride: int,
    batch_size: int,
) -> Any:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    x = torch.randn(batch_size, channels, size, size, device=device)
    x = x.to(memory_format=layout).requires_grad_()
    kernel = torch.randn(max(features, 1), channels, window, window, device=device)
    kernel = kernel.to(memory_format=layout).requires_grad_()

    def operation() -> torch.Tensor:
        if features:
            return functional.conv2d(x, kernel, stride=stride, padding=(window - 1) // 2)
        return functional.max_pool2d(x, window, stride)

    grad = torch.randn_like(operation())
    inputs = (x, kernel) if features else (x,)

    def once() -> None:
        torch.autograd.grad(operation(), inputs, grad)

    _seconds(once, 1)
    return once, max(1, round(_LEAST_SECONDS / _seconds(once, 1)))


def _seconds(once: Any, times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        once()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
