"""Attention over paged KV, as the function that transformers' models call in every layer.

The models run without a cache and without masks: all rows of a step are packed into one sequence [1, tokens], and the
step that is handed through the model as a keyword argument knows which token belongs to whom.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention as sdpa
from transformers import AttentionInterface

NAME = "splitmesh"


class Attends(Protocol):
    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None,
        mask: Tensor | None, **others: Any,
    ) -> Tensor:  # fmt: skip
        """query [tokens, heads, head_dim], key and value [tokens, kv_heads, head_dim] → [tokens, heads, head_dim].

        `mask` and `others` are what the model passed on top: a real step has been probed not to need them.
        """
        ...


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, *,
    splitmesh: Attends, scaling: float | None = None, sliding_window: int | None = None, **others: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    out = splitmesh.attend(
        int(module.layer_idx),  # type: ignore[arg-type]
        *(states[0].transpose(0, 1) for states in (query, key, value)),
        scale=scaling,
        window=sliding_window,
        mask=attention_mask,
        **others,
    )
    return out.unsqueeze(0), None


# Registered under this name only, and no mask function beside it: then transformers makes no masks.
AttentionInterface.register(NAME, _attention)


def whole(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Causal attention of one sequence from its first token on; shapes as in `Attends.attend`."""
    if window is not None and window < len(query):
        return tail(query, key, value, scale, window)
    return _ungrouped(sdpa(*_grouped(query, key, value), is_causal=True, scale=scale))


def tail(query: Tensor, key: Tensor, value: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Causal attention of the last tokens of one sequence (`query`) over all of its tokens (`key`, `value`)."""
    queries = torch.arange(len(key) - len(query), len(key), device=key.device)[:, None]
    keys = torch.arange(len(key), device=key.device)
    seen = keys <= queries if window is None else (keys <= queries) & (keys > queries - window)
    return _ungrouped(sdpa(*_grouped(query, key, value), attn_mask=seen, scale=scale))


def last(query: Tensor, key: Tensor, value: Tensor, scale: float | None, mask: Tensor | None = None) -> Tensor:
    """One new token per sequence: query [B, heads, d] over key and value [B, context, kv_heads, d].

    The query heads that share a KV head become query rows: on a CPU 3 to 4 times as fast as repeating K and V.
    """
    batch, heads, head_dim = query.shape
    kv_heads = key.shape[2]
    packed = query.reshape(batch, kv_heads, heads // kv_heads, head_dim)
    out = sdpa(packed, key.transpose(1, 2), value.transpose(1, 2), attn_mask=mask, scale=scale)
    return out.reshape(batch, heads, head_dim)


def _grouped(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[kv_heads, group, tokens, d] for all three, K and V repeated over the group without a copy."""
    kv_heads, group = key.shape[1], query.shape[1] // key.shape[1]
    q = query.transpose(0, 1).view(kv_heads, group, *query.shape[::2])
    k, v = (states.transpose(0, 1).unsqueeze(1).expand(-1, group, -1, -1) for states in (key, value))
    return q, k, v


def _ungrouped(out: Tensor) -> Tensor:
    return out.flatten(0, 1).transpose(0, 1)
