"""Machine level scheduling: what a worker computes next (Splitwise IV-B), with prompts in pieces.

    order     by rank, which is constant: arrival, later by AGING_S for each class of priority
    decodes   all of them, up to the seats; one token each
    prompts   one budget a step, in tokens and in time: up to the knee, beside decodes what the target time leaves

A prompt that fits into the budget is short and computed whole; of the longer ones the oldest gets a piece. While both
kinds wait, that piece has half of the budget and the short ones the rest, so neither waits longer than twice the time
that the work before it takes, however many come after it. What one kind leaves, the other gets.

KV memory: a prompt takes the blocks of all its tokens with its first piece, so nobody holds a part and waits for more.
A decode that finds no block preempts the youngest, which is recomputed later; the youngest itself waits. So the oldest
always gets on.
"""

from bisect import insort_left, insort_right
from itertools import pairwise
from typing import Generic

from shared.ids import Attempt
from shared.kv.blocks import blocks_for
from shared.policy.batch import Batch, BatchLimits, Blocks, Piece, Style, W, Work
from shared.policy.step_room import StepRoom, knee_tokens, longest_step_s
from shared.wire.costs import REFERENCE_TOKENS, Costs

__all__ = ["Batch", "BatchLimits", "Batcher", "Blocks", "Piece", "Style", "Work"]

LOOK_AHEAD = 64  # waiting prompts that are considered for a step
STEPS_WITHOUT_DECODES = 4  # PROMPTS_FIRST
LONE_STEPS = 4  # default of a step's target time: so many decode steps of a sequence alone


def _rank(work: Work) -> float:
    return work.rank


class Batcher(Generic[W]):
    """The sequences of one worker by rank: `waiting` with prompt tokens to compute, `running` in decode.

    Those whose pieces a step computes are in neither: afterwards they come back through `enqueue` or `admit`. One that
    is handed to another worker stays away. `costs` may be replaced at any time.
    """

    def __init__(self, blocks: Blocks, limits: BatchLimits, costs: Costs) -> None:
        self._blocks = blocks
        self._limits = limits
        self.costs = costs
        self.waiting: list[W] = []
        self.running: list[W] = []
        self._stalled: list[W] = []  # running, left out of the latest batch for want of a block
        self._preempted: set[Attempt] = set()  # waiting again
        self._memory_for: W | None = None  # the oldest prompt that the latest batch had no memory for
        self._without_decodes = 0  # PROMPTS_FIRST: steps in a row that left decodes out
        self._prompts_next = False  # PROMPTS_FIRST: the latest batch has decodes alone because it was their turn

    @property
    def step_target_s(self) -> float:
        """How long a step may take that has prompts and decodes."""
        return self._limits.step_target_s or LONE_STEPS * self.costs.decode_s(REFERENCE_TOKENS, 1)

    @property
    def step_tokens(self) -> int:
        """How many prompt tokens a step has at most."""
        return knee_tokens(self.costs, self._limits.max_num_batched_tokens)

    @property
    def short_of_blocks(self) -> bool:
        """Whether decodes of this worker wait for memory, which then is not given to newcomers."""
        return bool(self._stalled) or bool(self._preempted)

    def yields_to(self, rank: float) -> bool:
        """Whether no older prompt waits here for memory, so that a newcomer of this rank may take some."""
        return self._memory_for is None or self._memory_for not in self.waiting or rank <= self._memory_for.rank

    def enqueue(self, work: W) -> None:
        """A prompt, or what is left of it, joins the queue at its place by rank."""
        (insort_left if work.computed else insort_right)(self.waiting, work, key=_rank)

    def admit(self, work: W) -> None:
        """A sequence whose prompt is computed and lies in its blocks joins the decodes."""
        insort_right(self.running, work, key=_rank)

    def remove(self, key: Attempt) -> None:
        self._preempted.discard(key)
        for queue in (self._stalled, self.running, self.waiting):
            for index, work in enumerate(queue):
                if work.key == key:
                    del queue[index]
                    break

    def next_batch(self) -> Batch[W] | None:
        """What to compute now, with its blocks allocated; None when there is nothing that can run."""
        if self._limits.style is Style.PROMPTS_FIRST:
            return self._prompts_first()
        decodes = self._decodes(self._limits.max_num_seqs)
        pieces = self._pieces(decodes) if self.waiting else ()
        return Batch(pieces, decodes) if decodes or pieces else None

    # ---- decodes ----------------------------------------------------------------------------------------------------

    def _decodes(self, seats: int) -> tuple[W, ...]:
        """The oldest, each with a block for its next token."""
        size = self._blocks.block_size
        self._stalled = []
        for work in [w for w in self.running[:seats] if not w.computed % size]:  # its last block is full
            if work.computed and not self._grow(work):  # else it was preempted just now
                self._stalled.append(work)
        decodes = self.running[:seats]
        return tuple([w for w in decodes if w not in self._stalled] if self._stalled else decodes)

    def _grow(self, work: W) -> bool:
        while not self._blocks.reach(work.key, work.length):
            if self.running[-1] is work:
                return False
            victim = self.running.pop()
            self._blocks.release(victim.key)
            self._preempted.add(victim.key)
            victim.computed = 0
            self.enqueue(victim)
        return True

    def decode_steps(self, batch: Batch[W]) -> int:
        """For a batch without pieces: so many steps in a row, this one included, choose the very same if nothing
        arrives and nobody ends. Afterwards a block is missing, or a prompt's turn has come."""
        if batch.pieces or self._stalled or self._prompts_next:
            return 1
        size = self._blocks.block_size
        rounds, rest = divmod(self._blocks.free_blocks, len(batch.decodes))  # a round: a block for everybody
        return rounds * size + sorted([size - w.computed % size for w in batch.decodes])[rest]

    def grow(self, batch: Batch[W], steps: int) -> None:
        """Take the KV memory of so many steps of this batch at once; `decode_steps` says how many there is room for."""
        size = self._blocks.block_size
        for work in batch.decodes:
            if work.computed % size + steps > size:  # else its last block holds them all
                self._blocks.reach(work.key, work.length + steps - 1)

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _pieces(self, decodes: tuple[W, ...]) -> tuple[Piece[W], ...]:
        candidates = self._candidates()
        if not candidates:
            return ()
        room = self._room(decodes)
        fresh = room.tokens(0)
        longs: list[W] = []
        shorts: list[W] = []
        for work in candidates:
            fits = work.length - work.computed <= (room.tokens(work.computed) if work.computed else fresh)
            (shorts if fits else longs).append(work)
        if not longs:
            return self._open(_shorts(shorts, room, whole=True))
        long = longs[0]
        end = long.computed + room.tokens(long.computed, 0.5 if shorts else 1.0)
        room.take(long.computed, end)
        pieces = _shorts(shorts, room, whole=False)
        end = min(long.length, end + room.tokens(end))
        return self._open([*pieces, Piece(long, end)])

    def _room(self, decodes: tuple[W, ...]) -> StepRoom:
        tokens, costs = self.step_tokens, self.costs
        if not decodes:
            return StepRoom(costs, tokens, until_s=costs.prefill_s(tokens))
        if self._limits.chunk_tokens is not None:
            return StepRoom(costs, self._limits.chunk_tokens)
        context, batch = sum([w.length for w in decodes]), len(decodes)
        until_s = longest_step_s(costs.decode_s(context, batch), self.step_target_s)
        return StepRoom(costs, tokens, until_s=until_s, context=context, batch=batch)

    def _candidates(self) -> list[W]:
        """Prompts that may get a piece: those that hold their blocks, and new ones, oldest first, as far as seats and
        blocks reach: nobody overtakes into memory."""
        window = self.waiting[:LOOK_AHEAD]
        seats = self._limits.max_num_seqs - len(self.running) - sum([w.computed > 0 for w in window])
        used, open_ = self._blocks.used_blocks, True
        self._memory_for = None
        result = []
        for work in window:
            if not work.computed and open_:
                need = blocks_for(work.length, self._blocks.block_size)
                limit = self._limits.prompt_blocks if used else self._blocks.total
                used, seats = used + need, seats - 1
                open_ = seats >= 0 and used <= limit
                if used > limit:
                    self._memory_for = work
            if work.computed or open_:
                result.append(work)
        return result or [w for w in self.waiting[LOOK_AHEAD:] if w.computed]

    def _open(self, pieces: list[Piece[W]]) -> tuple[Piece[W], ...]:
        """Take them out of the queue, new ones with blocks for the whole prompt."""
        for piece in pieces:
            work = piece.sequence
            self.waiting.remove(work)
            self._preempted.discard(work.key)
            opened = work.computed > 0 or self._blocks.reach(work.key, work.length)
            assert opened, "a candidate without room"
        return tuple(pieces)

    # ---- the baseline -----------------------------------------------------------------------------------------------

    def _prompts_first(self) -> Batch[W] | None:
        limits = self._limits
        forced = bool(self.running) and self._without_decodes >= STEPS_WITHOUT_DECODES
        self._prompts_next = forced and bool(self.waiting)
        pieces = () if forced or not self.waiting else self._whole_prompts()
        left = limits.max_num_batched_tokens - sum([p.end for p in pieces])
        decodes = self._decodes(max(0, min(limits.max_num_seqs - len(pieces), left)) if pieces else limits.max_num_seqs)
        left_out = bool(pieces) and len(decodes) < len(self.running)
        self._without_decodes = self._without_decodes + 1 if left_out else 0
        return Batch(pieces, decodes) if decodes or pieces else None

    def _whole_prompts(self) -> tuple[Piece[W], ...]:
        pieces: list[Piece[W]] = []
        tokens = 0
        for work in self._candidates():
            tokens += work.length
            if pieces and tokens > self._limits.max_num_batched_tokens:
                break
            pieces.append(Piece(work, work.length))
        return self._open(pieces)

    def check(self) -> None:
        keys = [w.key for w in [*self.waiting, *self.running]]
        assert len(keys) == len(set(keys)), "a request is queued twice"
        assert all(w.length > w.computed for w in self.waiting), "a waiting sequence has nothing to compute"
        assert all(w.length == w.computed + 1 for w in self.running), "a decode must compute exactly one token"
        for queue in (self.waiting, self.running):
            assert all(a.rank <= b.rank for a, b in pairwise(queue)), "not in the order of rank"
        assert self._preempted <= {w.key for w in self.waiting}, "preempted and not waiting"


def _shorts(works: list[W], room: StepRoom, *, whole: bool) -> list[Piece[W]]:
    """Prompts as far as there is room. Only beside a long one is the last of them cut, so that they get their half;
    else a part of a prompt would delay the others of this step, and gain nothing yet."""
    pieces: list[Piece[W]] = []
    for work in works:
        end = min(work.length, work.computed + room.tokens(work.computed))
        if end == work.computed or (whole and end < work.length):
            break
        room.take(work.computed, end)
        pieces.append(Piece(work, end))
    return pieces
