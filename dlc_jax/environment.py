"""What JAX reads from the environment when it is imported."""

import os

from dlc_jax.files import cache_folder


def prepare_jax() -> None:
    """Has JAX use each core of a CPU, and keep what it compiles in the user's cache folder.

    The first makes training on a CPU faster (see `dlc_jax.sharding`), the second each later
    start. Call it before JAX is imported: it sets environment variables, and leaves alone
    those that are set already.
    """
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(usable_cores()))
    folder = cache_folder() / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def usable_cores() -> int:
    """How many of this machine's cores the process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
