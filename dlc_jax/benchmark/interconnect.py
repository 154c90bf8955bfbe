"""At which number of devices communication would bound data-parallel training, on paper.

The devices add up their gradients by a ring all-reduce (Patarasuk and Yuan 2009). Where it takes
as long as the computation whose gradients it adds up, half of the time is communication. From
measured or estimated steps, parameter bytes, and published rates of interconnects.
"""

import math
from dataclasses import dataclass
from typing import Any

# Additions and multiplications of a multiply-add, in the forward pass and, twice as many, in the
# backward pass: of the gradients of the layer's weights and of what it reads.
_OPERATIONS_A_MULTIPLY_ADD = 2 * 3
# Of the time of a step; no gradient can be sent before.
BACKWARD = 2 / 3
# Of the published peak that training a convnet reaches: 2,600 images/s of ResNet-50 on an A100 of
# 312 TFLOP/s (pytorch-image-models, issue 1491) are 20 %.
FRACTION_OF_PEAK = 0.2


@dataclass(frozen=True)
class Link:
    """What a device sends through, while it receives as much.

    Attributes:
      title: as a table calls it.
      bytes_per_second: in one direction, of one device.
      latency: of one message, in seconds.
      source: who published the rate, and how it is made of what they state.
      latency_source: who published the latency; "assumed" where nobody did.
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
        "PCI-SIG, PCI Express Base Specification 5.0: 32 GT/s a lane and direction, 16 lanes, "
        "128 of 130 bits",
    ),
    "pcie4": Link(
        "PCIe 4.0 x16", 16e9 * 16 * 128 / 130 / 8, 2.5e-6,
        "PCI-SIG, PCI Express Base Specification 4.0: 16 GT/s a lane and direction, 16 lanes, "
        "128 of 130 bits",
    ),
    "ndr": Link(
        "InfiniBand NDR", 400e9 / 8, 4e-6,
        "NVIDIA, ConnectX-7 user manual: 400 Gb/s a port and direction",
    ),
    "100gbe": Link(
        "100 Gb/s Ethernet", 100e9 / 8, 25e-6, "IEEE 802.3ba, each direction", "assumed"
    ),
    "10gbe": Link("10 Gb/s Ethernet", 10e9 / 8, 25e-6, "IEEE 802.3ae, each direction", "assumed"),
    "1gbe": Link("1 Gb/s Ethernet", 1e9 / 8, 25e-6, "IEEE 802.3ab, each direction", "assumed"),
}  # fmt: skip
# What would join machines such as this one.
_LINKS_HERE = ("ndr", "100gbe", "10gbe", "1gbe")


@dataclass(frozen=True)
class Accelerator:
    """A device that nobody measured here.

    Attributes:
      title: with the format of its numbers, as a table calls it.
      peak: operations a second, of dense matrix products.
      source: who published it.
      links: some of `LINKS`.
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
    """How long devices in a ring take to add up arrays, until each has the sum.

    Each sends 2 (n - 1) messages of an n-th of the array to the next one, half of them to add the
    parts up and half to hand the sums on, which is the least that any algorithm needs (Patarasuk
    and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations").

    Args:
      size: of the array, in bytes.
      devices: how many, n.
      bytes_per_second: that each sends, while it receives as much.
      latency: of a message, in seconds.
    """
    return 2 * (devices - 1) * (size / devices / bytes_per_second + latency)


def strong_bound(
    seconds: float, size: float, bytes_per_second: float, latency: float = 0.0
) -> float:
    """The number of devices that share one batch whose all-reduce takes as long as they compute.

    It solves `ring_all_reduce_seconds(size, n, ...) = seconds / n`; with fewer devices they
    compute for longer, with more they communicate for longer.

    Args:
      seconds: of the computation by one device; two thirds of it (`BACKWARD`) where the all-reduce
        goes on during the backward pass, and only what is left over shows.
      size: of the gradients, in bytes.
      bytes_per_second: as for `ring_all_reduce_seconds`.
      latency: likewise.
    """
    sending = 2 * size / bytes_per_second
    return _positive_root(2 * latency, sending - 2 * latency, sending + seconds)


def weak_bound(seconds: float, size: float, bytes_per_second: float, latency: float = 0.0) -> float:
    """Likewise where each device has a batch of its own, so that none computes for less.

    It solves `ring_all_reduce_seconds(size, n, ...) = seconds`.

    Returns:
      The number of devices; infinity where the all-reduce never takes as long. Without latency
      that is wherever 2 size / bytes_per_second, which it comes near to, is less than `seconds`.
    """
    sending = 2 * size / bytes_per_second
    return _positive_root(2 * latency, sending - 2 * latency - seconds, sending)


def _positive_root(a: float, b: float, c: float) -> float:
    """Of a n^2 + b n = c, with a >= 0 and c > 0; infinity if there is none."""
    root = math.sqrt(b * b + 4 * a * c)
    # Each is exact where the other subtracts what is nearly the same.
    if b > 0:
        return 2 * c / (b + root)
    return (root - b) / (2 * a) if a else math.inf


def first_bound(devices: float) -> int | None:
    """The least number of devices that is bound, of which a single one never is; None for never."""
    if math.isinf(devices):
        return None
    # What a rounding error lies above a whole number is that number.
    return max(2, math.ceil(devices * (1 - 1e-12)))


def on_paper(results: dict[str, Any]) -> list[dict[str, Any]]:
    """At which number of devices communication would bound the networks.

    Args:
      results: of `run`; used are `device` and the networks' `step_s`, `step_images`,
        `batch_size`, `bytes` and `multiply_adds`.

    Returns:
      For each computer, link and network: whether the time of its step is estimated, that time of
      a whole batch, the time to which the all-reduce tends (latencies apart), and the least number
      of devices that are bound: by `strong_bound` and `weak_bound`, without and with overlap.
      Computers are machines as this one, and the accelerators.
    """
    this_one = Accelerator(here(results), 0.0, "", _LINKS_HERE)
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


def here(results: dict[str, Any]) -> str:
    """What `on_paper` calls a machine such as the one that was measured."""
    return f"{results['device']}, measured"


def _batch_seconds(network: dict[str, Any], peak: float) -> float:
    """Of a whole batch on one device: estimated from a peak, or measured where there is none."""
    batch_size = network["batch_size"]
    if not peak:
        return network["step_s"] * batch_size / network["step_images"]
    operations = _OPERATIONS_A_MULTIPLY_ADD * network["multiply_adds"] * batch_size
    return operations / (peak * FRACTION_OF_PEAK)


def _bounds(seconds: float, size: int, link: Link) -> dict[str, int | None]:
    how = {"size": size, "bytes_per_second": link.bytes_per_second, "latency": link.latency}
    return {
        "strong": first_bound(strong_bound(seconds, **how)),
        "strong_overlapped": first_bound(strong_bound(BACKWARD * seconds, **how)),
        "weak": first_bound(weak_bound(seconds, **how)),
        "weak_overlapped": first_bound(weak_bound(BACKWARD * seconds, **how)),
    }
