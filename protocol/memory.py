"""What a process of ours keeps of the memory that it has freed."""

from __future__ import annotations

# Parameters of mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3

# Up to so much of freed memory is kept at hand. A large row has some buffers of its length on its way through.
_KEPT_BYTES = 64 * 1024 * 1024

# Blocks from this size on are fetched from the kernel and given back, each by itself. The largest that glibc takes.
_LONGEST_KEPT = 32 * 1024 * 1024


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks of some megabytes for the next ones. Whether it does: other C libraries do not.

    To fetch a megabyte from the kernel anew, page by page and zeroed, takes longer than to copy it.
    """
    # Not before the standard streams are open: importing it opens a file, which could get the number of one.
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LONGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))
