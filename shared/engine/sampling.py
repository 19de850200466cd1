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
_HEAD = 1024  # the largest logits, among which top-p nearly always ends: finding these costs a seventh of sorting all


def choose(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id per row of logits [rows, vocabulary]; banned ones are overwritten."""
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
    key = noise_key(draw)
    if draw.top_k <= 0 and draw.top_p >= 1:
        return (scores + gumbel(torch.arange(len(scores), dtype=torch.int32, device=scores.device), key)).argmax()
    kept = (scores >= _least(scores, draw)).nonzero().squeeze(1)
    return kept[(scores[kept] + gumbel(kept.int(), key)).argmax()]


def _least(scores: Tensor, draw: Draw) -> Tensor:
    """The least score that top-k and then top-p leave. Tokens that tie with it stay, so their order does not matter."""
    count = min(draw.top_k, len(scores)) if draw.top_k > 0 else len(scores)
    if draw.top_p >= 1:
        return scores.topk(count).values[-1]
    considered = scores if count == len(scores) else scores.topk(count).values
    total = considered.double().logsumexp(-1)
    head = scores.topk(min(_HEAD, count)).values
    if (head.double() - total).exp().sum() < draw.top_p:
        head = scores.topk(count).values
    # The smallest set whose probability reaches top_p: a token stays while those before it do not.
    probability = (head.double() - total).exp()
    before = probability.cumsum(-1) - probability
    return head[max(1, int((before < draw.top_p).sum())) - 1]


def gumbel(ids: Tensor, key: int) -> Tensor:
    """Standard Gumbel noise of token ids (int32) under a 64-bit key, float32."""
    bits = _mixed(_mixed(ids ^ _signed(key & 0xFFFFFFFF)) ^ _signed(key >> 32))
    # Large noise comes from small numbers, which float32 holds exactly; hence 31 bits without a sign.
    uniform = (bits & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).clamp_(max=_TOPMOST)
    return uniform.neg_().log1p_().neg_().log_().neg_()


def _mixed(values: Tensor) -> Tensor:
    """The finalizer of MurmurHash3, a bijection of 32 bits; products wrap. Half the time of the same in int64."""
    values = values ^ (values >> 16 & 0xFFFF)
    values = values * _signed(0x85EBCA6B)
    values = values ^ (values >> 13 & 0x7FFFF)
    values = values * _signed(0xC2B2AE35)
    return values ^ (values >> 16 & 0xFFFF)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >= 1 << 31 else word
