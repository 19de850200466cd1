"""Which transport a worker gets: UCX where it works, else TCP, and never silently."""

from typing import Literal

import structlog

from shared.errors import ConfigError
from shared.transport.port import Transport
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport
from shared.wire import address as addresses
from shared.wire.terms import LinkKind

Wanted = Literal["auto", "ucx", "tcp"]

log: structlog.stdlib.BoundLogger = structlog.get_logger()


async def open_transport(
    kind: Wanted, *, bind: str, advertise: str | None, secret: bytes, required: LinkKind = LinkKind.TCP,
    refuses: bool = True,
) -> Transport:  # fmt: skip
    """Listens on the host of `bind`, on a port of its own. `required`: the least that its links should be, and must be
    if it `refuses` worse ones. Raises ConfigError when the wanted kind cannot work here."""
    bind = _host(bind)
    advertise = None if advertise is None else _host(advertise)
    if kind != "tcp":
        try:
            return await UcxTransport.open(
                bind=bind, advertise=advertise, secret=secret, required=required, refuses=refuses
            )
        except ConfigError as error:
            if kind == "ucx" or required is not LinkKind.TCP:
                raise
            log.warning("no UCX, the KV cache travels over plain TCP", reason=str(error))
    if required is not LinkKind.TCP:
        raise ConfigError(f"--transport tcp cannot be the {required} that is required", param="require_transport")
    return await TcpTransport.open(bind=bind, advertise=advertise, secret=secret)


def _host(text: str) -> str:
    """The links have the port that was asked for; two listeners cannot share it."""
    host, _ = addresses.split(text)
    return f"[{host}]" if ":" in host else host
