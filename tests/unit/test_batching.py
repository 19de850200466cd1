"""Machine level scheduling: order, budgets, memory, preemption."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policy.sequence import AGING_S, Sequence
from shared.policy.step_room import LEAST_PROMPT_SHARE, MIN_PIECE_TOKENS, knee_tokens
from shared.wire.costs import Costs
from tests.support.batches import COSTS, batcher, decodes, decoding, enqueue, light, pieces, step
from tests.support.samples import submitted

# ---- prompts --------------------------------------------------------------------------------------------------------


def test_prompts_go_first_come_first_served_up_to_the_token_budget() -> None:
    target = batcher()
    enqueue(target, light("late", 10, 3.0), light("first", 60, 1.0), light("second", 30, 2.0), light("third", 30, 2.5))
    assert pieces(step(target)) == {"first": 60, "second": 30}, (
        "third exceeds 100 tokens, and late does not overtake it"
    )


def test_the_knee_of_the_prefill_costs_caps_the_budget() -> None:
    assert knee_tokens(Costs((30.0, 1.0, 0.0), COSTS.decode_ms), 2048) == 600
    assert knee_tokens(Costs((1.0, 1.0, 0.0), COSTS.decode_ms), 2048) == 256, "there is always some parallelism"
    assert knee_tokens(Costs((300.0, 1.0, 0.0), COSTS.decode_ms), 2048) == 2048
    assert knee_tokens(Costs((0.0, 0.0, 0.0), COSTS.decode_ms), 2048) == 2048
    target = batcher(tokens=2048, costs=Costs((30.0, 1.0, 0.0), COSTS.decode_ms))
    enqueue(target, light("long", 2000))
    assert pieces(step(target)) == {"long": 600}


def test_a_long_prompt_alone_is_computed_in_pieces_of_the_budget() -> None:
    target = batcher()
    enqueue(target, light("long", 250))
    assert [pieces(step(target)) for _ in range(3)] == [{"long": 100}, {"long": 200}, {"long": 250}]
    assert decodes(step(target)) == ["long"]


def test_long_and_short_prompts_share_the_budget() -> None:
    target = batcher(seqs=99)
    enqueue(target, light("long", 250), light("longer", 300, 0.5), *(light(f"s{n}", 25, 1.0 + n) for n in range(4)))
    assert pieces(step(target)) == {"long": 50, "s0": 25, "s1": 25}


def test_what_the_short_leave_the_long_takes() -> None:
    target = batcher()
    enqueue(target, light("long", 250), light("short", 20, 1.0))
    assert pieces(step(target)) == {"long": 80, "short": 20}


def test_short_ones_are_cut_beside_a_long_one_so_that_they_get_their_half() -> None:
    target = batcher()
    enqueue(target, light("long", 500), light("short", 90, 1.0), light("next", 30, 2.0))
    assert pieces(step(target)) == {"long": 50, "short": 50}
    assert pieces(step(target)) == {"long": 100, "short": 90, "next": 10}
    assert pieces(step(target)) == {"long": 176, "next": 30}, "of 96 tokens, beside a decode"


def test_pieces_late_in_a_long_prompt_are_shorter_because_they_take_longer() -> None:
    costs = Costs((100.0, 1.0, 0.001), COSTS.decode_ms)
    target = batcher(tokens=1000, costs=costs)
    enqueue(target, light("long", 10_000))
    ends = [0, *(pieces(step(target))["long"] for _ in range(5))]
    times = [costs.step_s(b - a, b * b - a * a, 0, 0) for a, b in pairwise(ends)]
    assert ends[1] == 1000 and ends[5] < 3000
    assert all(t == pytest.approx(costs.prefill_s(1000), rel=0.02) for t in times)


def test_a_lower_class_waits_ten_seconds_longer_and_no_more() -> None:
    assert AGING_S == 10.0
    target = batcher(seqs=1)
    batch_job, early, late = light("batch", 60, 0.0, priority=1), light("early", 60, 9.0), light("late", 60, 11.0)
    enqueue(target, batch_job, early, late)
    assert [w.name for w in target.waiting] == ["early", "batch", "late"]


def test_the_live_sequence_has_a_rank_by_arrival_and_priority() -> None:
    one = Sequence(request=submitted(tokens=7, priority=-2), arrived_at=100.0, token_worker=None)
    assert (one.rank, one.length, one.computed) == (80.0, 7, 0)


# ---- beside decodes -------------------------------------------------------------------------------------------------


def test_decodes_go_first_and_prompts_get_what_the_target_leaves() -> None:
    target = batcher(tokens=2048, step_target_s=0.5)
    decoding(target, 5)
    enqueue(target, light("long", 5000))
    batch = step(target)
    assert decodes(batch) == [f"d{n}" for n in range(5)]
    assert pieces(batch) == {"long": 256}, "the knee"
    target.costs = Costs((10.0, 10.0, 0.0), COSTS.decode_ms)
    assert pieces(step(target)) == {"long": 256 + (500 - 30 - 10) // 10 + 18}, "46 tokens fit, 64 are the least"
    target.costs = Costs((10.0, 4.0, 0.0), COSTS.decode_ms)
    assert pieces(step(target)) == {"long": 256 + 64 + (500 - 30 - 10) // 4}


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 20),
    st.lists(st.integers(1, 3000), min_size=1, max_size=8),
    st.floats(0.01, 2.0),
    st.tuples(st.floats(0, 50), st.floats(0.01, 2), st.floats(0, 0.001)),
)
def test_a_step_beside_decodes_keeps_to_its_target(
    running: int, prompts: list[int], target_s: float, prefill_ms: tuple[float, float, float]
) -> None:
    """Unless decodes take more of it than they may, or the least piece does; then prompts get no more than that."""
    costs = Costs(prefill_ms, (20.0, 0.002, 1.0))
    target = batcher(10_000, seqs=99, tokens=2048, costs=costs, step_target_s=target_s)
    decoding(target, running)
    enqueue(target, *(light(f"p{n}", tokens, float(n)) for n, tokens in enumerate(prompts)))
    for _ in range(4):
        before = {w.name: w.computed for w in target.waiting}
        if not before:
            break
        context, batch = sum(w.length for w in target.running), len(target.running)
        ends = pieces(step(target))
        tokens = sum(ends[name] - before[name] for name in ends)
        squares = sum(ends[name] ** 2 - before[name] ** 2 for name in ends)
        assert tokens >= min(MIN_PIECE_TOKENS, prompts[0]), "what does not fit whole waits for the next step"
        took_s = costs.step_s(tokens, squares, context, batch)
        limit_s = max(target_s, costs.decode_s(context, batch) / (1 - LEAST_PROMPT_SHARE))
        assert took_s <= limit_s * 1.001 or tokens <= MIN_PIECE_TOKENS + 1
        prompts = [w.length - w.computed for w in target.waiting]


def test_a_newcomer_takes_no_memory_that_an_older_prompt_waits_for() -> None:
    target = batcher(blocks=8)
    assert target.yields_to(5.0)
    enqueue(target, light("a", 80), light("b", 30, 1.0))
    step(target)
    step(target)
    assert not target.yields_to(2.0) and target.yields_to(0.5), "b waits for memory since before 2.0"
    target.remove(light("b", 0).key)
    assert target.yields_to(2.0)


def test_the_default_target_is_four_lone_decode_steps() -> None:
    assert batcher().step_target_s == pytest.approx(4 * 0.032)
    assert batcher(step_target_s=0.3).step_target_s == 0.3


def test_a_fixed_chunk_takes_the_place_of_the_target() -> None:
    target = batcher(tokens=2048, chunk_tokens=300, step_target_s=0.001)
    decoding(target, 3)
    enqueue(target, light("long", 5000))
    assert pieces(step(target)) == {"long": 300}


# ---- memory and seats -----------------------------------------------------------------------------------------------


def test_a_prompt_takes_all_its_blocks_with_its_first_piece() -> None:
    target = batcher(blocks=20, share=1.0)
    enqueue(target, light("long", 200))
    step(target)
    assert target._blocks.used_blocks == 13


def test_prompts_leave_a_share_of_memory_to_decodes() -> None:
    target = batcher(blocks=8)
    enqueue(target, light("a", 80), light("b", 30, 1.0), light("c", 5, 2.0))
    batch = target.next_batch()
    assert batch is not None and pieces(batch) == {"a": 80}, "a and b would fill more than six of eight blocks"
    assert target.next_batch() is None, "and c does not overtake b"


def test_a_lone_prompt_may_take_all_memory() -> None:
    target = batcher(blocks=8, tokens=200)
    enqueue(target, light("a", 128))
    assert pieces(step(target)) == {"a": 128}


def test_no_more_sequences_than_seats() -> None:
    target = batcher(seqs=2)
    enqueue(target, *(light(name, 10) for name in "abc"))
    assert list(pieces(step(target))) == ["a", "b"]
    batch = step(target)
    assert decodes(batch) == ["a", "b"] and not batch.pieces, "c waits for a seat"


def test_a_begun_prompt_gets_on_though_one_before_it_waits_for_its_memory() -> None:
    target = batcher(blocks=20, share=1.0, tokens=64)
    enqueue(target, light("begun", 200, 5.0))
    step(target)
    enqueue(target, light("big", 300, 1.0), *(light(f"x{n}", 300, 2.0) for n in range(70)))
    assert pieces(step(target)) == {"begun": 128}


def test_the_youngest_is_preempted_and_recomputed_when_memory_ends() -> None:
    target = batcher(blocks=4, share=1.0)
    old, young = light("old", 31, 1.0), light("young", 31, 2.0)
    enqueue(target, old, young)
    for _ in range(3):
        step(target)
    assert young.computed == 0 and target.waiting == [young] and target.running == [old]
    assert young.length > 31, "what was sampled is kept, only its KV is computed again"
    assert target.short_of_blocks
    target.remove(young.key)
    assert not target.short_of_blocks


def test_a_decode_waits_rather_than_be_preempted_for_itself() -> None:
    """Memory is held by a hand-off: the youngest decode, alone or not, keeps its KV until an older one needs it."""
    target = batcher(blocks=4, share=1.0)
    one = light("one", 31)
    enqueue(target, one)
    step(target)
    assert target._blocks.reach(light("handed", 0).key, 32)
    step(target)
    assert target.next_batch() is None and target.short_of_blocks
    assert one.computed == 32 and target.running == [one]
    enqueue(target, light("new", 1))
    assert target.next_batch() is None, "no block is left when a decode waits for one"
    target._blocks.release(light("handed", 0).key)
    batch = step(target)
    assert decodes(batch) == ["one"] and pieces(batch) == {"new": 1}
    assert not target.short_of_blocks


def test_the_oldest_of_several_always_gets_on() -> None:
    target = batcher(blocks=6, share=1.0, tokens=200)
    enqueue(target, *(light(name, 30, float(n)) for n, name in enumerate("abc")))
    for expected in range(2, 50):
        step(target)
        assert target.running[0].name == "a" and target.running[0].computed == 29 + expected - 1
