"""Keeps the memory of one training step for the next one, on a CPU.

The one thing to know: XLA asks malloc for a step's temporary memory at every step, and
glibc returns blocks that large to the kernel at once, so that the next step takes a
page fault for each 4 KiB again: a fifth of a step at standard size.
"""

import ctypes
import os
import platform

# Of mallopt(3).
_MMAP_MAX, _TRIM_THRESHOLD = -4, -1
_TUNED = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_")  # Beginnings of names.


def keep() -> bool:
    """Tells glibc to keep freed memory; for a process of ours, not for a library.

    Returns:
        False when nothing was done: another C library, or the environment already
        says how memory is handled.
    """
    tuned = any(name.startswith(_TUNED) and value for name, value in os.environ.items())
    if platform.libc_ver()[0] != "glibc" or tuned:
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No mapping of its own for a large block; never trimmed. Threads keep their own
    # heaps: with one for all, a step of a small network took up to half as long again.
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
    return all([mallopt(name, value) for name, value in settings])
