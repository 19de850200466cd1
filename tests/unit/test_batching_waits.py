"""How long anybody waits, with the cost model as the clock."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kv.blocks import BlockAllocator
from shared.policy.batching import BatchLimits, Style
from shared.policy.sequence import AGING_S
from shared.wire.costs import Costs
from tests.support.clocked import Clocked, Light


class Waits(Clocked):
    """Notes, for every prompt, how long the queue that it met would have taken, itself included."""

    def __init__(self, costs: Costs, limits: BatchLimits, blocks: BlockAllocator) -> None:
        super().__init__(costs, limits, blocks)
        self.met_s: dict[str, float] = {}

    def arrive(self, light: Light) -> None:
        super().arrive(light)
        self.met_s[light.name] = self.drain_s()


LENGTHS = st.one_of(st.integers(1, 200), st.integers(200, 2000), st.integers(2000, 16_000))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 1.2), LENGTHS), min_size=2, max_size=40),
    st.tuples(st.floats(0, 100), st.floats(0.05, 1), st.floats(0, 0.0004)),
)
def test_no_prompt_waits_longer_than_three_times_the_drain_time_of_the_queue_it_met(
    arrivals: list[tuple[float, int]], shape: tuple[float, float, float]
) -> None:
    """Until it starts; and until it is done, but for one step, which it may share with what came later. Gaps are in
    units of the prompt's own service time, so that the worker is about full, whatever comes when."""
    costs = Costs((shape[0], shape[1], shape[2] * shape[1]), (30.0, 0.0, 2.0))
    worker = Waits(costs, BatchLimits(prompt_blocks=60_000), BlockAllocator(80_000, 16))
    at, prompts = 0.0, []
    for number, (gap, tokens) in enumerate(arrivals):
        at += gap * costs.prefill_s(tokens)
        prompts.append(Light(f"p{number}", at, tokens))
    worker.run(prompts)
    for one in prompts:
        assert one.started_at is not None and one.prefilled_at is not None
        bound_s = 3 * worker.met_s[one.name] + 1e-9
        assert one.started_at - one.arrived_at <= bound_s
        assert one.prefilled_at - one.arrived_at <= bound_s + costs.prefill_s(worker.batcher.step_tokens)


@pytest.mark.parametrize(("first", "flood"), [(12_000, 400), (1000, 12_000)])
def test_neither_a_long_nor_a_short_prompt_is_starved_by_a_flood_of_the_other(first: int, flood: int) -> None:
    costs = Costs((20.0, 0.3, 0.0001), (30.0, 0.0, 2.0))
    worker = Waits(costs, BatchLimits(prompt_blocks=60_000), BlockAllocator(80_000, 16))
    gap_s = costs.prefill_s(flood) / 1.5
    prompts = [Light("first", 0.001, first), *(Light(f"f{n}", n * gap_s, flood) for n in range(60))]
    worker.run(prompts)
    assert prompts[0].prefilled_at is not None
    assert prompts[0].prefilled_at <= 2.5 * worker.met_s["first"]


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 0.3), st.integers(1, 1500), st.integers(1, 30), st.integers(0, 2)),
        min_size=1,
        max_size=25,
    ),
    st.integers(120, 400),
    st.sampled_from(Style),
)
def test_everything_ends_whatever_the_memory(
    requests: list[tuple[float, int, int, int]], blocks: int, style: Style
) -> None:
    """Requests that fit alone all finish, with all their tokens, and all blocks come back."""
    limits = BatchLimits(max_num_seqs=6, prompt_blocks=int(0.75 * blocks), style=style)
    worker = Clocked(Costs((10.0, 0.3, 0.0001), (20.0, 0.002, 1.0)), limits, BlockAllocator(blocks, 16))
    at, lights = 0.0, []
    for number, (gap, tokens, outputs, priority) in enumerate(requests):
        at += gap
        lights.append(Light(f"r{number}", at, tokens, outputs, priority))
    worker.run(lights)
    assert [len(one.token_times) for one in lights] == [outputs for _, _, outputs, _ in requests]
    assert worker.blocks.used_blocks == 0


def test_a_low_class_gets_its_turn_under_a_flood_of_a_higher_one() -> None:
    costs = Costs((10.0, 1.0, 0.0), (30.0, 0.0, 2.0))
    worker = Waits(costs, BatchLimits(prompt_blocks=750), BlockAllocator(1000, 16))
    low = Light("low", 0.5, 200, priority=1)
    worker.run([low, *(Light(f"h{n}", 0.1 * n, 120) for n in range(300))])
    assert low.prefilled_at is not None
    assert 5.0 < low.prefilled_at < 0.5 + 2 * AGING_S, "the queue grows by a fifth of a second in each"
