"""Environment variables of JAX and Matplotlib, which read them when they are imported."""

import os
import re
import subprocess
import sys

from dlc_jax.errors import InputError
from dlc_jax.utils.files import cache_folder, is_writable

# Variables that name folders, in which no shell may have expanded a leading `~`.
_FOLDERS = (
    "DLC_JAX_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR",
    "MPLCONFIGDIR",
    "TFDS_DATA_DIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
)
# A minimum compile time that no program reaches, so that nothing is written to the cache.
_NEVER_SECONDS = "1e9"


def prepare_jax() -> None:
    """Makes every CPU core a device of JAX, and enables JAX's compilation cache.

    The devices speed up training on a CPU (see `dlc_jax.sharding.mesh`); the cache speeds up later
    starts. Call it before JAX is imported. Environment variables that are already set are kept.

    Raises:
      InputError: JAX can't use the value of `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS`.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and "jaxlib" not in sys.modules:
        _check_flags(flags)
    devices = os.environ.get("JAX_NUM_CPU_DEVICES")
    # -1 is JAX's default.
    if devices is not None and not re.fullmatch(r"\s*(\+?0*[1-9]\d*|-1)\s*", devices):
        raise InputError(
            f"JAX_NUM_CPU_DEVICES is {devices!r}; set it to a positive integer, or unset it"
        )
    if "host_platform_device_count" not in flags:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(usable_cores()))
    folder = cache_folder() / "compiled"
    if is_writable(folder):
        min_compile_seconds = "0"
    elif folder.is_dir():
        # A read-only cache is still read.
        min_compile_seconds = _NEVER_SECONDS
    else:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", min_compile_seconds)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def prepare_program() -> None:
    """Prepares the environment of a non-interactive program, such as the command line.

    Calls `prepare_jax`, selects a non-interactive Matplotlib backend, and expands a leading `~` in
    environment variables that name folders.

    Raises:
      InputError: See `prepare_jax`.
    """
    for name in _FOLDERS:
        value = os.environ.get(name, "")
        if value.startswith("~"):
            expanded = os.path.expanduser(value)
            if not expanded.startswith("~"):
                os.environ[name] = expanded
            elif name not in ("DLC_JAX_CACHE_DIR", "TFDS_DATA_DIR"):
                # The home folder is unknown; the library falls back to its default.
                del os.environ[name]
    # Importing Matplotlib fails if MPLBACKEND is a backend that is not installed.
    os.environ["MPLBACKEND"] = "agg"
    prepare_jax()


def usable_cores() -> int:
    """Returns the number of CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def describe_unusable_jax() -> str | None:
    """Returns why JAX can't be used in this environment, in one line; None if it can."""
    try:
        import jax

        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        reason = " ".join(str(error).split()).split(" (set JAX_PLATFORMS")[0][:200]
        if platforms:
            return (
                f"JAX can't use JAX_PLATFORMS={platforms}{f' ({reason})' if reason else ''}; unset "
                "it, or install JAX for this platform"
            )
        return (
            f"JAX found no device ({reason or type(error).__name__}); check JAX_PLATFORMS and "
            "XLA_FLAGS"
        )
    return None


def _check_flags(flags: str) -> None:
    """Raises an InputError for flags at which XLA would abort the process."""
    program = "from jaxlib import xla_client; xla_client._xla.CompileOptions()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return
    fatal = re.search(r"^F\d{4} .*?\] (.*)$", done.stderr, re.M)
    if done.returncode and fatal:
        raise InputError(f"XLA_FLAGS={flags} can't be used ({fatal[1][:150]}); correct or unset it")
