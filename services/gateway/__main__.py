"""python -m services.gateway"""

import asyncio
import sys

from services.gateway.service import gateway
from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.link.tcp import TcpLinks
from shared.models.catalogue import ModelFiles, resolve
from shared.models.tokenizer import BYTES, load_tokenizer
from shared.runtime.config import Settings
from shared.runtime.launch import launch, secret_of, service_id
from shared.runtime.supervise import Supervisor


async def start(settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    clock, secret = SystemClock(), secret_of(settings)
    name, path = BYTES, BYTES
    if settings.model != BYTES:
        files: ModelFiles = await asyncio.to_thread(resolve, settings.model)
        name, path = files.name, str(files.path)
    tokenizer = load_tokenizer(path)
    links = await TcpLinks.open(
        bind=settings.bind, advertise=settings.advertise, secret=secret, spawn=supervisor.spawn, clock=clock
    )
    try:
        await gateway(
            settings, supervisor, gateway_id=service_id(settings, "gateway"), model=settings.served_model_name or name,
            broker=broker, links=links, tokenizer=tokenizer, clock=clock,
        )  # fmt: skip
    finally:
        await links.close()


if __name__ == "__main__":
    sys.exit(launch("gateway", start))
