"""Estimates of the number of devices at which communication bounds data-parallel training.

The devices sum their gradients by a ring all-reduce (Patarasuk and Yuan 2009). Communication bounds
training if the all-reduce takes at least as long as the computation. The estimates need measured or
estimated durations of steps, the sizes of the gradients, and published rates of interconnects.
"""

import math
from dataclasses import dataclass
from typing import Any

# Floating-point operations in training per multiply-add of the forward pass. The backward pass has
# twice as many as the forward pass, for the gradients of weights and inputs.
_OPERATIONS_PER_MULTIPLY_ADD = 2 * 3
# The backward pass's share of a step, during which gradients can be sent.
BACKWARD = 2 / 3
# The fraction of its published peak that an accelerator reaches in training a convnet: 2,600
# images/s of ResNet-50 on an A100 of 312 TFLOP/s (pytorch-image-models, issue 1491) are 20 %.
FRACTION_OF_PEAK = 0.2


@dataclass(frozen=True)
class Link:
    """An interconnect; a device sends and receives at the same time.

    Attributes:
      title: Name in tables.
      bytes_per_second: Rate of one device in one direction.
      latency: Seconds for one message.
      source: Publisher of the rate, and the published numbers that it follows from.
      latency_source: Publisher of the latency, or "assumed".
    """

    title: str
    bytes_per_second: float
    latency: float
    source: str
    latency_source: str = "NCCL, src/graph/tuning.cc, ring with LL128"


LINKS = {
    "nvlink4": Link(
        "NVLink 4", 900e9 / 2, 1.9e-6,
        "NVIDIA, Hopper Architecture: 900 GB/s for each GPU, both directions together",
    ),
    "ici-v5p": Link(
        "ICI of TPU v5p", 1200e9 / 2, 1e-6,
        "Google Cloud, TPU v5p: 1,200 GB/s for each chip, both directions together", "assumed",
    ),
    "pcie5": Link(
        "PCIe 5.0 x16", 32e9 * 16 * 128 / 130 / 8, 2.5e-6,
        "PCI-SIG, PCI Express Base Specification 5.0: 32 GT/s per lane and direction, 16 lanes, "
        "128 of 130 bits",
    ),
    "pcie4": Link(
        "PCIe 4.0 x16", 16e9 * 16 * 128 / 130 / 8, 2.5e-6,
        "PCI-SIG, PCI Express Base Specification 4.0: 16 GT/s per lane and direction, 16 lanes, "
        "128 of 130 bits",
    ),
    "ndr": Link(
        "InfiniBand NDR", 400e9 / 8, 4e-6,
        "NVIDIA, ConnectX-7 user manual: 400 Gb/s per port and direction",
    ),
    "100gbe": Link(
        "100 Gb/s Ethernet", 100e9 / 8, 25e-6, "IEEE 802.3ba, each direction", "assumed"
    ),
    "10gbe": Link("10 Gb/s Ethernet", 10e9 / 8, 25e-6, "IEEE 802.3ae, each direction", "assumed"),
    "1gbe": Link("1 Gb/s Ethernet", 1e9 / 8, 25e-6, "IEEE 802.3ab, each direction", "assumed"),
}  # fmt: skip
# Links between machines such as this one.
_LINKS_HERE = ("ndr", "100gbe", "10gbe", "1gbe")


@dataclass(frozen=True)
class Accelerator:
    """A device whose speed is estimated.

    Attributes:
      title: Name in tables, with the floating-point type.
      peak: Operations per second of dense matrix products.
      source: Publisher of the peak.
      links: Names from `LINKS`.
    """

    title: str
    peak: float
    source: str
    links: tuple[str, ...]


_H100 = "NVIDIA, H100 datasheet, SXM"
ACCELERATORS = [
    Accelerator(
        "H100, bfloat16", 1979e12 / 2, f"{_H100}: 1,979 TFLOP/s with sparsity, half without",
        ("nvlink4", "pcie5", "pcie4", "ndr", "100gbe", "10gbe", "1gbe"),
    ),
    Accelerator(
        "H100, TF32", 989e12 / 2, f"{_H100}: 989 TFLOP/s with sparsity, half without",
        ("nvlink4", "ndr"),
    ),
    Accelerator("H100, float32", 67e12, f"{_H100}: 67 TFLOP/s", ("nvlink4", "ndr")),
    Accelerator("TPU v5p, bfloat16", 459e12, "Google Cloud, TPU v5p", ("ici-v5p",)),
]  # fmt: skip


def ring_all_reduce_seconds(
    size: float, devices: float, bytes_per_second: float, latency: float = 0.0
) -> float:
    """Returns the duration of a ring all-reduce, after which each device has the sum of all arrays.

    Each of n devices sends 2 (n - 1) messages of an n-th of the array to the next one, half of them
    to sum (reduce-scatter) and half to distribute the sums (all-gather). No algorithm sends less
    (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of
    workstations").

    Args:
      size: Size of the array in bytes.
      devices: Number of devices.
      bytes_per_second: Rate at which each device sends and receives.
      latency: Seconds for one message.
    """
    return 2 * (devices - 1) * (size / devices / bytes_per_second + latency)


def strong_bound(
    seconds: float, size: float, bytes_per_second: float, latency: float = 0.0
) -> float:
    """Returns the number of devices sharing a batch at which communication bounds training.

    It solves `ring_all_reduce_seconds(size, n, ...) = seconds / n`.

    Args:
      seconds: Duration of the computation by one device; two thirds of it (`BACKWARD`) if the
        all-reduce overlaps the backward pass.
      size: Size of the gradients in bytes.
      bytes_per_second: Rate at which each device sends and receives.
      latency: Seconds for one message.
    """
    sending = 2 * size / bytes_per_second
    return _positive_root(2 * latency, sending - 2 * latency, sending + seconds)


def weak_bound(seconds: float, size: float, bytes_per_second: float, latency: float = 0.0) -> float:
    """Returns the same as `strong_bound`, for devices that have a batch each.

    It solves `ring_all_reduce_seconds(size, n, ...) = seconds`.

    Returns:
      The number of devices; infinity if the all-reduce never takes as long. Without latency, that
      is the case if its limit, 2 size / bytes_per_second, is at most `seconds`.
    """
    sending = 2 * size / bytes_per_second
    return _positive_root(2 * latency, sending - 2 * latency - seconds, sending)


def _positive_root(a: float, b: float, c: float) -> float:
    """The positive root of a n^2 + b n = c, with a >= 0 and c > 0; infinity if there is none."""
    root = math.sqrt(b * b + 4 * a * c)
    # Of the two forms of the root, the one without cancellation.
    if b > 0:
        return 2 * c / (b + root)
    return (root - b) / (2 * a) if a else math.inf


def first_bound(devices: float) -> int | None:
    """Returns the smallest number of devices, at least 2, that are bound; None if there is none."""
    if math.isinf(devices):
        return None
    # A rounding error must not add a device.
    return max(2, math.ceil(devices * (1 - 1e-12)))


def estimate(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Estimates the number of devices at which communication bounds the networks' training.

    Args:
      results: Results of `benchmarks/scaling.py` with `device` and the networks' `step_s`,
        `step_images`, `batch_size`, `bytes` and `multiply_adds`.

    Returns:
      For each computer (this machine and the accelerators), link and network: whether the duration
      of a batch is estimated, that duration, the limit of the all-reduce's duration without
      latency, and the smallest number of devices that are bound by `strong_bound` and by
      `weak_bound`, without and with overlap.
    """
    this_one = Accelerator(measured_machine(results), 0.0, "", _LINKS_HERE)
    rows = []
    for computer in (this_one, *ACCELERATORS):
        for link in computer.links:
            for name, network in results["networks"].items():
                seconds = _batch_seconds(network, computer.peak)
                bounds = _bounds(seconds, network["bytes"], LINKS[link])
                rows.append(
                    {
                        "computer": computer.title,
                        "estimated": bool(computer.peak),
                        "link": link,
                        "network": name,
                        "batch_s": seconds,
                        "all_reduce_s": 2 * network["bytes"] / LINKS[link].bytes_per_second,
                        **bounds,
                    }
                )
    return rows


def measured_machine(results: dict[str, Any]) -> str:
    """Returns the name of the measured machine in the rows of `estimate`."""
    return f"{results['device']}, measured"


def _batch_seconds(network: dict[str, Any], peak: float) -> float:
    """Duration of a batch on one device, estimated from its peak, or measured if that is 0."""
    batch_size = network["batch_size"]
    if not peak:
        return network["step_s"] * batch_size / network["step_images"]
    operations = _OPERATIONS_PER_MULTIPLY_ADD * network["multiply_adds"] * batch_size
    return operations / (peak * FRACTION_OF_PEAK)


def _bounds(seconds: float, size: int, link: Link) -> dict[str, int | None]:
    cost = size, link.bytes_per_second, link.latency
    return {
        "strong": first_bound(strong_bound(seconds, *cost)),
        "strong_overlapped": first_bound(strong_bound(BACKWARD * seconds, *cost)),
        "weak": first_bound(weak_bound(seconds, *cost)),
        "weak_overlapped": first_bound(weak_bound(BACKWARD * seconds, *cost)),
    }
