"""Attention over KV pages in torch alone: on CUDA, and on a CPU where our kernels cannot be had."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.engine import attention
from shared.engine.pages import KvPages
from shared.engine.port import Row

# Decode rows are padded to the longest while that wastes less than this share: beyond, one by one is cheaper.
_PADDING = 1.2


class TorchAttention:
    """first_tokens: where each row begins in the packed step, and its end."""

    def __init__(self, rows: Sequence[Row], first_tokens: Sequence[int], pages: KvPages) -> None:
        self._pages = pages
        spans = [slice(first, end) for first, end in pairwise(first_tokens)]
        decoding = [i for i, row in enumerate(rows) if len(row.token_ids) == 1 and row.start > 0]
        index = np.asarray([first_tokens[i] for i in decoding])
        self._decode = _Decode([rows[i] for i in decoding], index, pages) if decoding else None
        self._only_decode = len(decoding) == len(rows)
        others = [(span, row) for i, (span, row) in enumerate(zip(spans, rows, strict=True)) if i not in set(decoding)]
        self._wholes = [span for span, row in others if row.start == 0]
        self._chunks = [
            (span, row.start + span.stop - span.start, _blocks(row, pages)) for span, row in others if row.start > 0
        ]

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        """As Attends.attend; key and value lie in their pages already."""
        if self._decode is not None and self._only_decode:
            return self._decode.attend(layer, query, scale, window)
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for span in self._wholes:
            out[span] = attention.whole(query[span], key[span], value[span], scale, window)
        for span, end, blocks in self._chunks:
            k, v = self._pages.gather(layer, blocks)
            out[span] = attention.tail(query[span], k[:end], v[:end], scale, window)
        if self._decode is not None:
            index = self._decode.index
            out[index] = self._decode.attend(layer, query[index], scale, window)
        return out


class _Decode:
    """The rows of a step that compute one token after earlier ones. `index`: where these lie in the packed sequence."""

    def __init__(self, rows: Sequence[Row], index: "np.ndarray[Any, Any]", pages: KvPages) -> None:
        self.index = torch.from_numpy(index).to(pages.device)
        self._pages = pages
        self._lengths = [row.start + 1 for row in rows]
        self._tables = [_blocks(row, pages) for row in rows]
        longest = max(len(table) for table in self._tables)
        self._padded: Tensor | None = None
        if len(rows) * longest * pages.block_size <= _PADDING * sum(self._lengths):
            self._padded = torch.cat([torch.cat([t, t[:1].expand(longest - len(t))]) for t in self._tables])
            self._positions = torch.arange(longest * pages.block_size, device=pages.device)
            self._ends = torch.tensor(self._lengths, device=pages.device)[:, None]
            self._stale = (self._positions >= self._ends).flatten().nonzero().squeeze(1)
        self._masks: dict[tuple[int | None, torch.dtype], Tensor] = {}

    def attend(self, layer: int, query: Tensor, scale: float | None, window: int | None) -> Tensor:
        if self._padded is None:
            return self._one_by_one(layer, query, scale, window)
        k, v = self._pages.gather(layer, self._padded)
        # What lies behind the end of a sequence may be anything, even NaN, which no mask would stop.
        k.index_fill_(0, self._stale, 0.0)
        v.index_fill_(0, self._stale, 0.0)
        k, v = (states.view(len(self._lengths), -1, *states.shape[1:]) for states in (k, v))
        return attention.last(query, k, v, scale, self._mask(window, query.dtype))

    def _one_by_one(self, layer: int, query: Tensor, scale: float | None, window: int | None) -> Tensor:
        out = torch.empty_like(query, memory_format=torch.contiguous_format)
        for row, (length, table) in enumerate(zip(self._lengths, self._tables, strict=True)):
            k, v = self._pages.gather(layer, table)
            seen = slice(0 if window is None else max(0, length - window), length)
            out[row] = attention.last(query[row : row + 1], k[None, seen], v[None, seen], scale)[0]
        return out

    def _mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """[B, 1, 1, context] to add to the scores; the same in every layer with this window."""
        if (window, dtype) not in self._masks:
            hidden = self._positions >= self._ends
            if window is not None:
                hidden |= self._positions < self._ends - window
            mask = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, float("-inf"))
            self._masks[window, dtype] = mask[:, None, None]
        return self._masks[window, dtype]


def _blocks(row: Row, pages: KvPages) -> Tensor:
    """The blocks that hold the row's tokens, this step's included; a row may own more."""
    used = -(-(row.start + len(row.token_ids)) // pages.block_size)
    return torch.tensor(row.blocks[:used], device=pages.device)
