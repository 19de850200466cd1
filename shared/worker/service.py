"""A worker's life: ready, reporting, computing, draining, gone."""

import asyncio

import structlog

from shared.errors import Transient
from shared.runtime.supervise import Supervisor
from shared.wire.messages import WorkerReport
from shared.wire.streams import REPORTS, worker_stream
from shared.wire.terms import Role, State
from shared.worker import intake
from shared.worker.compute import compute
from shared.worker.load import LoopLag, blocks_at_end
from shared.worker.worker import Worker

log = structlog.get_logger()

BUSY_REPORT_S = 0.25


async def run(worker: Worker, supervisor: Supervisor) -> None:
    """Serve until `supervisor.stopping`; then finish what is here, give the rest back, and say goodbye."""
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
    worker.state = State.READY
    await _report(worker, lag)
    log.info("worker ready", worker_id=worker.options.worker_id, role=worker.options.role.value)
    await supervisor.stopping.wait()
    await _drain(worker, lag)
    for task in tasks:
        task.cancel()
    await worker.links.close()
    await worker.transport.close()
    worker.close()


async def _drain(worker: Worker, lag: LoopLag) -> None:
    worker.state = State.DRAINING
    worker.token_side.draining = True
    await _report(worker, lag)
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
    """Often while there is something to say, else as a heartbeat."""
    last: WorkerReport | None = None
    silent_s = 0.0
    while True:
        await asyncio.sleep(BUSY_REPORT_S)
        silent_s += BUSY_REPORT_S
        report = report_of(worker, lag)
        if silent_s >= worker.options.report_every_s or _load(report) != _load(last):
            await _report(worker, lag)
            last, silent_s = report, 0.0


def _load(report: WorkerReport | None) -> tuple[object, ...]:
    if report is None:
        return ()
    return report.state, report.queue_tokens, report.demand_blocks, report.running, report.kv_blocks_used


async def _report(worker: Worker, lag: LoopLag) -> None:
    try:
        await worker.broker.publish(REPORTS, report_of(worker, lag))
    except Transient as error:
        log.debug("report not sent", reason=str(error))


def report_of(worker: Worker, lag: LoopLag) -> WorkerReport:
    options, facts, blocks = worker.options, worker.facts, worker.blocks
    waiting = worker.batcher.waiting
    decoding = [s.request for s in worker.sequences.values() if s.token_worker is None]
    incoming = worker.token_side.requests()
    live = [*worker.sequences, *(r.key for r in incoming)]
    return WorkerReport(
        worker_id=options.worker_id,
        service=options.service,
        pid=options.pid,
        role=options.role,
        pool=_observed_pool(worker),
        state=worker.state,
        model=options.model,
        max_model_len=facts.max_model_len,
        link_address=worker.links.address,
        covers=worker.coming.covers,
        queue_tokens=sum(s.pending_tokens for s in waiting) + worker.prefilling_tokens + worker.coming.prompt_tokens(),
        demand_blocks=blocks_at_end([*decoding, *incoming], facts.block_size) + worker.coming.blocks(facts.block_size),
        running=len(worker.sequences) - len(waiting),
        waiting=len(waiting),
        block_size=facts.block_size,
        kv_blocks_total=blocks.total,
        kv_blocks_used=blocks.used_blocks,
        kv_blocks_cached=0,
        kv_blocks_leaked=blocks.leaked(live),
        prefill_tokens_per_s=worker.prefill_speed.tokens_per_s,
        decode_tokens_per_s=worker.decode_speed.tokens_per_s,
        transport=worker.transport.kind,
        transport_bandwidth_gb_s=options.transport_bandwidth_gb_s,
        transport_latency_ms=options.transport_latency_ms,
        loop_lag_p99_s=lag.p99_s,
    )


def _observed_pool(worker: Worker) -> Role:
    """Mixed is what a worker is while it holds, or has been placed, work of the other phase (Splitwise IV-A)."""
    prompt_coming, decode_coming = worker.coming.phases()
    prompts = prompt_coming or bool(worker.batcher.waiting) or bool(worker.prefilling_tokens)
    decodes = decode_coming or bool(worker.batcher.running) or bool(len(worker.token_side))
    home = worker.options.role
    if (home is Role.PROMPT and decodes) or (home is Role.TOKEN and prompts):
        return Role.MIXED
    return home
