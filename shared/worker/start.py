"""Composition of a worker process: transport measured, model loaded, links open; then it serves."""

import os
from typing import cast

import structlog

from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.engine.port import Engine
from shared.link.tcp import TcpLinks
from shared.runtime.config import Settings
from shared.runtime.launch import secret_of, worker_id
from shared.runtime.own_address import own_address
from shared.runtime.supervise import Supervisor
from shared.transport.choose import Wanted, open_transport
from shared.transport.measure import Speed, measure
from shared.wire.address import without_port
from shared.wire.terms import LinkKind, Role
from shared.worker.opening import open_engine_thread, share_of
from shared.worker.options import WorkerOptions
from shared.worker.service import run
from shared.worker.warm import warm
from shared.worker.worker import Worker

log = structlog.get_logger()


async def start(service: str, home: Role, settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    secret, clock, share = secret_of(settings), SystemClock(), share_of(settings)
    wanted = cast(Wanted, settings.transport)  # the option's parser allows these words only
    bind = await own_address(settings.bind)
    kv_bind = await own_address(settings.kv_bind, param="kv_bind") if settings.kv_bind else without_port(bind)
    required = LinkKind(settings.require_transport or LinkKind.TCP)
    transport = await open_transport(
        wanted, bind=kv_bind, advertise=_kv_advertise(settings), secret=secret, required=required
    )
    speed = await measure("ucx" if transport.kind == "ucx" else "tcp", bind=kv_bind, required=required)
    engine_thread = await open_engine_thread(settings, share)
    engine = engine_thread.engine
    fitter = await engine_thread.on_own_cores(lambda engine: warm(engine, clock))
    links = await TcpLinks.open(
        bind=bind, advertise=settings.advertise, secret=secret, spawn=supervisor.spawn, clock=clock
    )
    options = WorkerOptions(
        worker_id=worker_id(settings, service),
        service=service,
        role=Role(settings.role) if settings.role else home,
        model=settings.served_model_name or (engine.facts.name if settings.engine == "hf" else settings.model),
        pid=os.getpid(),
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        tbt_target_s=settings.tbt_target_s,
        push_threshold=_push_threshold(settings, speed, engine),
        transport_link=speed.route.via if speed.route else "",
        transport_bandwidth_gb_s=speed.bandwidth_bytes_per_s / 1e9,
        transport_latency_ms=speed.latency_s * 1e3,
    )
    log.info(
        "kv transport",
        kind=transport.kind,
        link=options.transport_link,
        gb_per_s=round(options.transport_bandwidth_gb_s, 2),
        latency_ms=round(options.transport_latency_ms, 3),
        layerwise_from_tokens=options.push_threshold,
    )
    worker = Worker(
        options=options,
        engine_thread=engine_thread,
        broker=broker,
        links=links,
        transport=transport,
        clock=clock,
        spawn=supervisor.spawn,
        fitter=fitter,
    )
    await run(worker, supervisor)


def _kv_advertise(settings: Settings) -> str | None:
    """The links keep the port that was given to them: two listeners cannot share it."""
    if settings.kv_advertise or settings.kv_bind or settings.advertise is None:
        return settings.kv_advertise
    return without_port(settings.advertise)


def _push_threshold(settings: Settings, speed: Speed, engine: Engine) -> int:
    """Prompt tokens from which pushing layer by layer pays.

    In one piece, everything but the last layer's share of the bytes is exposed after the prefill; layer by layer, each
    layer costs one more message. Both are equal where the bytes of one layer take as long as one message.
    """
    if settings.push != "auto":
        return 0 if settings.push == "layerwise" else engine.facts.max_model_len
    if settings.push_threshold is not None:
        return settings.push_threshold
    return int(speed.per_message_s * speed.bandwidth_bytes_per_s / engine.facts.kv_bytes_per_token)
