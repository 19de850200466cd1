"""How the C library deals with freed memory: a step allocates the same tensors again and again, some of them megabytes.

By default these go back to the system each time, and every page of them is made anew by the next step: up to a fifth of
a long prefill. Where the C library is not glibc nothing is changed. And how much torch's products keep: code for each
number of rows that they have seen.
"""

import ctypes
import os
from typing import Any

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -2, -3, -8  # of mallopt(3)
_KEPT_BYTES = 256 << 20
_LARGEST_KEPT_BYTES = 32 << 20  # more is not allowed
# Products kept, with their compiled code (0.5 MB each), by oneDNN and by torch over it; both would keep 1,024. A model
# has five of a number of rows, and prompts have any. Where a number's are not kept, a step takes 1.7 ms more.
_PRODUCTS_KEPT = 64
_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")


def share_arena() -> None:
    """One heap for all threads that start from now on: memory freed by one serves the others."""
    _call("mallopt", _ARENA_MAX, 1)


def bound_products() -> None:
    """Call before torch has computed anything; what the user has set stays."""
    for name in _CACHES:
        os.environ.setdefault(name, str(_PRODUCTS_KEPT))


def give_back() -> None:
    """All that is free, also between what is in use. Milliseconds; the next step asks for its pages anew."""
    _call("malloc_trim", 0)


def keep_freed() -> None:
    """From now on; what is free now goes back first. Call after loading, which frees much that is not needed again."""
    give_back()
    _call("mallopt", _MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
    _call("mallopt", _TRIM_THRESHOLD, _KEPT_BYTES)
    _call("mallopt", _TOP_PAD, _LARGEST_KEPT_BYTES)


def _call(name: str, *arguments: int) -> None:
    function: Any = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function(*arguments)
