"""A batcher of light sequences, and what a worker does after each step."""

from shared.kv.blocks import BlockAllocator
from shared.policy.batching import Batch, Batcher, BatchLimits
from shared.wire.costs import Costs
from tests.support.clocked import Light

COSTS = Costs((10.0, 1.0, 0.0), (30.0, 0.0, 2.0))


def batcher(
    blocks: int = 1000, *, seqs: int = 8, tokens: int = 100, share: float = 0.75, costs: Costs = COSTS, **limits: object
) -> Batcher[Light]:
    return Batcher(
        BlockAllocator(blocks, 16),
        BatchLimits(
            max_num_seqs=seqs, max_num_batched_tokens=tokens, prompt_blocks=int(blocks * share), **limits  # type: ignore[arg-type]
        ),
        costs,
    )  # fmt: skip


def light(name: str, tokens: int, at: float = 0.0, left: int = 99, priority: int = 0) -> Light:
    return Light(name, at, tokens, left, priority)


def enqueue(target: Batcher[Light], *lights: Light) -> None:
    for one in lights:
        target.enqueue(one)


def step(target: Batcher[Light]) -> Batch[Light]:
    """The next batch, and what a worker does after it."""
    batch = target.next_batch()
    assert batch is not None
    for piece in batch.pieces:
        piece.sequence.computed = piece.end
        if piece.end < piece.sequence.length:
            target.enqueue(piece.sequence)
        else:
            piece.sequence.length += 1
            target.admit(piece.sequence)
    for one in batch.decodes:
        one.computed += 1
        one.length += 1
    target.check()
    return batch


def pieces(batch: Batch[Light]) -> dict[str, int]:
    """Where each piece ends."""
    return {piece.sequence.name: piece.end for piece in batch.pieces}


def decodes(batch: Batch[Light]) -> list[str]:
    return [one.name for one in batch.decodes]


def decoding(target: Batcher[Light], count: int, tokens: int = 10) -> None:
    enqueue(target, *(light(f"d{n}", tokens, n - 100.0) for n in range(count)))
    while target.waiting:
        step(target)
