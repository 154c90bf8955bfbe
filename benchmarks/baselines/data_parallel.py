"""Data-parallel training of a network on the devices of one process or of several."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from harness import programs
from harness.workers import serve
from scaling_parts.networks import NETWORKS

from dlc_jax import sharding
from dlc_jax.data.dataset import Examples
from dlc_jax.errors import InputError
from dlc_jax.sharding import processes


class _Training:
    """Compiled epochs of a network by batch size."""

    def __init__(self, network: str, devices: Sequence[jax.Device]) -> None:
        self._network, self._devices = NETWORKS[network], devices
        self._epochs: dict[int, programs.EpochProgram] = {}

    def prepare(self, batch_size: int, images: int) -> None:
        """Compiles an epoch of random images, and runs it once, which allocates memory."""
        rng = np.random.default_rng(0)
        examples = Examples(
            rng.integers(0, 256, (images, *self._network.image_shape), np.uint8),
            np.arange(images, dtype=np.int32) % self._network.classes,
        )
        task = programs.classification(self._network.create, examples.images[:100])
        mesh = sharding.device_mesh(batch_size, self._devices)
        epoch = programs.EpochProgram(task, jax.random.key(0), examples, batch_size, mesh)
        epoch.compile()
        epoch.train()
        self._epochs[batch_size] = epoch

    def seconds(self, batch_size: int) -> float:
        """Trains for an epoch; returns its duration."""
        start = time.perf_counter()
        self._epochs[batch_size].train()
        return time.perf_counter() - start


def main() -> None:
    """Compiles an epoch if a request has a number of images; otherwise times a compiled one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--network", choices=NETWORKS, required=True)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--coordinator")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--process", type=int)
    arguments = parser.parse_args()
    if arguments.processes > 1:
        processes.redirect_library_output()
        processes.initialize(arguments.coordinator, arguments.processes, arguments.process)
    program = _Training(arguments.network, _devices(arguments.devices, arguments.processes))

    def respond(batch_size: int, images: int = 0) -> dict[str, Any]:
        if images:
            program.prepare(batch_size, images)
            return {}
        return {"seconds": program.seconds(batch_size)}

    serve(respond)


def _devices(count: int | None, processes: int) -> list[jax.Device]:
    """The first devices; by default, and with several processes, all devices."""
    devices = jax.devices()
    count = count or len(devices)
    if len(devices) < count or (processes > 1 and len(devices) > count):
        raise InputError(
            f"there are {len(devices)} devices, not {count}; choose another number, or simulate "
            "devices with JAX_PLATFORMS=cpu"
        )
    return devices[:count]


if __name__ == "__main__":
    main()
