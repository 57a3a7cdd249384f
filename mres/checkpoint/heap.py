"""What the C library does with memory that is freed."""

import ctypes

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 1 << 18


def return_what_is_freed() -> None:
    """From now on, for the whole process, blocks of tensors go back to the system at once.

    By default glibc comes to keep what is freed up to 32 MB for itself, once in every thread's arena: a peak of tensors
    that are long gone. Where the C library is another one, nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_ARENA_MAX, 1)
