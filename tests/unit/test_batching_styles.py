"""What a decode step costs, runs of them that a simulator takes at once, and the papers' colocated baseline."""

import timeit

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kv.blocks import blocks_for
from shared.policy.batching import Batch, Style
from tests.support.batches import batcher, decodes, decoding, enqueue, light, pieces, step


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 30), st.integers(0, 3), st.sampled_from(Style)
)
def test_decode_steps_tells_how_long_a_batch_stays_the_same(
    lengths: list[int], spare: int, blocked: int, style: Style
) -> None:
    blocks = sum(blocks_for(n + 1, 16) for n in lengths) + spare
    target = batcher(blocks, seqs=len(lengths) + 5, tokens=1000, share=1.0, style=style)
    enqueue(target, *(light(f"d{n}", tokens, float(n)) for n, tokens in enumerate(lengths)))
    step(target)
    enqueue(target, *(light(f"p{n}", 16 * blocks, 100.0 + n) for n in range(blocked)))
    batch = target.next_batch()
    if batch is None or batch.pieces:
        return
    steps = target.decode_steps(batch)
    assert steps >= 1
    for _ in range(steps):
        assert batch.decodes == tuple(target.running) and not batch.pieces
        for one in batch.decodes:
            one.computed += 1
            one.length += 1
        later = target.next_batch()
        if later is None:
            break
        batch = later if later.decodes == batch.decodes and not later.pieces else Batch((), ())
    else:
        assert batch.decodes == () or target.decode_steps(batch) > 0
    assert len(batch.decodes) < len(lengths) or target.decode_steps(batch) <= 16, "the bound is tight to a block each"


def test_memory_of_many_steps_can_be_taken_at_once() -> None:
    target = batcher(blocks=20, share=1.0)
    decoding(target, 2, tokens=16)
    batch = target.next_batch()
    assert batch is not None
    steps = target.decode_steps(batch)
    used = target._blocks.used_blocks
    target.grow(batch, steps)
    assert (steps, used, target._blocks.used_blocks) == (16 * 9, 4, 20)
    for one in batch.decodes:
        one.computed += steps
        one.length += steps
    again = target.next_batch()
    assert again is not None and decodes(again) == ["d0"], "now the younger one had to go"


def test_prompts_first_computes_whole_prompts_and_lets_decodes_fill_up() -> None:
    target = batcher(seqs=9, style=Style.PROMPTS_FIRST)
    decoding(target, 3)
    enqueue(target, light("a", 60), light("b", 38, 1.0), light("c", 500, 2.0), light("d", 30, 3.0))
    batch = step(target)
    assert pieces(batch) == {"a": 60, "b": 38} and decodes(batch) == ["d0", "d1"], "one token each"
    batch = step(target)
    assert pieces(batch) == {"c": 500} and decodes(batch) == [], "the first may exceed the limit, alone"
    batch = step(target)
    assert pieces(batch) == {"d": 30} and len(decodes(batch)) == 6


def test_prompts_first_lets_decodes_go_alone_after_four_steps_without_them() -> None:
    target = batcher(seqs=99, style=Style.PROMPTS_FIRST)
    decoding(target, 2)
    enqueue(target, *(light(f"p{n}", 100, float(n)) for n in range(9)))
    kinds = []
    for _ in range(10):
        batch = target.next_batch()
        assert batch is not None
        kinds.append("p" if batch.pieces else "d")
        assert batch.pieces or target.decode_steps(batch) == 1, "a prompt's turn comes next"
        for piece in batch.pieces:
            target._blocks.release(piece.sequence.key)
        for one in batch.decodes:
            one.computed += 1
            one.length += 1
    assert "".join(kinds) == "ppppdppppd"


def test_a_decode_step_costs_microseconds() -> None:
    target = batcher(10_000, seqs=64, tokens=2048)
    decoding(target, 30)

    def one_step() -> None:
        batch = target.next_batch()
        assert batch is not None
        for one in batch.decodes:
            one.computed += 1
            one.length += 1

    best = min(timeit.repeat(one_step, number=200, repeat=10)) / 200
    assert best < 60e-6, "about 5, and room for a slow machine"
