"""How the C library deals with freed memory: a step allocates the same tensors again and again, some of them megabytes.

By default these go back to the system each time, and every page of them is made anew by the next step: up to a fifth of
a long prefill. Where the C library is not glibc nothing is changed.
"""

import ctypes
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_KEPT_BYTES = 256 << 20
_LARGEST_KEPT_BYTES = 32 << 20  # more is not allowed


def share_arena() -> None:
    """One heap for all threads that start from now on: memory freed by one serves the others."""
    _call("mallopt", _ARENA_MAX, 1)


def keep_freed() -> None:
    """From now on; what is free now goes back first. Call after loading, which frees much that is not needed again."""
    _call("malloc_trim", 0)
    _call("mallopt", _MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    _call("mallopt", _TRIM_THRESHOLD, _KEPT_BYTES)
    _call("mallopt", _TOP_PAD, _LARGEST_KEPT_BYTES)


def _call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
