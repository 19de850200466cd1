"""The one picture of load: each worker's last report, plus the placements after the one that the report covers.

Whoever applies the same stream entries in the same order sees the same load, so several routers agree without talking
to each other. Death is never concluded from silence alone: a worker is out of sight when *others* were heard after it
for `SILENT_S`; when nobody is heard, the broker is in trouble and everyone keeps their last state. The first report
after such an outage therefore excuses everyone's silence during it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b

from shared.ids import Attempt, EntryId, ServiceId, WorkerId
from shared.policy.ranking import Ranking
from shared.policy.worker_view import Order, WorkerView
from shared.wire.messages import Placed, StreamMessage
from shared.wire.reports import ServiceReport, WorkerReport
from shared.wire.terms import Role, State

SILENT_S = 5.0
OUTAGE_S = 2.5  # nobody at all was heard for so long: reports come every second
FORGET_AFTER = 6.0  # times as long
FORGET_EVERY_S = 1.0
FORESEEN_S = 10.0  # from deciding to reading it back takes milliseconds


@lru_cache(maxsize=256)  # reports cover the same placement again and again
def order_of(entry_id: EntryId) -> Order:
    """Stream ids compare as (milliseconds, sequence)."""
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


@dataclass(slots=True)
class Pool:
    """The ready workers of a model that are observed in one pool, by either score."""

    prompt: Ranking[WorkerView] = field(default_factory=Ranking)
    token: Ranking[WorkerView] = field(default_factory=Ranking)


class View:
    """Feed it every entry of `placements` and `reports`; ask it for the workers that can be given work.

    `salt`: routers with different ones break ties differently, so that they do not all run to the same idle worker.
    `silent_s`: how long others must have been heard since; infinite where nobody dies unsaid.
    """

    def __init__(self, salt: str = "", silent_s: float = SILENT_S) -> None:
        self.workers: dict[WorkerId, WorkerView] = {}
        self.services: dict[ServiceId, ServiceReport] = {}
        self._salt = salt
        self._silent_s = silent_s
        self._pools: dict[tuple[str, Role], Pool] = {}
        self._foreseen: dict[Attempt, tuple[float, Placed]] = {}
        self._latest = float("-inf")
        self._service_heard_at: dict[ServiceId, float] = {}
        self._last_heard_at = float("-inf")
        self._forgot_at = float("-inf")
        self._changed: dict[WorkerId, None] = {}  # a set in order

    # ---- what is heard ----------------------------------------------------------------------------------------------

    def apply(self, message: StreamMessage, entry_id: EntryId, now: float) -> None:
        self._latest = max(self._latest, now)
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
        """Count a placement that this process is about to make and will soon read back from the stream; if the broker
        loses it, it counts for FORESEEN_S."""
        self._foreseen[placed.request_id, placed.attempt] = (self._latest, placed)
        self._count(placed, None)

    def retract(self, placed: Placed) -> None:
        """The foreseen placement was not made after all."""
        if (known := self._foreseen.pop((placed.request_id, placed.attempt), None)) is not None:
            _, foreseen = known
            for worker in self._concerned(foreseen):
                if worker.take_back(foreseen):
                    self._rank(worker)

    # ---- what is asked ----------------------------------------------------------------------------------------------

    def shortest(self, model: str, pool: Role, fits: Callable[[WorkerView], bool]) -> WorkerView | None:
        """Of a pool's ready workers in sight that fit, the one with the least time to a first token."""
        return self._pool(model, pool).prompt.first(lambda w: not self.out_of_sight(w) and fits(w))

    def least_demand(self, model: str, pool: Role, fits: Callable[[WorkerView], bool]) -> WorkerView | None:
        """The same for decodes: the one with the least time between tokens."""
        return self._pool(model, pool).token.first(lambda w: not self.out_of_sight(w) and fits(w))

    def reachable(self, now: float) -> list[WorkerView]:
        """Workers that are ready and not out of sight, in a stable order."""
        self.forget(now)
        ready = (w for w in self.workers.values() if w.report.state is State.READY and not self.out_of_sight(w))
        return sorted(ready, key=lambda w: w.worker_id)

    def take_changed(self) -> list[WorkerId]:
        """Workers heard of or placed on since it was asked last, for a single asker. Sight changes unsaid."""
        changed = list(self._changed)
        self._changed.clear()
        return changed

    @property
    def may_fall_silent(self) -> bool:
        return self._silent_s < math.inf

    def out_of_sight(self, worker: WorkerView) -> bool:
        return worker.heard_at < self._last_heard_at - self._silent_s

    def forget(self, now: float) -> None:
        """Drop whoever has been lost or silent for long; only while somebody is heard."""
        if not now - self._last_heard_at <= self._silent_s < math.inf or now - self._forgot_at < FORGET_EVERY_S:
            return
        self._forgot_at = now
        for placed in [p for at, p in self._foreseen.values() if at < now - FORESEEN_S]:
            self.retract(placed)
        for worker in [w for w in self.workers.values() if w.heard_at <= now - FORGET_AFTER * self._silent_s]:
            worker.version += 1  # out of its ranking
            del self.workers[worker.worker_id]
            self._changed.pop(worker.worker_id, None)
        gone = [i for i, at in self._service_heard_at.items() if at < now - 2 * self._silent_s]
        for service_id in gone:
            del self.services[service_id], self._service_heard_at[service_id]

    # ---- placements -------------------------------------------------------------------------------------------------

    def _place(self, placed: Placed, order: Order) -> None:
        """A placement that is read back takes the place of the foreseen one, wherever that counted."""
        if (known := self._foreseen.get((placed.request_id, placed.attempt))) is not None:
            _, foreseen = known
            ends = foreseen.prompt_worker, foreseen.token_worker
            if ends != (placed.prompt_worker, placed.token_worker):
                self.retract(placed)
        self._foreseen.pop((placed.request_id, placed.attempt), None)
        self._count(placed, order)

    def _count(self, placed: Placed, order: Order | None) -> None:
        for worker in self._concerned(placed):
            if worker.place(placed, order):
                self._rank(worker)

    def _concerned(self, placed: Placed) -> list[WorkerView]:
        ids = {placed.prompt_worker: None, placed.token_worker: None}
        return [worker for i in ids if (worker := self.workers.get(i)) is not None]

    # ---- reports ----------------------------------------------------------------------------------------------------

    def _hear(self, now: float) -> None:
        outage_s = now - self._last_heard_at
        if OUTAGE_S < outage_s < float("inf"):
            for worker in self.workers.values():
                worker.heard_at += outage_s
            self._service_heard_at = {i: at + outage_s for i, at in self._service_heard_at.items()}
        self._last_heard_at = max(self._last_heard_at, now)

    def _hear_worker(self, report: WorkerReport, now: float) -> None:
        self._hear(now)
        worker = self.workers.get(report.worker_id)
        if worker is None:
            worker = self.workers[report.worker_id] = WorkerView(report, self._tie(report.worker_id))
        worker.hear(report, order_of(report.covers), now)
        self._rank(worker)

    def _tie(self, worker_id: WorkerId) -> int:
        salted = f"{self._salt}{worker_id}".encode()
        return int.from_bytes(blake2b(salted, digest_size=4).digest(), "big") if self._salt else 0

    def _hear_service(self, report: ServiceReport, now: float) -> None:
        self._hear(now)
        self._service_heard_at[report.service_id] = now
        self.services[report.service_id] = report
        if report.state is State.LOST:
            del self.services[report.service_id], self._service_heard_at[report.service_id]

    # ---- pools ------------------------------------------------------------------------------------------------------

    def _pool(self, model: str, pool: Role) -> Pool:
        if (model, pool) not in self._pools:
            self._pools[model, pool] = Pool()
        return self._pools[model, pool]

    def _rank(self, worker: WorkerView) -> None:
        """After a change: at its new place, if it can be given work at all."""
        self._changed[worker.report.worker_id] = None
        if worker.report.state is State.READY:
            pool = self._pool(worker.report.model, worker.pool)
            pool.prompt.put(worker.prompt_score, worker)
            pool.token.put(worker.token_score, worker)

    def check(self) -> None:
        """Load equals the last report plus the placements it does not cover."""
        for worker in self.workers.values():
            mine = [p for _, p in worker.placed.values()]
            prompts = sum(p.prompt_tokens for p in mine if p.prompt_worker == worker.worker_id)
            decodes = sum(p.token_worker == worker.worker_id and p.output_tokens > 1 for p in mine)
            assert worker.prompt_tokens == worker.report.queue_tokens + prompts, "prompt tokens"
            assert worker.decodes == worker.report.decodes + decodes, "decodes"
            assert all(order is None or order > worker.covers for order, _ in worker.placed.values()), "covered"
        assert self._changed.keys() <= self.workers.keys(), "as many as there are workers, whether anyone asks or not"
