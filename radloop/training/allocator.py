"""The memory that a step on a CPU frees and the next one takes again."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt, see malloc.h
_LARGEST = 2**31 - 1
_LARGEST_MMAP = 2**25  # that glibc takes; blocks of more bytes are always the system's own


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let this process keep what it frees in this block, where its C library is glibc.

    It would hand memory back to the system during each backward pass and be given zeroed pages for it in
    the next forward pass, which takes time. Afterwards what is free goes back.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP)  # what glibc comes to by itself with large blocks
        libc.malloc_trim(0)
