"""What a worker's capacity depends on. Workers that agree in all of it are weighed together, however many they are."""

from typing import NamedTuple, Self

from shared.wire.costs import Coefficients
from shared.wire.reports import WorkerReport

KV_SHARE = 0.85  # of the blocks; the rest is for answers longer than expected
LEAST_STEP_SHARE = 0.1  # of a step is left for sequences, however long its fixed part takes


class WorkerKind(NamedTuple):
    """Costs: see Costs. A plain tuple, because it is built and looked up at every change of a worker's load."""

    prefill_ms: Coefficients
    decode_ms: Coefficients
    kv_blocks_total: int
    block_size: int
    step_target_s: float
    max_num_seqs: int

    @classmethod
    def of(cls, report: WorkerReport) -> Self:
        costs = report.fit.costs
        return cls(
            costs.prefill_ms, costs.decode_ms, report.kv_blocks_total, report.block_size, report.step_target_s,
            report.max_num_seqs,
        )  # fmt: skip

    def occupied(self, decodes: int, demand_blocks: int) -> float:
        """The share of a worker that its decodes need: of memory, of seats, or of a step within its target. Beyond 1
        it is short."""
        _, b, c = self.decode_ms
        sequences_s = (b * demand_blocks * self.block_size + c * decodes) / 1000
        in_memory = demand_blocks / (KV_SHARE * max(1, self.kv_blocks_total))
        return max(in_memory, decodes / max(1, self.max_num_seqs), sequences_s / self.room_s())

    def room_s(self) -> float:
        """What a decode step within its target has for sequences, beside its fixed part."""
        target_s = self.step_target_s
        return max(target_s - self.decode_ms[0] / 1000, LEAST_STEP_SHARE * target_s, 1e-6)
