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
    """Times ten epochs of each program, in turn; compilation is timed separately."""
    dataset = settings.dataset("mnist")
    results: dict[str, Any] = {}
    # PyTorch's compiler comes last, so that nothing is lost if it does not work.
    groups = (("torch", "dlc_jax-bfloat16"), ("torch-compile",))
    for rivals in groups[:1] if settings.rehearse else groups:
        try:
            measured = lecture.run(
                (dataset.train, dataset.test),
                epochs=settings.size(EPOCHS, 2),
                rivals=lecture.installed(rivals),
            )
        except InputError as error:
            results[rivals[0].replace("-", "_") + "_failed"] = str(error)
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
