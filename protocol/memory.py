"""How this process keeps the memory of rows that have gone."""

from __future__ import annotations

# The largest that the threshold follows: glibc's DEFAULT_MMAP_THRESHOLD_MAX is 32 MiB.
_LARGEST = 31 * 1024 * 1024


def keep_freed_blocks() -> None:
    """Have the allocator keep freed blocks of up to 31 MiB, for rows of a megabyte come one after the other.

    glibc gives a freed block above a threshold back to the kernel, which faults its pages in anew for the next one:
    rows of 1 MB went a sixth faster without that. The threshold follows the largest block that was ever freed
    (mallopt(3), M_MMAP_THRESHOLD); this one is never touched, and so costs no memory. Elsewhere it does nothing.
    """
    bytearray(_LARGEST)
