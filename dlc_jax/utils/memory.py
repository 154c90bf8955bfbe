"""Memory of the process."""

import ctypes


def return_free_memory() -> None:
    """Returns memory that is allocated but not in use to the system, where the C library can.

    glibc keeps freed arrays of up to 32 MiB apart for each thread that made them, so that a
    large network trained for many epochs takes half as much memory again as it needs.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):
        # Another C library, or Windows, for which None is no library.
        return
