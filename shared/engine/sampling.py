"""Choosing tokens from logits: greedy, or temperature → top-k → top-p → Gumbel noise and the largest.

The largest of logits plus Gumbel noise is a sample of their softmax. The noise of a token depends on (seed, choice,
position, token id) alone, computed in integers, so a continuation elsewhere, or in another batch, draws the same token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from shared.engine.noise import noise_key
from shared.engine.port import Draw

_TOPMOST = 1.0 - 2.0**-24  # the largest float32 below 1


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id per row of logits [rows, vocabulary]."""
    logits = logits.float()
    for row, draw in enumerate(draws):
        if draw.banned:
            logits[row, list(draw.banned)] = float("-inf")
    chosen = logits.argmax(-1)
    for row, draw in enumerate(draws):
        if draw.temperature > 0 and draw.top_k != 1:
            chosen[row] = _sampled(logits[row], draw)
    result: list[int] = chosen.tolist()
    return result


def _sampled(logits: Tensor, draw: Draw) -> Tensor:
    scores = (logits - logits.max()) / draw.temperature
    ids = torch.arange(len(scores), device=scores.device)
    if draw.top_k > 0 or draw.top_p < 1:
        scores, ids = scores.sort(descending=True, stable=True)
        kept = min(draw.top_k, len(scores)) if draw.top_k > 0 else len(scores)
        if draw.top_p < 1:
            # The smallest set whose probability reaches top_p: a token stays while those before it do not.
            probability = scores[:kept].double().softmax(-1)
            before = probability.cumsum(-1) - probability
            kept = max(1, int((before < draw.top_p).sum()))
        scores, ids = scores[:kept], ids[:kept]
    return ids[(scores + gumbel(ids, noise_key(draw))).argmax()]


def gumbel(ids: Tensor, key: int) -> Tensor:
    """Standard Gumbel noise of token ids (int64) under a 64-bit key, float32."""
    bits = _mixed(_mixed(ids ^ (key & 0xFFFFFFFF)) ^ (key >> 32))
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp(max=_TOPMOST)
    return -(-torch.log1p(-uniform)).log()


def _mixed(values: Tensor) -> Tensor:
    """The finalizer of MurmurHash3 on 32-bit values held in int64: products wrap, their low 32 bits are right."""
    values = values ^ (values >> 16)
    values = values * 0x85EBCA6B & 0xFFFFFFFF
    values = values ^ (values >> 13)
    values = values * 0xC2B2AE35 & 0xFFFFFFFF
    return values ^ (values >> 16)
