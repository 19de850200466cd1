"""The words that messages use: roles, states, ways to end and to push, and how tokens are chosen."""

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """Home pool of a worker, commanded by the pool manager; also the pool it is observed in (Splitwise IV-A)."""

    PROMPT = "prompt"
    TOKEN = "token"
    MIXED = "mixed"


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    LOST = "lost"


class Finish(StrEnum):
    STOP = "stop"  # an end-of-sequence token
    LENGTH = "length"  # max_tokens or the context is used up


class PushMode(StrEnum):
    """How the KV of one request crosses (Splitwise IV-C)."""

    LAYERWISE = "layerwise"
    SERIALIZED = "serialized"


class LinkKind(StrEnum):
    """How KV crosses between two workers, from the slowest to the fastest."""

    TCP = "tcp"
    SHM = "shm"  # memory that two processes of one machine share
    CUDA_IPC = "cuda_ipc"  # from GPU to GPU of one machine
    RDMA = "rdma"

    def at_least(self, other: "LinkKind") -> bool:
        order = list(LinkKind)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen. temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off.

    `seed` with (choice, position, token id) fixes the Gumbel noise, so any worker draws the same numbers.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    choice: int = 0
    max_tokens: int = 16
    min_tokens: int = 0
    ignore_eos: bool = False
    stop_token_ids: tuple[int, ...] = ()
