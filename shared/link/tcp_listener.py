"""The listening half of TcpLinks: who proves to know the mesh secret may send messages, everyone else is dropped."""

import asyncio
from collections.abc import Callable

from shared.clock import Clock
from shared.errors import BadFrame, ConfigError
from shared.ids import Address
from shared.link.port import Received
from shared.link.tcp_connection import Connection
from shared.wire import address as addresses
from shared.wire.codec import decode
from shared.wire.frames import framed
from shared.wire.hello import Handshake
from shared.wire.messages import LinkMessage

MAX_STRANGERS = 64
HELLO_WITHIN_S = 1.5


class Listener:
    """`bind` makes it; it hears nothing before `start`."""

    def __init__(
        self, *, handshake: Callable[[], Handshake], clock: Clock, on_message: Callable[[Received], None]
    ) -> None:
        self._handshake = handshake
        self._clock = clock
        self._on_message = on_message
        self._known: dict[Address, Connection] = {}
        self._strangers: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def bind(self, *, bind: str, advertise: str | None) -> Address:
        """The address that others dial. Raises ConfigError."""
        host, port = addresses.split(bind)
        try:
            self._server = await asyncio.get_running_loop().create_server(self._accept, host, port, start_serving=False)
        except OSError as error:
            raise ConfigError(f"cannot listen on {bind}: {error}", param="bind") from error
        try:
            return addresses.reachable(bind=bind, advertise=advertise, port=self._server.sockets[0].getsockname()[1])
        except ConfigError:
            self._server.close()
            raise

    async def start(self) -> None:
        assert self._server is not None
        await self._server.start_serving()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for connection in [*self._known.values(), *self._strangers]:
            connection.abort()
        if self._server is not None:
            await self._server.wait_closed()

    def drop_silent_strangers(self, now: float) -> None:
        for stranger in [one for one in self._strangers if now - one.opened_at > HELLO_WITHIN_S]:
            stranger.drop("no hello in time")

    def _accept(self) -> Connection:
        connection = Connection(
            handshake=self._handshake(),
            opened_at=self._clock.now(),
            on_ready=self._on_introduced,
            on_frame=self._on_frame,
            on_closed=self._on_left,
        )
        if len(self._strangers) >= MAX_STRANGERS:
            connection.drop(f"{MAX_STRANGERS} connections are waiting for their hello already")
        else:
            self._strangers.add(connection)
        return connection

    def _on_introduced(self, connection: Connection) -> None:
        self._strangers.discard(connection)
        if older := self._known.get(connection.peer_address):
            older.abort()  # its last messages must not come after the first ones of the new connection
        self._known[connection.peer_address] = connection

    def _on_frame(self, connection: Connection, body: bytes) -> None:
        if not body:
            connection.write(framed(connection.messages.to_bytes(8)))
            return
        message = decode(body)
        if not isinstance(message, LinkMessage):
            raise BadFrame(f"{type(message).__name__} does not travel on links")
        connection.messages += 1
        self._on_message(Received(peer=connection.peer_address, message=message))

    def _on_left(self, connection: Connection, reason: str) -> None:
        self._strangers.discard(connection)
        hello = connection.handshake.peer
        if hello is not None and self._known.get(hello.address) is connection:
            del self._known[hello.address]
