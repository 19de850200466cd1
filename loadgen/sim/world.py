"""A simulated cluster: the mesh's own routing, pooling, batching and admission over machines whose steps take no time.

    arrival ─▶ admission ─▶ place(view) ─▶ prompt machine ─▶ KV link ─▶ token machine ─▶ end
                              ▲  reports of every machine        │
                              └──────── Pooling, every second ◀──┘

What the live mesh learns late, the policies here learn late too: loads through reports, answers' lengths when they end.
What they cost in messages is left out: placements, grants and role changes reach everyone at once.
"""

import gc
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import cast

from loadgen.record import Outcome, Record, Run
from loadgen.sim.agenda import Agenda
from loadgen.sim.arrivals import Arrivals
from loadgen.sim.build import Parts, build
from loadgen.sim.cluster import Cluster
from loadgen.sim.handoffs import HandOffs
from loadgen.sim.job import Job
from loadgen.sim.machine import Machine
from loadgen.sim.outcome import RoleChange, SimRun
from loadgen.traces.trace import Trace
from shared.ids import Address, EntryId, RequestId, ServiceId
from shared.policy.admission import Admission, Promises, Refused
from shared.policy.routing import Placement, place
from shared.wire.messages import Submitted
from shared.wire.reports import WorkerReport
from shared.wire.terms import Sampling

POOLING_EVERY_S = 1.0
TIME_LIMIT_S = math.inf  # nobody gives up
PROGRESS_EVERY = 200
STATUS = {Outcome.COMPLETED: 200, Outcome.REJECTED: 429, Outcome.FAILED: 503}
GATEWAY, ADDRESS = ServiceId("gateway"), Address("gateway")

Progress = Callable[[int, int], None]


def simulate(
    trace: Trace,
    cluster: Cluster,
    *,
    on_progress: Progress = lambda done, total: None,
    chunk_tokens: int | None = None,
) -> SimRun:
    """Until every request has ended. `chunk_tokens`: of the policy `chunked`."""
    return World(trace, cluster, on_progress, chunk_tokens).run()


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Nothing here is a cycle, but the collector would search a growing heap for one again and again (a tenth of the
    time)."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class World:
    def __init__(self, trace: Trace, cluster: Cluster, on_progress: Progress, chunk_tokens: int | None) -> None:
        self._trace = trace
        self._cluster = cluster
        self._on_progress = on_progress
        self._agenda = Agenda()
        self._parts: Parts = build(
            cluster, self._agenda, chunk_tokens=chunk_tokens, covers=lambda: self._newest, report=self._hear,
            prefill_begins=lambda machine, job: self._handoffs.prefill_begins(machine, job),
            prefilled=lambda machine, job: self._handoffs.prefilled(machine, job), finished=self._finished,
        )  # fmt: skip
        self._machines = self._parts.machines
        self._view = self._parts.view
        promises = Promises(ttft_target_s=cluster.ttft_target_s, tbt_target_s=cluster.tbt_target_s)
        self._admission = Admission(self._view, promises, self._parts.limits) if cluster.admission else None
        self._entries = 0
        self._newest = EntryId("0-0")
        self._arrivals = Arrivals(trace, self._agenda, self._arrive)
        self._handoffs = HandOffs(
            self._agenda, cluster, self._parts.links, ended=lambda job: self._over(job, Outcome.COMPLETED),
            stayed=self._note_placement,
        )  # fmt: skip
        self._records: list[Record | None] = [None] * len(trace.requests)
        self._placements: list[tuple[str, str]] = [("", "")] * len(trace.requests)
        self._role_changes: list[RoleChange] = []
        self._longest_tokens = min(kind.kv_tokens for kind in cluster.machines)
        self._sampling = Sampling(max_tokens=self._longest_tokens)
        self._left = len(trace.requests)

    def run(self) -> SimRun:
        for machine in self._machines.values():
            self._hear(machine.load.report())
        self._arrivals.start()
        if self._parts.pooling is not None:
            self._agenda.at(POOLING_EVERY_S, self._pool)
        with _no_garbage_collection():
            self._agenda.run()
        end_s = self._agenda.now
        for machine in self._machines.values():
            machine.load.close()
        records = [record for record in self._records if record is not None]
        assert len(records) == len(self._records), "a request was lost"
        run = Run(
            target="simulated", model=self._cluster.model, trace=self._trace.name,
            schedule_sha256=self._trace.sha256, scheduled=len(records), records=records, window_s=(0.0, end_s),
            notes=list(self._trace.notes),
        )  # fmt: skip
        return SimRun(
            run=run, placements=self._placements, role_changes=self._role_changes,
            machines=[self._parts.use_of(name, end_s) for name in self._machines],
        )  # fmt: skip

    # ---- arrival ----------------------------------------------------------------------------------------------------

    def _arrive(self, index: int) -> None:
        now, request = self._agenda.now, self._trace.requests[index]
        submitted = Submitted(
            request_id=RequestId(str(index)),
            attempt=1,
            token_ids=cast(tuple[int, ...], range(request.prompt_tokens)),  # only its length is ever asked for
            emitted=0,
            sampling=self._sampling if not self._cluster.known_answers else Sampling(max_tokens=request.output_tokens),
            time_left_s=TIME_LIMIT_S,
            waited_s=0.0,
            gateway_id=GATEWAY,
            reply_to=ADDRESS,
            model=self._cluster.model,
        )
        room = max(1, self._longest_tokens - request.prompt_tokens)  # a live answer ends where the context does
        job = Job(index, now, min(request.output_tokens, room), submitted)
        choice = self._choose(submitted, now)
        match choice:
            case Placement():
                self._place(job, choice, now)
            case Refused():
                self._over(job, Outcome.REJECTED, choice.reason)
            case str():
                self._over(job, Outcome.FAILED, choice)

    def _choose(self, submitted: Submitted, now: float) -> Placement | Refused | str:
        """What admission lets in goes where it judged it to go: gateway and router have one view here."""
        if self._admission is not None:
            answer = self._admission.ask(submitted, now)
            if isinstance(answer, Refused):
                return answer
            if answer.placement is not None:
                self._admission.settle(submitted.request_id)
                return answer.placement
        return place(self._view, submitted, now, self._parts.limits)

    def _place(self, job: Job, choice: Placement, now: float) -> None:
        placed = choice.placed(job.submitted)
        self._entries += 1
        self._newest = EntryId(f"{self._entries}-0")
        self._view.apply(placed, self._newest, now)
        if self._parts.pooling is not None:
            self._parts.pooling.apply(placed, self._newest, now)
        first, second = self._machines[placed.prompt_worker], self._machines[placed.token_worker]
        self._placements[job.index] = (first.name, second.name)
        self._handoffs.placed(job, first, second)
        first.load.prompt_placed(job)
        second.load.decode_placed(job)
        first.take_prompt(job)

    def _hear(self, report: WorkerReport) -> None:
        self._view.apply(report, self._newest, self._agenda.now)

    def _note_placement(self, job: Job, machine: Machine) -> None:
        self._placements[job.index] = (machine.name, machine.name)

    # ---- end --------------------------------------------------------------------------------------------------------

    def _finished(self, machine: Machine, job: Job) -> None:
        machine.load.decode_ended(job)
        self._over(job, Outcome.COMPLETED)
        self._handoffs.over(job, machine)

    def _over(self, job: Job, outcome: Outcome, error: str | None = None) -> None:
        done_s = job.event_s[-1] if job.event_s else self._agenda.now
        self._records[job.index] = Record(
            index=job.index,
            prompt_tokens=job.prompt_tokens,
            output_tokens=self._trace.requests[job.index].output_tokens,
            due_s=job.arrived_s,
            sent_s=job.arrived_s,
            event_s=job.event_s,
            event_tokens=[1] * len(job.event_s),
            done_s=done_s,
            outcome=outcome,
            error=error,
            status=STATUS[outcome],
            finish="length",
            request_id=job.submitted.request_id,
            usage_prompt_tokens=job.prompt_tokens,
            usage_output_tokens=len(job.event_s),
        )
        self._left -= 1
        self._arrivals.ended(job.index, done_s)
        if self._left % PROGRESS_EVERY == 0:
            self._on_progress(len(self._records) - self._left, len(self._records))

    # ---- pools ------------------------------------------------------------------------------------------------------

    def _pool(self, _: object) -> None:
        assert self._parts.pooling is not None
        now = self._agenda.now
        for move in self._parts.pooling.decide(now):
            machine = self._machines[move.worker_id]
            change = RoleChange(
                at_s=now, worker=machine.name, was=machine.load.role.value, role=move.role.value, reason=move.reason
            )
            self._role_changes.append(change)
            machine.load.set_role(move.role)
            self._hear(machine.load.report())
        if self._left:
            self._agenda.at(now + POOLING_EVERY_S, self._pool)
