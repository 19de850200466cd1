"""The one picture of load: each worker's last report, plus the placements after the one that the report covers.

Whoever applies the same stream entries in the same order sees the same load, so several routers agree without talking
to each other. Death is never concluded from silence alone: a worker is out of sight when *others* were heard after it
for `SILENT_S`; when nobody is heard, the broker is in trouble and everyone keeps their last state. The first report
after such an outage therefore excuses everyone's silence during it.
"""

from dataclasses import dataclass, field

from shared.ids import EntryId, RequestId, ServiceId, WorkerId
from shared.kv.blocks import blocks_for
from shared.wire.messages import Placed, ServiceReport, StreamMessage, WorkerReport
from shared.wire.terms import State

SILENT_S = 5.0
OUTAGE_S = 2.5  # nobody at all was heard for so long: reports come every second
FORGET_S = 30.0
EXPECTED_OUTPUT_TOKENS = 256


def order_of(entry_id: EntryId) -> tuple[int, int]:
    """Stream ids compare as (milliseconds, sequence)."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(slots=True)
class WorkerView:
    """A worker as seen from afar. `placed` holds what its report does not cover yet."""

    report: WorkerReport
    heard_at: float
    placed: dict[tuple[RequestId, int], tuple[tuple[int, int] | None, Placed]] = field(default_factory=dict)

    @property
    def worker_id(self) -> WorkerId:
        return self.report.worker_id

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that this worker still has to compute (JSQ weight of the prompt side)."""
        mine = (p.prompt_tokens for _, p in self.placed.values() if p.prompt_worker == self.worker_id)
        return self.report.queue_tokens + sum(mine)

    @property
    def kv_demand(self) -> float:
        """KV blocks that this worker's decodes are expected to need, as a share of what it has (JSQ weight of the
        token side)."""
        mine = (expected_blocks(p, self.report.block_size) for _, p in self.placed.values() if self._decodes(p))
        return (self.report.demand_blocks + sum(mine)) / max(1, self.report.kv_blocks_total)

    def _decodes(self, placed: Placed) -> bool:
        return placed.token_worker == self.worker_id


def expected_blocks(placed: Placed, block_size: int) -> int:
    """Blocks at the end of a request, as far as one can expect: max_tokens is an upper bound that few reach."""
    return blocks_for(placed.prompt_tokens + min(placed.output_tokens, EXPECTED_OUTPUT_TOKENS), block_size)


class View:
    """Feed it every entry of `placements` and `reports`; ask it for the workers that can be given work."""

    def __init__(self) -> None:
        self.workers: dict[WorkerId, WorkerView] = {}
        self.services: dict[ServiceId, ServiceReport] = {}
        self._service_heard_at: dict[ServiceId, float] = {}
        self._last_heard_at = float("-inf")

    def apply(self, message: StreamMessage, entry_id: EntryId, now: float) -> None:
        match message:
            case Placed():
                self._place(message, order_of(entry_id))
            case WorkerReport():
                self._hear_worker(message, now)
            case ServiceReport():
                self._hear_service(message, now)
            case _:
                pass

    def foresee(self, placed: Placed) -> None:
        """Count a placement that this process is about to make and will soon read back from the stream."""
        self._place(placed, None)

    def retract(self, placed: Placed) -> None:
        """The foreseen placement was not made after all."""
        for worker in self.workers.values():
            worker.placed.pop((placed.request_id, placed.attempt), None)

    def reachable(self, now: float) -> list[WorkerView]:
        """Workers that are ready and not out of sight, in a stable order."""
        self.forget(now)
        ready = (w for w in self.workers.values() if w.report.state is State.READY and not self.out_of_sight(w))
        return sorted(ready, key=lambda w: w.worker_id)

    def out_of_sight(self, worker: WorkerView) -> bool:
        return worker.heard_at < self._last_heard_at - SILENT_S

    def forget(self, now: float) -> None:
        """Drop whoever has been lost or silent for long; only while somebody is heard."""
        if now - self._last_heard_at > SILENT_S:
            return
        stale = now - FORGET_S
        self.workers = {i: w for i, w in self.workers.items() if w.heard_at > stale}
        gone = [i for i, at in self._service_heard_at.items() if at < now - 2 * SILENT_S]
        for service_id in gone:
            del self.services[service_id], self._service_heard_at[service_id]

    def _place(self, placed: Placed, order: tuple[int, int] | None) -> None:
        """A placement that is read back takes the place of the foreseen one, wherever that counted."""
        self.retract(placed)
        for worker_id in {placed.prompt_worker, placed.token_worker}:
            worker = self.workers.get(worker_id)
            if worker is not None and not self._covered(worker, order):
                worker.placed[placed.request_id, placed.attempt] = (order, placed)

    def _covered(self, worker: WorkerView, order: tuple[int, int] | None) -> bool:
        return order is not None and order <= order_of(worker.report.covers)

    def _hear(self, now: float) -> None:
        outage_s = now - self._last_heard_at
        if OUTAGE_S < outage_s < float("inf"):
            for worker in self.workers.values():
                worker.heard_at += outage_s
            self._service_heard_at = {i: at + outage_s for i, at in self._service_heard_at.items()}
        self._last_heard_at = max(self._last_heard_at, now)

    def _hear_worker(self, report: WorkerReport, now: float) -> None:
        self._hear(now)
        known = self.workers.get(report.worker_id)
        placed = known.placed if known else {}
        worker = WorkerView(report=report, heard_at=now)
        worker.placed = {key: (order, p) for key, (order, p) in placed.items() if not self._covered(worker, order)}
        self.workers[report.worker_id] = worker

    def _hear_service(self, report: ServiceReport, now: float) -> None:
        self._hear(now)
        self._service_heard_at[report.service_id] = now
        self.services[report.service_id] = report
        if report.state is State.LOST:
            del self.services[report.service_id], self._service_heard_at[report.service_id]
