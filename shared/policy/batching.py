"""Machine level scheduling: what a worker computes next (Splitwise IV-B).

Prompts first, FCFS, several together up to a token budget (throughput falls beyond it); else, and also after some
prompt batches in a row, all decodes up to KV memory. A decode that finds no block preempts the youngest, which is
recomputed later: the oldest always gets on.
"""

from dataclasses import dataclass
from enum import Enum

from shared.ids import Attempt
from shared.kv.blocks import BlockAllocator
from shared.policy.sequence import Sequence

PREFILLS_IN_A_ROW = 4


class Phase(Enum):
    PREFILL = "prefill"
    DECODE = "decode"


@dataclass(frozen=True, slots=True)
class Batch:
    phase: Phase
    sequences: tuple[Sequence, ...]


class Batcher:
    """Holds the sequences of one worker: `waiting` for prefill (by arrival), `running` in decode.

    A prefilled sequence that is handed to another worker leaves through `remove` and is not counted here meanwhile.
    `prompt_blocks`: a prompt starts only while so many blocks at most are in use after it. The rest serves grants and
    growing decodes, so a worker full of prompts can always take over a decode, and a preempted sequence does not come
    back only to be preempted again.
    """

    def __init__(
        self, blocks: BlockAllocator, *, max_num_seqs: int, max_num_batched_tokens: int, prompt_blocks: int
    ) -> None:
        self._blocks = blocks
        self._max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max_num_batched_tokens
        self._prompt_blocks = prompt_blocks
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._prefills = 0  # prompt batches since the last decode step

    def enqueue(self, sequence: Sequence) -> None:
        """A prompt joins the queue at its place by arrival."""
        self.waiting.append(sequence)
        self.waiting.sort(key=lambda s: s.arrived_at)

    def admit(self, sequence: Sequence) -> None:
        """A sequence whose prompt is computed and lies in its blocks joins the decodes."""
        self.running.append(sequence)
        self.running.sort(key=lambda s: s.arrived_at)

    def remove(self, key: Attempt) -> None:
        self.waiting = [s for s in self.waiting if s.key != key]
        self.running = [s for s in self.running if s.key != key]

    def next_batch(self) -> Batch | None:
        """What to compute now, with its blocks allocated; None when there is nothing that can run."""
        decodes_first = bool(self.running) and self._prefills >= PREFILLS_IN_A_ROW
        for phase in (Phase.DECODE, Phase.PREFILL) if decodes_first else (Phase.PREFILL, Phase.DECODE):
            chosen = self._prompts() if phase is Phase.PREFILL else self._decodes()
            if chosen:
                self._prefills = self._prefills + 1 if phase is Phase.PREFILL else 0
                return Batch(phase, tuple(chosen))
        return None

    def _prompts(self) -> list[Sequence]:
        chosen: list[Sequence] = []
        tokens = 0
        for sequence in self.waiting:
            tokens += sequence.pending_tokens
            seats = self._max_num_seqs - len(self.running) - len(chosen)
            if seats <= 0 or (chosen and tokens > self._max_num_batched_tokens):
                break
            if not self._make_room(sequence):
                break
            chosen.append(sequence)
        self.waiting = self.waiting[len(chosen) :]
        return chosen

    def _make_room(self, sequence: Sequence) -> bool:
        """Blocks for the prompt, within the prompts' share of memory; a lone prompt may take what there is."""
        before = self._blocks.used_blocks
        if not self._blocks.reach(sequence.key, len(sequence.tokens)):
            return False
        if before and self._blocks.used_blocks > self._prompt_blocks:
            self._blocks.release(sequence.key)
            return False
        return True

    def _decodes(self) -> list[Sequence]:
        chosen: list[Sequence] = []
        for sequence in list(self.running):
            if len(chosen) == self._max_num_seqs:
                break
            if sequence not in self.running:  # preempted for an older one in this very round
                break
            while not self._blocks.reach(sequence.key, len(sequence.tokens)):
                if self._preempt_youngest() is sequence:
                    return chosen
            chosen.append(sequence)
        return chosen

    def _preempt_youngest(self) -> Sequence:
        victim = self.running.pop()
        self._blocks.release(victim.key)
        victim.computed = 0
        self.enqueue(victim)
        return victim

    def check(self) -> None:
        ids = [s.key for s in [*self.waiting, *self.running]]
        assert len(ids) == len(set(ids)), "a request is queued twice"
        assert all(s.pending_tokens >= 1 for s in self.waiting), "a waiting sequence has nothing to compute"
        assert all(s.pending_tokens == 1 for s in self.running), "a decode must compute exactly one token"
