"""python -m services.gateway"""

import asyncio
import sys
from urllib.parse import urlsplit

from services.gateway.service import gateway
from shared.broker.port import Broker
from shared.clock import SystemClock
from shared.errors import ConfigError
from shared.link.tcp import TcpLinks
from shared.models.catalogue import ModelFiles, resolve
from shared.models.tokenizer import BYTES, load_tokenizer
from shared.runtime.config import Settings
from shared.runtime.launch import DEFAULT_SECRET, launch, secret_of, service_id
from shared.runtime.own_address import is_loopback, own_address
from shared.runtime.supervise import Supervisor


async def start(settings: Settings, supervisor: Supervisor, broker: Broker) -> None:
    clock, secret = SystemClock(), secret_of(settings)
    name, path = BYTES, BYTES
    if settings.model != BYTES:
        files: ModelFiles = await asyncio.to_thread(resolve, settings.model)
        name, path = files.name, str(files.path)
    tokenizer = load_tokenizer(path)
    links = await TcpLinks.open(
        bind=await own_address(settings.bind),
        advertise=settings.advertise,
        secret=secret,
        spawn=supervisor.spawn,
        clock=clock,
    )
    try:
        await gateway(
            settings, supervisor, gateway_id=service_id(settings, "gateway"), model=settings.served_model_name or name,
            broker=broker, links=links, tokenizer=tokenizer, clock=clock,
        )  # fmt: skip
    finally:
        await links.close()


def refuse_default_secret(settings: Settings) -> None:
    """The secret that compose.yaml falls back to is known to everybody: good enough for this machine alone."""
    reachable_at = settings.published or settings.host
    if DEFAULT_SECRET not in (settings.mesh_secret, urlsplit(settings.redis_url or "").password):
        return
    if not is_loopback(reachable_at):
        raise ConfigError(
            f"the API would be reachable at {reachable_at} with the default secret: set SPLITMESH_MESH_SECRET and "
            "SPLITMESH_REDIS_PASSWORD to secrets of your own, or publish it at 127.0.0.1 only",
            param="published",
        )


if __name__ == "__main__":
    sys.exit(launch("gateway", start, check=refuse_default_secret))
