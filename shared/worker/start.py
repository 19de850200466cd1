"""Composition of a worker process: transport measured, model loaded, links open; then it serves."""

import asyncio
import os
from typing import cast

import structlog

from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.engine.choose import open_engine
from shared.engine.port import Engine
from shared.link.tcp import TcpLinks
from shared.models.catalogue import resolve
from shared.runtime.config import Settings
from shared.runtime.launch import secret_of, worker_id
from shared.runtime.supervise import Supervisor
from shared.transport.choose import Wanted, open_transport
from shared.transport.measure import Speed, measure
from shared.wire.terms import Role
from shared.worker.options import WorkerOptions
from shared.worker.service import run
from shared.worker.warm import warm
from shared.worker.worker import Worker

log = structlog.get_logger()


async def start(service: str, home: Role, settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    secret, clock = secret_of(settings), SystemClock()
    wanted = cast(Wanted, settings.transport)  # the option's parser allows these words only
    transport = await open_transport(wanted, bind=settings.bind, advertise=settings.advertise, secret=secret)
    speed = await measure("ucx" if transport.kind == "ucx" else "tcp", bind=settings.bind)
    engine = await asyncio.to_thread(_load, settings)
    fitter = await asyncio.to_thread(warm, engine, clock)
    links = await TcpLinks.open(
        bind=settings.bind, advertise=settings.advertise, secret=secret, spawn=supervisor.spawn, clock=clock
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
        transport_bandwidth_gb_s=speed.bandwidth_bytes_per_s / 1e9,
        transport_latency_ms=speed.latency_s * 1e3,
    )
    log.info(
        "kv transport",
        kind=transport.kind,
        gb_per_s=round(options.transport_bandwidth_gb_s, 2),
        latency_ms=round(options.transport_latency_ms, 3),
        layerwise_from_tokens=options.push_threshold,
    )
    worker = Worker(
        options=options,
        engine=engine,
        broker=broker,
        links=links,
        transport=transport,
        clock=clock,
        spawn=supervisor.spawn,
        fitter=fitter,
    )
    await run(worker, supervisor)


def _load(settings: Settings) -> Engine:
    files = resolve(settings.model) if settings.engine == "hf" else None
    return open_engine(
        settings.engine,
        files,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads,
        max_model_len=settings.max_model_len,
        kv_bytes=settings.kv_memory,
        block_size=settings.block_size,
        paced_model=settings.paced_model,
    )


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
