"""How long importing takes, and how long it is from process start to a first training step."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from dlc_jax.benchmark import machine
from dlc_jax.benchmark.rounds import Report
from dlc_jax.utils.environment import usable_cores

# What `dlc-jax train` does until its first step is done, on digits that need no download.
_FIRST_STEP = """
from dlc_jax.utils.environment import prepare_jax
prepare_jax()
import jax, optax
from flax import nnx
from dlc_jax import data, models, training
digits = data.load("mnist-5k")
normalise = data.Normalise.fit(digits.train.images)
model = models.create("lecture", image_shape=(28, 28, 1), num_classes=10, rngs=nnx.Rngs(0))
state = training.create_state(model, optax.sgd(0.1))
batch = data.Examples(normalise(digits.train.images[:100]), digits.train.labels[:100])
jax.block_until_ready(training.train_step(state, batch))
"""


def run(*, rounds: int, report: Report = lambda what, done, total: None) -> dict[str, Any]:
    """Times new processes.

    Args:
      rounds: how often; the median counts.
      report: called with what runs next, and how many steps are done of how many.

    Returns:
      Seconds of `import jax` and `import dlc_jax`, and from the start of a process to the end
      of its first training step, without (`cold`) and with (`cached`) what an earlier one left
      in the cache folder; with machine, versions, date and commit.
    """
    seconds: dict[str, list[float]] = {
        "import_jax": [], "import_dlc_jax": [], "cold": [], "cached": []
    }  # fmt: skip
    for number in range(rounds):
        report("starting processes", number, rounds)
        seconds["import_jax"].append(_seconds("import jax"))
        seconds["import_dlc_jax"].append(_seconds("import jax, dlc_jax, dlc_jax.ops"))
        with tempfile.TemporaryDirectory() as cache:
            seconds["cold"].append(_seconds(_FIRST_STEP, cache))
            seconds["cached"].append(_seconds(_FIRST_STEP, cache))
    medians = {name: round(statistics.median(values), 3) for name, values in seconds.items()}
    return machine.describe() | {
        "rounds": rounds,
        "import_jax_s": medians["import_jax"],
        "import_dlc_jax_s": medians["import_dlc_jax"],
        "import_extra_s": round(medians["import_dlc_jax"] - medians["import_jax"], 3),
        "first_step_cold_s": medians["cold"],
        "first_step_cached_s": medians["cached"],
        "all_s": seconds,
    }


def _seconds(script: str, cache: str = "") -> float:
    kept = {name: value for name, value in os.environ.items() if not _of_the_cache(name)}
    added = {"DLC_JAX_CACHE_DIR": cache} if cache else {}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", script],
        env=kept | added | {"JAX_NUM_CPU_DEVICES": str(usable_cores())},
        check=True,
    )
    return time.perf_counter() - start


def _of_the_cache(name: str) -> bool:
    """Whether a variable is one by which this process told JAX of its own cache."""
    return name.startswith(("JAX_COMPILATION_CACHE", "JAX_PERSISTENT_CACHE"))
