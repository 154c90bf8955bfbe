"""Many networks of the lecture at once, by `jax.vmap`."""

import statistics
from functools import partial
from typing import Any

from dlc_jax.benchmark import lecture
from dlc_jax.benchmark.gpu.part import Keep, Settings
from dlc_jax.benchmark.rounds import Contender, contenders


def measure(settings: Settings, keep: Keep) -> None:
    """Seconds that ten epochs take for one of 64 and for one of 512 networks."""
    dataset = settings.dataset("mnist")
    results: dict[str, Any] = {}
    with lecture.arrays_file((dataset.train, dataset.test)) as arrays:
        for count in (settings.size(64, 2), settings.size(512, 3)):
            arguments = ["--arrays", str(arrays), "--seeds", str(count)]
            with contenders(partial(Contender, "dlc", (), arguments)) as [contender]:
                compiling = contender.ask(do="compile")["seconds"]
                epochs = [contender.ask(do="epoch")["seconds"] for _ in range(3)]
                error = contender.ask(do="test")["error_percent"]
            results[str(count)] = {
                "networks": count,
                "compile_s": compiling,
                "epoch_s": epochs,
                "ten_epochs_a_network_s": 10 * statistics.median(epochs) / count,
                "test_error_percent_after_3_epochs": error,
            }
            keep(results)
