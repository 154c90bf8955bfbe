"""Data-parallel training of a network on the devices of one process or of several."""

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from harness import programs
from harness.workers import serve
from scaling_parts.networks import NETWORKS

from dlc_jax import sharding
from dlc_jax.data.dataset import Examples
from dlc_jax.errors import InputError
from dlc_jax.sharding import processes


class _Training:
    """A network, its devices, and compiled epochs by batch size."""

    def __init__(self, network: str, devices: Sequence[jax.Device]) -> None:
        self._network, self._devices = NETWORKS[network], devices
        self._create = jax.jit(self._init)
        self._epochs: dict[int, Any] = {}

    def prepare(self, batch_size: int, images: int) -> None:
        """Compiles an epoch of images of noise, and runs it once, which allocates memory."""
        state = self._create(jax.random.key(0))
        mesh = programs.device_mesh(state, batch_size, self._devices)
        rng = np.random.default_rng(0)
        examples = Examples(
            rng.integers(0, 256, (images, *self._network.image_shape), np.uint8),
            np.arange(images, dtype=np.int32) % self._network.classes,
        )
        normalise = programs.normalisation(examples.images[:100])
        state, *data = sharding.replicate((state, examples, normalise), mesh)
        epoch = programs.train_epoch(batch_size, mesh)
        run = jax.jit(epoch, donate_argnums=0).lower(state, *data).compile()
        self._epochs[batch_size] = [run, state, data]
        self.seconds(batch_size)

    def seconds(self, batch_size: int) -> float:
        """Trains for an epoch; returns its duration."""
        run, state, data = self._epochs[batch_size]
        start = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, *data))
        seconds = time.perf_counter() - start
        self._epochs[batch_size][1] = state
        return seconds

    def _init(self, key: jax.Array) -> Any:
        return programs.new_state(self._network.create(nnx.Rngs(key)))


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
    """All devices, or the first ones; with several processes all are needed."""
    devices = jax.devices()
    count = count or len(devices)
    if len(devices) < count or (processes > 1 and len(devices) > count):
        raise InputError(
            f"there are {len(devices)} devices, not {count}; ask for others, or for simulated ones "
            "by JAX_PLATFORMS=cpu"
        )
    return devices[:count]


if __name__ == "__main__":
    main()
