"""The batcher and its blocks under any order of events."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from shared.kv.blocks import BlockAllocator, blocks_for
from shared.policy.batching import Batch, Batcher, BatchLimits
from tests.support.batches import COSTS
from tests.support.clocked import Light


class AnyOrder(RuleBasedStateMachine):
    """A batcher and its blocks under arrivals, steps, ends, hand-offs in and out, and cancels at any moment."""

    @initialize(blocks=st.integers(8, 40), seqs=st.integers(1, 6), tokens=st.integers(1, 200))
    def start(self, blocks: int, seqs: int, tokens: int) -> None:
        self.blocks = BlockAllocator(blocks, 16)
        self.seats = seqs
        self.limits = BatchLimits(max_num_seqs=seqs, max_num_batched_tokens=tokens, prompt_blocks=int(0.75 * blocks))
        self.target: Batcher[Light] = Batcher(self.blocks, self.limits, COSTS)
        self.batch: Batch[Light] | None = None
        self.lights: dict[str, Light] = {}
        self.away: list[Light] = []  # prefilled, and held for a hand-off
        self.count = 0

    def new(self, tokens: int, at: float, priority: int = 0) -> Light:
        self.count += 1
        return Light(f"r{self.count}", at, tokens, 99, priority)

    @rule(tokens=st.integers(1, 120), at=st.integers(0, 20), priority=st.integers(0, 2))
    def arrives(self, tokens: int, at: int, priority: int) -> None:
        one = self.new(tokens, float(at), priority)
        self.lights[one.name] = one
        self.target.enqueue(one)

    @rule(tokens=st.integers(1, 120), at=st.integers(0, 20))
    def is_handed_in(self, tokens: int, at: int) -> None:
        one = self.new(tokens, float(at))
        if not self.target.short_of_blocks and self.blocks.reach(one.key, tokens + 1):
            one.computed, one.length = tokens, tokens + 1
            self.lights[one.name] = one
            self.target.admit(one)

    @precondition(lambda self: self.batch is None)
    @rule()
    def starts_a_step(self) -> None:
        self.batch = self.target.next_batch()
        if self.batch is None:
            self.nothing_can_run()
        else:
            self.the_step_is_sound(self.batch)

    def nothing_can_run(self) -> None:
        assert not any(w.computed for w in self.target.waiting), "a begun prompt has all it needs"
        for one in self.target.running[: self.seats]:
            assert one.computed % 16 == 0 and self.blocks.free_blocks == 0, "a decode waits for nothing but a block"
        if self.target.waiting and not self.target.running:
            used, need = self.blocks.used_blocks, blocks_for(self.target.waiting[0].length, 16)
            assert used and used + need > self.limits.prompt_blocks, "the oldest prompt has seat and memory"

    def the_step_is_sound(self, batch: Batch[Light]) -> None:
        assert len(batch.decodes) <= self.seats
        assert batch.decodes == tuple(sorted(batch.decodes, key=lambda w: w.rank))
        for piece in batch.pieces:
            assert piece.sequence.computed < piece.end <= piece.sequence.length
            assert len(self.blocks.owned(piece.sequence.key)) == blocks_for(piece.sequence.length, 16)
        for one in batch.decodes:
            assert len(self.blocks.owned(one.key)) >= blocks_for(one.length, 16)
        tokens = sum(piece.end - piece.sequence.computed for piece in batch.pieces)
        assert tokens <= self.limits.max_num_batched_tokens

    @precondition(lambda self: self.batch is not None)
    @rule(ends=st.sets(st.integers(0, 9)), leaves=st.sets(st.integers(0, 9)))
    def ends_a_step(self, ends: set[int], leaves: set[int]) -> None:
        assert self.batch is not None
        batch, self.batch = self.batch, None
        for place, piece in enumerate(batch.pieces):
            one = piece.sequence
            one.computed = piece.end
            if one.name not in self.lights:
                self.blocks.release(one.key)
            elif one.computed < one.length:
                self.target.enqueue(one)
            else:
                one.length += 1
                if place in leaves:
                    self.away.append(one)
                else:
                    self.target.admit(one)
        for place, one in enumerate(batch.decodes):
            one.computed, one.length = one.computed + 1, one.length + 1
            if place in ends or one.length > 16 * self.blocks.total or one.name not in self.lights:
                self.drop(one)

    @precondition(lambda self: bool(self.away))
    @rule(here=st.booleans())
    def a_hand_off_ends(self, here: bool) -> None:
        one = self.away.pop(0)
        if here:
            self.target.admit(one)
        else:
            self.drop(one)

    @precondition(lambda self: bool(self.lights))
    @rule(place=st.integers(0, 99))
    def is_cancelled(self, place: int) -> None:
        one = list(self.lights.values())[place % len(self.lights)]
        computing = self.batch is not None and (
            one in self.batch.decodes or any(p.sequence is one for p in self.batch.pieces)
        )
        if computing:
            del self.lights[one.name]
            self.target.remove(one.key)
        else:
            self.away = [other for other in self.away if other is not one]
            self.drop(one)

    def drop(self, one: Light) -> None:
        self.lights.pop(one.name, None)
        self.target.remove(one.key)
        self.blocks.release(one.key)

    @invariant()
    def nobody_is_lost(self) -> None:
        if not hasattr(self, "target"):
            return
        self.target.check()
        self.blocks.check()
        computing = [p.sequence for p in self.batch.pieces] if self.batch else []
        placed = [w.name for w in [*self.target.waiting, *self.target.running, *computing, *self.away]]
        assert len(placed) == len(set(placed)) and set(self.lights) <= set(placed)
        holders = [*(w for w in self.target.waiting if w.computed), *self.target.running, *computing, *self.away]
        in_step = self.batch.decodes if self.batch else ()
        assert self.blocks.leaked([w.key for w in [*holders, *in_step]]) == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
