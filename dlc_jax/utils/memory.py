"""Memory of the process."""

import ctypes


def return_free_memory() -> None:
    """Returns unused memory to the system, if the C library can.

    glibc keeps freed arrays of up to 32 MiB separately for each thread that allocated them, so that
    a large network trained for many epochs takes half as much memory again as it needs.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        # Another C library, or Windows, where CDLL(None) fails.
        return
