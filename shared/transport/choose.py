"""Which transport a worker gets: UCX where it works, else TCP, and never silently."""

from typing import Literal

import structlog

from shared.errors import ConfigError
from shared.transport.port import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport
from shared.wire.terms import LinkKind

Wanted = Literal["auto", "ucx", "tcp"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def open_transport(
    kind: Wanted, *, bind: str, advertise: str | None, secret: bytes, required: LinkKind = LinkKind.TCP
) -> Transport:
    """`bind` and `advertise` are "host" or "host:port"; any free port unless given. `required`: the least that its
    links should be; `measure` judges. Raises ConfigError when the wanted kind cannot work here."""
    if kind != "tcp":
        try:
            return await UcxTransport.open(bind=bind, advertise=advertise, secret=secret, required=required)
        except ConfigError as error:
            if kind == "ucx" or required is not LinkKind.TCP:
                raise
            log.warning("no UCX, the KV cache travels over plain TCP", reason=str(error))
    if required is not LinkKind.TCP:
        raise ConfigError(f"--transport tcp cannot be the {required} that is required", param="require_transport")
    return await TcpTransport.open(bind=bind, advertise=advertise, secret=secret)
