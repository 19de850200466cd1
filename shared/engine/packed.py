"""One step over paged KV: where the rows lie in the packed sequence, and how each attends.

Per layer: the new K and V of all rows go into their pages, `on_layer` is told, and only then attention is computed, so
that a push of layer i overlaps with the rest of layer i and all that follow.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shared.engine.attention_torch import TorchAttention
from shared.engine.native.kernels import AttentionStep, Kernels
from shared.engine.pages import KvPages, slots_of
from shared.engine.port import OnLayer, Row


class PackedStep:
    """`input_ids`, `positions` and `slots` (where each token's KV goes) [tokens]; `drawn` [rows that want a token], the
    index of each one's last token."""

    def __init__(self, rows: Sequence[Row], pages: KvPages, on_layer: OnLayer | None) -> None:
        self.pages, self._on_layer = pages, on_layer
        size, device = pages.block_size, pages.device
        counts = [len(row.token_ids) for row in rows]
        first_tokens = np.cumsum([0, *counts]).tolist()
        ids = [token for row in rows for token in row.token_ids]
        positions = np.concatenate([np.arange(row.start, row.start + n) for row, n in zip(rows, counts, strict=True)])
        slots = [slots_of(row.blocks, row.start, row.start + n, size) for row, n in zip(rows, counts, strict=True)]
        last = [first_tokens[i + 1] - 1 for i, row in enumerate(rows) if row.draw is not None]
        self.input_ids = torch.tensor(ids, device=device)
        self.positions = torch.from_numpy(positions).to(device)
        self.slots = torch.from_numpy(np.concatenate(slots)).to(device)
        self.drawn = torch.tensor(last, dtype=torch.long, device=device)
        self._attention: NativeAttention | TorchAttention = (
            NativeAttention(rows, first_tokens, pages, pages.kernels)
            if pages.kernels
            else TorchAttention(rows, first_tokens, pages)
        )

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None,
        **ignored: Any,
    ) -> Tensor:  # fmt: skip
        self.pages.write(layer, self.slots, key, value)
        self.written(layer)
        return self._attention.attend(layer, query, key, value, scale=scale, window=window)

    def attend_written(self, layer: int, query: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """The same for a model that writes K and V itself, with our kernels."""
        self.written(layer)
        assert isinstance(self._attention, NativeAttention)
        return self._attention.over_pages(layer, query, scale=scale, window=window)

    def written(self, layer: int) -> None:
        if self._on_layer is not None:
            self._on_layer(layer)


class NativeAttention:
    """With our kernels, which read all that they need from the pages."""

    def __init__(self, rows: Sequence[Row], first_tokens: Sequence[int], pages: KvPages, kernels: Kernels) -> None:
        self._rows, self._first_tokens, self._pages, self._kernels = rows, first_tokens, pages, kernels
        self._step: AttentionStep | None = None

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None
    ) -> Tensor:
        return self.over_pages(layer, query.contiguous(), scale=scale, window=window)

    def over_pages(self, layer: int, query: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        """query [tokens, heads, head_dim]; the heads of a token lie together."""
        self._step = self._step or self._prepared(query.shape[1])
        keys, values = self._pages.of_layer(layer)
        scale = query.shape[2] ** -0.5 if scale is None else scale
        return self._kernels.attention(self._step, query, keys, values, scale=scale, window=window)

    def _prepared(self, heads: int) -> AttentionStep:
        size, rows = self._pages.block_size, self._rows
        return AttentionStep(
            first_tokens=self._first_tokens,
            starts=[row.start for row in rows],
            tables=[row.blocks[: -(-(row.start + len(row.token_ids)) // size)] for row in rows],
            heads=heads,
            kv_heads=self._pages.kv_heads,
            head_dim=self._pages.head_dim,
            block_size=size,
            dtype=self._kernels.dtype,
        )
