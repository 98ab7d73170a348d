"""The memory that a training on a CPU frees and takes again in every step."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h
KEPT_BYTES = 256 * 2**20
LARGE_BYTES = 32 * 2**20  # glibc takes no more


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to KEPT_BYTES, for its next arrays, each of less than LARGE_BYTES.

    glibc gives the memory of large arrays back to the system and takes it anew, page by page, which takes time in every
    step on stored features. Nothing happens with another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, LARGE_BYTES)
    mallopt(_TRIM_THRESHOLD, KEPT_BYTES)
