"""Ten epochs of the lecture's program, against PyTorch and the slide's 7 seconds."""

from typing import Any

import jax
import lecture
from harness import programs

from dlc_jax.errors import InputError
from gpu_parts import profiling
from gpu_parts.settings import Save, Settings

EPOCHS = 10


def measure(settings: Settings, save: Save) -> None:
    """Ten epochs of each program, in turn; compilation is timed separately."""
    dataset = settings.dataset("mnist")
    results: dict[str, Any] = {}
    # PyTorch's compiler may not work here. It comes last, so that nothing is lost.
    for rival in ("torch",) if settings.rehearse else ("torch", "torch-compile"):
        try:
            measured = lecture.run(
                (dataset.train, dataset.test),
                epochs=settings.size(EPOCHS, 2),
                rivals=lecture.installed([rival]),
            )
        except InputError as error:
            results[rival.replace("-", "_") + "_failed"] = str(error)
            continue
        for name, value in measured.items():
            if isinstance(value, dict) and "epoch_s" in value:
                value["all_epochs_s"] = sum(value["epoch_s"])
                results.setdefault(name, value)
        save(results)
    if settings.profile:
        task = programs.classification(programs.lecture_network, dataset.train.images)
        epoch = programs.EpochProgram(task, jax.random.key(0), dataset.train)
        epoch.compile()
        results["kernels"] = profiling.kernels(epoch.train, settings.profile)
        save(results)
