"""Memory is returned to the system."""

import gc
import os
import platform
from pathlib import Path

import numpy as np
import pytest

from dlc_jax.utils.memory import return_free_memory


def _resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_arrays_between_used_ones_are_returned() -> None:
    # Below the size from which glibc maps each array by itself.
    arrays = [np.ones(100_000, np.uint8) for _ in range(1000)]
    used = arrays[::10]
    before = _resident_mib()
    del arrays
    gc.collect()
    return_free_memory()
    assert _resident_mib() < before - 70
    assert all(array.sum() == 100_000 for array in used)
