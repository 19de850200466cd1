"""How a prompt's KV is cut: every byte is in one slice, and a slice is ready when the piece that completes it is."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.kv.layout import SLICE_TOKENS, KvShape, cut, slice_at, slice_count, slices_done
from shared.wire.terms import PushMode

SHAPE = KvShape(layers=3, kv_heads=2, kv_bytes_per_token=64)
LENGTHS = st.one_of(st.integers(1, 3 * SLICE_TOKENS), st.sampled_from([SLICE_TOKENS, SLICE_TOKENS + 1]))


@given(LENGTHS, st.sampled_from(PushMode))
def test_slices_cover_every_layer_and_token_once(tokens: int, mode: PushMode) -> None:
    slices = cut(mode, tokens, SHAPE)
    assert len(slices) == slice_count(mode, tokens, SHAPE)
    assert [slice_at(mode, tokens, SHAPE, i) for i in range(len(slices))] == list(slices)
    covered = [(la, s.token_start, s.token_end) for s in slices for la in range(s.layer_start, s.layer_end)]
    for layer in range(SHAPE.layers):
        ranges = [(start, end) for at, start, end in covered if at == layer]
        assert ranges[0][0] == 0 and ranges[-1][1] == tokens
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
    assert sum(s.size_bytes(SHAPE) for s in slices) == 64 * 3 * tokens


def test_layers_of_one_range_follow_each_other() -> None:
    slices = cut(PushMode.LAYERWISE, SLICE_TOKENS + 10, SHAPE)
    assert [(s.layer_start, s.token_start) for s in slices[:4]] == [(0, 0), (1, 0), (2, 0), (0, SLICE_TOKENS)]
    assert {s.token_end - s.token_start for s in slices[3:]} == {10}
    assert len(cut(PushMode.SERIALIZED, 9000, SHAPE)) == 1


@given(LENGTHS, st.sampled_from(PushMode), st.data())
def test_whatever_the_pieces_every_slice_becomes_ready_once_and_not_too_early(
    tokens: int, mode: PushMode, data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, tokens), max_size=5)) | {tokens})
    seen: list[int] = []
    start = 0
    for end in cuts:
        for layer in range(SHAPE.layers):
            for index in slices_done(mode, tokens, SHAPE, layer=layer, start=start, end=end):
                piece = slice_at(mode, tokens, SHAPE, index)
                assert start < piece.token_end <= end and piece.layer_end == layer + 1
                seen.append(index)
        start = end
    assert sorted(seen) == list(range(slice_count(mode, tokens, SHAPE)))


@pytest.mark.parametrize("end", [SLICE_TOKENS - 1, SLICE_TOKENS])
def test_a_range_is_ready_with_its_last_token(end: int) -> None:
    done = slices_done(PushMode.LAYERWISE, 5000, SHAPE, layer=1, start=0, end=end)
    assert list(done) == ([1] if end == SLICE_TOKENS else [])
