"""A worker's life: ready, reporting, computing, draining, gone."""

import asyncio

import structlog

from shared.errors import Transient
from shared.runtime.supervise import Supervisor
from shared.wire.reports import WorkerReport
from shared.wire.streams import EVENTS, REPORTS, worker_stream
from shared.wire.terms import State
from shared.worker import intake
from shared.worker.compute import compute
from shared.worker.load import LoopLag
from shared.worker.report import report_of
from shared.worker.worker import Worker

log = structlog.get_logger()

BUSY_REPORT_S = 0.25
LINGER_S = 0.5  # routers that have not heard yet that a worker leaves may still send it work


async def run(worker: Worker, supervisor: Supervisor) -> None:
    """Serve until `supervisor.stopping`, or until told to leave; then finish what is here, and say goodbye. Who is
    stopped gives back what is not done in time; who leaves takes its time."""
    lag = LoopLag(worker.clock)
    spawn = supervisor.spawn
    tasks = [
        spawn(intake.read_streams(worker), name="streams"),
        spawn(intake.read_links(worker), name="links"),
        spawn(intake.tick(worker), name="tick"),
        spawn(lag.run(), name="lag"),
        spawn(compute(worker), name="compute"),
        spawn(_report_for_ever(worker, lag), name="reports"),
    ]
    worker.state, supervisor.serving = State.READY, True
    await _report(worker, lag)
    log.info("worker ready", worker_id=worker.options.worker_id, role=worker.role.value)
    told = [spawn(_wait(event), name="told") for event in (supervisor.stopping, worker.leaving)]
    await asyncio.wait(told, return_when=asyncio.FIRST_COMPLETED)
    await _drain(worker, supervisor, lag)
    for task in [*tasks, *told]:
        task.cancel()
    await worker.links.close()
    await worker.transport.close()
    worker.close()


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def _drain(worker: Worker, supervisor: Supervisor, lag: LoopLag) -> None:
    worker.state, supervisor.serving = State.DRAINING, False
    worker.token_side.draining = True
    await _report(worker, lag)
    heard_by = worker.clock.now() + LINGER_S
    while not supervisor.stopping.is_set() and not (worker.idle and worker.clock.now() >= heard_by):
        await asyncio.sleep(0.05)
    deadline = worker.clock.now() + worker.options.drain_s
    while not worker.idle and worker.clock.now() < deadline:
        await asyncio.sleep(0.05)
    worker.give_back("worker_draining", "this worker shut down before the request was done")
    worker.state = State.LOST
    await _report(worker, lag)
    try:
        await worker.broker.delete(worker_stream(worker.options.worker_id))
    except Transient as error:
        log.warning("stream left behind", reason=str(error))


async def _report_for_ever(worker: Worker, lag: LoopLag) -> None:
    """At once when there is news of the worker itself, often while there is something to say, else as a heartbeat."""
    last: WorkerReport | None = None
    silent_s = 0.0
    while True:
        urgent = await _news_within(worker, BUSY_REPORT_S)
        silent_s += BUSY_REPORT_S
        report = report_of(worker, lag)
        if urgent or silent_s >= worker.options.report_every_s or _load(report) != _load(last):
            await _report(worker, lag)
            last, silent_s = report, 0.0
        await _announce(worker)


async def _news_within(worker: Worker, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(limit_s):
            await worker.news.wait()
    except TimeoutError:
        return False
    worker.news.clear()
    return True


async def _announce(worker: Worker) -> None:
    """Changes of role, in order; what the broker does not take now it gets the next time."""
    try:
        while worker.role_changes:
            await worker.broker.publish(EVENTS, worker.role_changes[0])
            worker.role_changes.popleft()
    except Transient as error:
        log.debug("role change not announced", reason=str(error))


def _load(report: WorkerReport | None) -> tuple[object, ...]:
    if report is None:
        return ()
    return report.state, report.queue_tokens, report.demand_blocks, report.running, report.kv_blocks_used


async def _report(worker: Worker, lag: LoopLag) -> None:
    try:
        await worker.broker.publish(REPORTS, report_of(worker, lag))
    except Transient as error:
        log.debug("report not sent", reason=str(error))
