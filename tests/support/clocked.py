"""A worker without engine: a Batcher, and a clock that each step moves by what the cost model says."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from shared.ids import Attempt, RequestId
from shared.kv.blocks import BlockAllocator
from shared.policy.batching import Batch, Batcher, BatchLimits
from shared.policy.sequence import AGING_S
from shared.wire.costs import Costs


@dataclass(slots=True, eq=False)
class Light:
    """The least that can be scheduled. `left`: tokens it still samples; 0 after the first if it is handed over."""

    name: str
    arrived_at: float
    prompt_tokens: int
    left: int = 1
    priority: int = 0
    computed: int = 0
    length: int = 0
    rank: float = field(init=False)
    started_at: float | None = None
    prefilled_at: float | None = None
    token_times: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.length = self.length or self.prompt_tokens
        self.rank = self.arrived_at + AGING_S * self.priority

    @property
    def key(self) -> Attempt:
        return RequestId(self.name), 1

    def copy(self) -> "Light":
        """What is left to prefill of it, as a request of its own."""
        return Light(self.name, self.arrived_at, self.prompt_tokens, 1, self.priority, self.computed, self.length)


class Clocked:
    def __init__(self, costs: Costs, limits: BatchLimits, blocks: BlockAllocator) -> None:
        self.now, self.costs, self.limits, self.blocks = 0.0, costs, limits, blocks
        self.batcher: Batcher[Light] = Batcher(blocks, limits, costs)
        self.batch: Batch[Light] | None = None  # of the step that ends at `until`
        self.until = 0.0

    def run(self, arrivals: Iterable[Light]) -> None:
        """Until all of them, and what was here before, are done."""
        coming = sorted(arrivals, key=lambda light: light.arrived_at)
        while True:
            if self.batch is None:
                self._start()
            due = coming[0].arrived_at if coming else float("inf")
            if self.batch is None and due == float("inf"):
                break
            if self.batch is None or due < self.until:
                self.now = max(self.now, due)
                self.arrive(coming.pop(0))
            else:
                self.now = self.until
                self._finish(self.batch)
        assert not self.batcher.waiting and not self.batcher.running, "something waits though nothing runs"

        self.blocks.check()

    def arrive(self, light: Light) -> None:
        self.batcher.enqueue(light)

    def _start(self) -> None:
        self.batch = self.batcher.next_batch()
        if self.batch is None:
            return
        self.until = self.now + self.step_s(self.batch)
        for piece in self.batch.pieces:
            if piece.sequence.started_at is None:
                piece.sequence.started_at = self.now

    def step_s(self, batch: Batch[Light]) -> float:
        tokens = sum(p.end - p.sequence.computed for p in batch.pieces)
        squares = sum(p.end**2 - p.sequence.computed**2 for p in batch.pieces)
        return self.costs.step_s(tokens, squares, sum(d.length for d in batch.decodes), len(batch.decodes))

    def _finish(self, batch: Batch[Light]) -> None:
        self.batch = None
        for piece in batch.pieces:
            light = piece.sequence
            light.computed = piece.end
            if piece.end < light.length:
                self.batcher.enqueue(light)
                continue
            light.prefilled_at = light.prefilled_at or self.now
            if self._sample(light):
                self.batcher.admit(light)
        for light in batch.decodes:
            light.computed += 1
            self._sample(light)
        self.batcher.check()

    def _sample(self, light: Light) -> bool:
        light.length += 1
        light.left -= 1
        light.token_times.append(self.now)
        if light.left == 0:
            self.batcher.remove(light.key)
            self.blocks.release(light.key)
        return light.left > 0

    def drain_s(self) -> float:
        """How long the prompts that wait now would take if nothing came after them: the running step, then these."""
        left = max(0.0, self.until - self.now) if self.batch is not None else 0.0
        queue = [w.copy() for w in self.batcher.waiting]
        for piece in self.batch.pieces if self.batch else ():
            if piece.end < piece.sequence.length:
                queue.append(piece.sequence.copy())
                queue[-1].computed = piece.end
        alone = Clocked(self.costs, self.limits, BlockAllocator(self.blocks.total, self.blocks.block_size))
        for light in queue:
            alone.blocks.reach(light.key, light.length if light.computed else 0)
            alone.batcher.enqueue(light)
        alone.run([])
        return left + alone.now
