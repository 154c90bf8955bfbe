"""Training of many lecture networks at once, by `jax.vmap`."""

import statistics
from functools import partial
from typing import Any

from harness.arrays import arrays_file
from harness.workers import Worker, running

from gpu_parts.settings import Save, Settings


def measure(settings: Settings, save: Save) -> None:
    """Measures the seconds of ten epochs per network, for 64 and for 512 networks."""
    dataset = settings.dataset("mnist")
    results: dict[str, Any] = {}
    with arrays_file((dataset.train, dataset.test)) as arrays:
        # All epochs take the same time, so one epoch is enough for many networks.
        for count, epochs in ((settings.size(64, 2), 3), (settings.size(512, 3), 1)):
            arguments = ["--arrays", str(arrays), "--seeds", str(count)]
            with running(partial(Worker, "lecture_dlc_jax", (), arguments)) as [worker]:
                compile_seconds = worker.request(method="compile")["seconds"]
                seconds = [worker.request(method="epoch")["seconds"] for _ in range(epochs)]
                error = worker.request(method="test")["error_percent"]
            results[str(count)] = {
                "networks": count,
                "compile_s": compile_seconds,
                "epoch_s": seconds,
                "ten_epochs_per_network_s": 10 * statistics.median(seconds) / count,
                "test_error_percent": error,
            }
            save(results)
