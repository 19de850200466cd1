"""The unit of KV transfer: a slice of (layers, token range, head range), and how a prompt is cut into slices.

Both sides of a hand-off cut for themselves from what they know of the model, so no size is ever taken from the wire.
The grid of token ranges does not depend on the pieces in which a prompt is computed, which only its worker knows.
A slice is one message; its bytes are, layer after layer, K then V of its tokens ([2, tokens, heads, head_dim]).
"""

from dataclasses import dataclass

from shared.wire.terms import PushMode

SLICE_TOKENS = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class KvShape:
    """kv_bytes_per_token: bytes of K and V of one token in one layer, all heads."""

    layers: int
    kv_heads: int
    kv_bytes_per_token: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KvSlice:
    """Half-open ranges [start, end)."""

    layer_start: int
    layer_end: int
    token_start: int
    token_end: int
    head_start: int
    head_end: int

    def size_bytes(self, shape: KvShape) -> int:
        heads = self.head_end - self.head_start
        per_token = shape.kv_bytes_per_token * heads // shape.kv_heads
        tokens = self.token_end - self.token_start
        return per_token * tokens * (self.layer_end - self.layer_start)


def slice_count(mode: PushMode, tokens: int, shape: KvShape) -> int:
    return 1 if mode is PushMode.SERIALIZED else _ranges(tokens) * shape.layers


def slice_at(mode: PushMode, tokens: int, shape: KvShape, index: int) -> KvSlice:
    """Slice number `index` of a prompt of `tokens`: everything (SERIALIZED), or one layer of a token range of the fixed
    grid (LAYERWISE); numbered range by range, layer by layer, which is the order in which they are computed."""
    number, layer = divmod(index, shape.layers)
    whole = mode is PushMode.SERIALIZED
    return KvSlice(
        layer_start=0 if whole else layer,
        layer_end=shape.layers if whole else layer + 1,
        token_start=0 if whole else number * SLICE_TOKENS,
        token_end=tokens if whole else min(tokens, (number + 1) * SLICE_TOKENS),
        head_start=0,
        head_end=shape.kv_heads,
    )


def cut(mode: PushMode, tokens: int, shape: KvShape) -> tuple[KvSlice, ...]:
    """All slices of a prompt of `tokens`."""
    return tuple(slice_at(mode, tokens, shape, index) for index in range(slice_count(mode, tokens, shape)))


def slices_done(mode: PushMode, tokens: int, shape: KvShape, *, layer: int, start: int, end: int) -> range:
    """Numbers of the slices that are complete once `layer` has computed positions [start, end), and were not before."""
    if mode is PushMode.SERIALIZED:
        return range(int(layer == shape.layers - 1 and end == tokens))
    first, last = start // SLICE_TOKENS, _ranges(tokens) if end == tokens else end // SLICE_TOKENS
    return range(first * shape.layers + layer, last * shape.layers, shape.layers)


def _ranges(tokens: int) -> int:
    return -(-tokens // SLICE_TOKENS)
