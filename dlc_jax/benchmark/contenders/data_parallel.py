"""Training steps of a network, spread over devices of one process or of several."""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx

from dlc_jax import sharding, training
from dlc_jax.benchmark.rounds import answer
from dlc_jax.benchmark.scaling import NETWORKS
from dlc_jax.data.dataset import Examples, Normalise
from dlc_jax.errors import InputError
from dlc_jax.sharding import processes

_OPTIMIZER = optax.sgd(0.1)


class _Training:
    """The network, the devices, and epochs by the size of their batches."""

    def __init__(self, network: str, devices: Sequence[jax.Device]) -> None:
        self._network, self._devices = NETWORKS[network], devices
        self._create = jax.jit(self._init)
        self._epochs: dict[int, Any] = {}

    def prepare(self, batch_size: int, images: int) -> None:
        """Compiles an epoch of images of noise, and runs it once: memory is new to it then."""
        state = self._create(jax.random.key(0))
        even = training.couples_examples(state)
        mesh = sharding.device_mesh(batch_size, self._devices, even=even)
        rng = np.random.default_rng(0)
        examples = Examples(
            rng.integers(0, 256, (images, *self._network.image_shape), np.uint8),
            np.arange(images, dtype=np.int32) % self._network.classes,
        )
        normalise = Normalise.fit(examples.images[:100])
        state, *data = sharding.replicate((state, examples, normalise), mesh)
        epoch = partial(training.train_epoch, batch_size=batch_size, mesh=mesh)
        run = jax.jit(epoch, donate_argnums=0).lower(state, *data).compile()
        self._epochs[batch_size] = [run, state, data]
        self.seconds(batch_size)

    def seconds(self, batch_size: int) -> float:
        """Trains for an epoch."""
        run, state, data = self._epochs[batch_size]
        start = time.perf_counter()
        state, _ = jax.block_until_ready(run(state, *data))
        seconds = time.perf_counter() - start
        self._epochs[batch_size][1] = state
        return seconds

    def _init(self, key: jax.Array) -> training.TrainState:
        return training.create_state(self._network.create(nnx.Rngs(key)), _OPTIMIZER)


def main() -> None:
    """Prepares an epoch when told of its images, and else times the one prepared."""
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

    answer(respond)


def _devices(count: int | None, processes: int) -> list[jax.Device]:
    """All of them, or the first ones; those of several processes can't be left out."""
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
