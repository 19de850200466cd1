"""Machine level scheduling: order, budgets, memory, preemption."""

from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kv.blocks import BlockAllocator
from shared.policy.batching import Batch, Batcher, Phase
from shared.policy.sequence import Sequence
from shared.wire.terms import Finish, Sampling
from tests.support.samples import submitted


def sequence(name: str, tokens: int, arrived_at: float = 0.0, max_tokens: int = 8) -> Sequence:
    return Sequence(request=submitted(name, tokens, max_tokens=max_tokens), arrived_at=arrived_at, token_worker=None)


def batcher(blocks: int = 100, *, seqs: int = 8, tokens: int = 100, share: float = 0.75) -> Batcher:
    return Batcher(
        BlockAllocator(blocks, 16), max_num_seqs=seqs, max_num_batched_tokens=tokens, prompt_blocks=int(blocks * share)
    )


def names(batch: Batch | None) -> list[str]:
    return [s.request.request_id for s in batch.sequences] if batch else []


def compute(target: Batcher, batch: Batch) -> None:
    """What a worker does after the step."""
    for one in batch.sequences:
        one.computed = len(one.tokens)
        one.tokens.append(65)
        if batch.phase is Phase.PREFILL:
            target.admit(one)
    target.check()


def test_prompts_go_first_come_first_served_up_to_the_token_budget() -> None:
    target = batcher()
    for name, tokens, at in (("late", 10, 3.0), ("first", 60, 1.0), ("second", 30, 2.0), ("third", 30, 2.5)):
        target.enqueue(sequence(name, tokens, at))
    batch = target.next_batch()
    assert batch is not None and batch.phase is Phase.PREFILL
    assert names(batch) == ["first", "second"], "third exceeds 100 tokens, and late does not overtake it"


def test_a_prompt_beyond_the_budget_runs_alone() -> None:
    target = batcher()
    target.enqueue(sequence("huge", 500))
    target.enqueue(sequence("small", 5, 1.0))
    assert names(target.next_batch()) == ["huge"]


def test_decodes_run_together_when_no_prompt_waits() -> None:
    target = batcher()
    for name in "abc":
        target.enqueue(sequence(name, 10))
    compute(target, target.next_batch())  # type: ignore[arg-type]
    batch = target.next_batch()
    assert batch is not None and batch.phase is Phase.DECODE and names(batch) == ["a", "b", "c"]


def test_prompts_leave_a_share_of_memory_to_decodes() -> None:
    target = batcher(blocks=8)
    target.enqueue(sequence("a", 80))
    target.enqueue(sequence("b", 30, 1.0))
    assert names(target.next_batch()) == ["a"], "a and b would fill more than six of eight blocks"
    assert target.next_batch() is None


def test_a_lone_prompt_may_take_all_memory() -> None:
    target = batcher(blocks=8)
    target.enqueue(sequence("a", 128))
    assert names(target.next_batch()) == ["a"]


def test_no_more_sequences_than_seats() -> None:
    target = batcher(seqs=2)
    for name in "abc":
        target.enqueue(sequence(name, 10))
    first = target.next_batch()
    assert names(first) == ["a", "b"]
    compute(target, first)  # type: ignore[arg-type]
    assert names(target.next_batch()) == ["a", "b"], "c waits for a seat"


def test_the_youngest_is_preempted_and_recomputed_when_memory_ends() -> None:
    target = batcher(blocks=4, share=1.0)
    old, young = sequence("old", 31, 1.0, max_tokens=99), sequence("young", 31, 2.0, max_tokens=99)
    target.enqueue(old)
    target.enqueue(young)
    for _ in range(3):
        compute(target, target.next_batch())  # type: ignore[arg-type]
    assert young.computed == 0 and target.waiting == [young] and target.running == [old]
    assert len(young.tokens) > 31, "what was sampled is kept, only its KV is computed again"


def test_finish_by_eos_stop_token_length_and_context() -> None:
    def end(token: int, eos: tuple[int, ...] = (9,), limit: int = 1000, **sampling: object) -> Finish | None:
        one = Sequence(
            request=submitted(tokens=4, sampling=Sampling(max_tokens=3, **sampling)),  # type: ignore[arg-type]
            arrived_at=0.0,
            token_worker=None,
        )
        one.tokens.append(token)
        return one.finish_after(token, eos, limit)

    assert end(1) is None
    assert end(9) is Finish.STOP
    assert end(9, ignore_eos=True) is None
    assert end(7, stop_token_ids=(7,)) is Finish.STOP
    assert end(1, limit=5) is Finish.LENGTH


def test_positions_and_limits_count_over_attempts() -> None:
    resumed = Sequence(
        request=submitted(tokens=10, emitted=3, max_tokens=5, attempt=2), arrived_at=0.0, token_worker=None
    )
    assert resumed.position == 3
    resumed.tokens.append(1)
    assert resumed.finish_after(1, (), 1000) is None and resumed.unsent() == (3, (1,))
    resumed.tokens.append(2)
    assert resumed.finish_after(2, (), 1000) is Finish.LENGTH


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 30)), min_size=1, max_size=12),
    st.integers(6, 30),
)
def test_everything_ends_whatever_the_memory(prompts: list[tuple[int, int]], blocks: int) -> None:
    """Requests that fit alone all finish, oldest first among equals, and all blocks come back."""
    target = batcher(blocks=blocks, seqs=4, tokens=64)
    allocator = target._blocks
    left = set()
    for number, (tokens, outputs) in enumerate(prompts):
        one = sequence(f"r{number}", tokens, float(number), outputs)
        target.enqueue(one)
        left.add(one.key)
    for _ in range(20_000):
        batch = target.next_batch()
        if batch is None:
            break
        for one in batch.sequences:
            one.computed = len(one.tokens)
            one.tokens.append(65)
            if one.finish_after(65, (), 10_000):
                target.remove(one.key)
                allocator.release(one.key)
                left.discard(one.key)
            elif batch.phase is Phase.PREFILL:
                target.admit(one)
        target.check()
        allocator.check()
    assert not left and allocator.used_blocks == 0


def test_prompts_do_not_starve_decodes() -> None:
    target = batcher(blocks=1000, tokens=10)
    target.enqueue(sequence("running", 10, max_tokens=99))
    compute(target, target.next_batch())  # type: ignore[arg-type]
    for number in range(20):
        target.enqueue(sequence(f"p{number}", 10, 1.0 + number))
    phases = []
    for _ in range(8):
        batch = target.next_batch()
        assert batch is not None
        phases.append(batch.phase)
        for one in batch.sequences:
            one.computed = len(one.tokens)
            one.tokens.append(65)
    assert phases.count(Phase.DECODE) >= 1, "a decode step comes after some prompt batches in a row"
