"""The vocabulary of machine level scheduling: what is scheduled, in what memory, within what limits, and a step."""

from dataclasses import dataclass
from enum import Enum
from typing import Generic, Protocol, TypeVar

from shared.ids import Attempt

AIM = 0.9  # of the time between tokens that is promised: what steps with prompts aim at
PROMPT_SHARE = 0.95  # of all KV blocks; the rest serves grants and growing decodes


class Work(Protocol):
    """A sequence, compared by identity. KV exists for [0, computed) of its `length` tokens; to be computed are several
    of a waiting one, exactly one of a running one. A smaller `rank` is served first."""

    computed: int

    @property
    def key(self) -> Attempt: ...

    @property
    def rank(self) -> float: ...

    @property
    def length(self) -> int: ...


class Blocks(Protocol):
    """The KV memory: shared.kv.blocks.BlockAllocator, or one that only counts."""

    total: int
    block_size: int

    @property
    def free_blocks(self) -> int: ...

    @property
    def used_blocks(self) -> int: ...

    def reach(self, owner: Attempt, tokens: int) -> bool: ...

    def release(self, owner: Attempt) -> int: ...


class Style(Enum):
    """DECODE_FIRST: as above. PROMPTS_FIRST: the papers' colocated baseline: whole prompts FCFS up to the token limit,
    which the first alone may exceed; decodes fill up what is left of it, and after some steps without them go alone."""

    DECODE_FIRST = "decode_first"
    PROMPTS_FIRST = "prompts_first"


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """step_target_s: how long a step with prompts and decodes may take (aimed_at); None: LONE_STEPS.

    prompt_blocks: a prompt starts only while so many blocks at most are in use after it, or nothing is. The rest serves
    grants and growing decodes, so a worker full of prompts can always take over a decode, and a preempted sequence does
    not come back only to be preempted again. chunk_tokens: prompt tokens beside decodes, in place of the target time.
    """

    max_num_seqs: int = 64
    max_num_batched_tokens: int = 2048
    step_target_s: float | None = None
    prompt_blocks: int
    style: Style = Style.DECODE_FIRST
    chunk_tokens: int | None = None


def aimed_at(tbt_target_s: float | None) -> float | None:
    """The step target for a promised time between tokens: no fit is exact, and steps have to be kept below it."""
    return None if tbt_target_s is None else AIM * tbt_target_s


W = TypeVar("W", bound=Work)


@dataclass(frozen=True, slots=True)
class Piece(Generic[W]):
    """Compute positions [sequence.computed, end) of a prompt; at `length` a token is sampled."""

    sequence: W
    end: int


@dataclass(frozen=True, slots=True)
class Batch(Generic[W]):
    """One step of the engine."""

    pieces: tuple[Piece[W], ...]
    decodes: tuple[W, ...]
