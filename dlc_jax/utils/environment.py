"""What JAX and Matplotlib read from the environment when they are imported."""

import os
import re
import subprocess
import sys

from dlc_jax.errors import InputError
from dlc_jax.utils.files import cache_folder, is_writable

# Folders that no shell may have expanded, where the libraries don't either.
_FOLDERS = (
    "DLC_JAX_CACHE_DIR",
    "JAX_COMPILATION_CACHE_DIR",
    "MPLCONFIGDIR",
    "TFDS_DATA_DIR",
    "XDG_CACHE_HOME",
    "XDG_CONFIG_HOME",
)
# Seconds that no program takes to compile.
_NEVER = "1e9"


def prepare_jax() -> None:
    """Has JAX use each core of a CPU, and keep what it compiles in the user's cache folder.

    The first makes training on a CPU faster (see `dlc_jax.sharding.mesh`), the second each later
    start. Call it before JAX is imported: it sets environment variables, and leaves alone
    those that are set already.

    Raises:
      InputError: `JAX_NUM_CPU_DEVICES` or `XLA_FLAGS` is set to what JAX can't use.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if flags and "jaxlib" not in sys.modules:
        _check_flags(flags)
    devices = os.environ.get("JAX_NUM_CPU_DEVICES")
    # JAX's own default is -1.
    if devices is not None and not re.fullmatch(r"\s*(\+?0*[1-9]\d*|-1)\s*", devices):
        raise InputError(
            f"JAX_NUM_CPU_DEVICES is {devices!r}; set it to a whole number from 1, or unset it"
        )
    if "host_platform_device_count" not in flags:
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(usable_cores()))
    folder = cache_folder() / "compiled"
    if is_writable(folder):
        least = "0"
    elif folder.is_dir():
        # What others have put there can be read.
        least = _NEVER
    else:
        return
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", least)
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def prepare_program() -> None:
    """`prepare_jax` for a program of its own, as the command line is, that shows no windows.

    Of folders named by environment variables a leading `~` is the home folder for all libraries.

    Raises:
      InputError: as by `prepare_jax`.
    """
    for name in _FOLDERS:
        value = os.environ.get(name, "")
        if value.startswith("~"):
            expanded = os.path.expanduser(value)
            if not expanded.startswith("~"):
                os.environ[name] = expanded
            elif name not in ("DLC_JAX_CACHE_DIR", "TFDS_DATA_DIR"):
                # There is no such folder: as if it had not been named.
                del os.environ[name]
    # Matplotlib can't be imported where it names a backend that is not there.
    os.environ["MPLBACKEND"] = "agg"
    prepare_jax()


def usable_cores() -> int:
    """How many of this machine's cores the process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def why_unusable() -> str | None:
    """What of the environment keeps JAX from being used, if anything does, in one line."""
    try:
        import jax

        jax.devices()
    except Exception as error:
        platforms = os.environ.get("JAX_PLATFORMS")
        told = " ".join(str(error).split()).split(" (set JAX_PLATFORMS")[0][:200]
        if platforms:
            return (
                f"JAX can't use the platform that JAX_PLATFORMS={platforms} asks for"
                f"{f' ({told})' if told else ''}; unset it, or install JAX for it"
            )
        return f"JAX finds no device ({told or type(error).__name__}); see JAX_PLATFORMS, XLA_FLAGS"
    return None


def _check_flags(flags: str) -> None:
    """Raises an InputError where XLA would abort the process."""
    program = "from jaxlib import xla_client; xla_client._xla.CompileOptions()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, errors="replace"
        )
    except OSError:
        return
    fatal = re.search(r"^F\d{4} .*?\] (.*)$", done.stderr, re.M)
    if done.returncode and fatal:
        raise InputError(f"XLA_FLAGS={flags} can't be used ({fatal[1][:150]}); mend or unset it")
