"""The unit of KV transfer: a slice of (layers, token range, head range), and how a prompt is cut into slices.

Both sides of a hand-off cut for themselves from what they know of the model, so no size is ever taken from the wire.
A slice is one message; its bytes are, layer after layer, K then V of its tokens ([2, tokens, heads, head_dim]).
"""

from dataclasses import dataclass

from shared.wire.terms import PushMode


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


def cut(mode: PushMode, tokens: int, shape: KvShape) -> tuple[KvSlice, ...]:
    """The slices of a prompt of `tokens`: one a layer (LAYERWISE), or a single one (SERIALIZED)."""
    step = 1 if mode is PushMode.LAYERWISE else shape.layers
    return tuple(
        KvSlice(
            layer_start=layer,
            layer_end=layer + step,
            token_start=0,
            token_end=tokens,
            head_start=0,
            head_end=shape.kv_heads,
        )
        for layer in range(0, shape.layers, step)
    )
