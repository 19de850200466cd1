"""The KV cache in pages: per layer one K and one V tensor [blocks, block_size, kv_heads, head_dim].

Separate tensors per layer, allocated once. The engine thread writes and reads the blocks of its step while the event
loop exports and imports others; nothing here is shared between blocks, so no lock is needed.
"""

import contextlib
import math
import mmap
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from shared.engine.native.kernels import Kernels


class KvPages:
    """kernels: what computes attention over these pages, None where torch has to."""

    def __init__(
        self, *, layers: int, blocks: int, block_size: int, kv_heads: int, head_dim: int, dtype: torch.dtype,
        device: torch.device, kernels: Kernels | None = None,
    ) -> None:  # fmt: skip
        self.block_size, self.kv_heads, self.head_dim = block_size, kv_heads, head_dim
        self.device = device
        self.kernels = kernels
        self._token = (kv_heads, head_dim)
        self._dtype = dtype
        shape = (2, layers, blocks, block_size, kv_heads, head_dim)
        pool = torch.zeros(shape, dtype=dtype, device=device) if device.type == "cuda" else _huge(shape, dtype)
        self._k, self._v = (list(half) for half in pool)

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Put k and v [tokens, kv_heads, head_dim] into `slots` (block * block_size + offset)."""
        self._k[layer].view(-1, *self._token).index_copy_(0, slots, k)
        self._v[layer].view(-1, *self._token).index_copy_(0, slots, v)

    def of_layer(self, layer: int) -> tuple[Tensor, Tensor]:
        """Its K and V, not copied: [blocks, block_size, kv_heads, head_dim] each."""
        return self._k[layer], self._v[layer]

    def gather(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of K and V of whole `blocks`, in their order: [blocks * block_size, kv_heads, head_dim] each.

        index_select of flattened blocks costs a third of advanced indexing.
        """
        k, v = (pages.view(pages.shape[0], -1).index_select(0, blocks) for pages in (self._k[layer], self._v[layer]))
        return k.view(-1, *self._token), v.view(-1, *self._token)

    def export(self, layer: int, blocks: Sequence[int], start: int, end: int) -> memoryview:
        slots = self._slots(blocks, start, end)
        out = torch.empty((2, end - start, *self._token), dtype=self._dtype, device=self.device)
        for half, pages in enumerate((self._k[layer], self._v[layer])):
            torch.index_select(pages.view(-1, *self._token), 0, slots, out=out[half])
        return out.reshape(-1).cpu().view(torch.uint8).numpy().data

    def import_(self, layer: int, blocks: Sequence[int], start: int, end: int, data: memoryview) -> None:
        expected_bytes = 2 * (end - start) * self._token[0] * self._token[1] * self._dtype.itemsize
        if data.nbytes != expected_bytes:
            raise ValueError(f"KV of positions {start} to {end} has {expected_bytes} bytes, got {data.nbytes}")
        if start == end:
            return
        # torch wants a buffer that may be written: one that may not (bytes) is copied first.
        flat = torch.frombuffer(bytearray(data) if data.readonly else data, dtype=torch.uint8)
        k, v = flat.view(self._dtype).view(2, end - start, *self._token).to(self.device)
        self.write(layer, self._slots(blocks, start, end), k, v)

    def _slots(self, blocks: Sequence[int], start: int, end: int) -> Tensor:
        return torch.from_numpy(slots_of(blocks, start, end, self.block_size)).to(self.device)


def _huge(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros in huge pages where the system has them: attention touches memory all over, and would wait for the tables
    of small ones."""
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError, AttributeError):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(shape)


def slots_of(
    blocks: Sequence[int], start: int, end: int, block_size: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    """Where positions [start, end) of a sequence that lies in `blocks` are, as block * block_size + offset."""
    positions = np.arange(start, end)
    first, last = start // block_size, -(-end // block_size)
    used = np.asarray(blocks[first:last], dtype=np.int64)
    return used[positions // block_size - first] * block_size + positions % block_size
