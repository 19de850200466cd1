"""Bulk transfers over plain TCP: the fallback where UCX is not to be had, and the tether of UCX endpoints.

Each side of a pair dials the other: what I send goes out on the connection that I dialled, what I receive comes in on
the one that the peer dialled. When either breaks, the endpoint is over on both sides.
"""

import asyncio
import functools
import secrets

from shared.errors import ConfigError, HandoffFailed, PeerLost
from shared.ids import Address
from shared.transport.port import Done, Kind, Route
from shared.transport.tcp_connection import BulkConnection, log
from shared.wire import address as addresses
from shared.wire.hello import INCARNATION_BYTES, NONCE_BYTES, Handshake, Hello
from shared.wire.terms import LinkKind

MAX_STRANGERS = 64
DIAL_WITHIN_S = 2.0


class TcpEndpoint:
    """Made by `TcpTransport.endpoint`."""

    def __init__(self, *, transport: "TcpTransport", peer: bytes, outbound: BulkConnection) -> None:
        self.inbound: BulkConnection | None = None
        self._transport = transport
        self._peer = peer
        self._outbound = outbound
        self._receives: dict[int, tuple[memoryview, Done]] = {}
        self._closed: str | None = None

    @property
    def route(self) -> Route:
        return Route(kind=LinkKind.TCP, via="tcp")

    def send(self, tag: int, data: memoryview, done: Done) -> None:
        if self._closed is not None:
            asyncio.get_running_loop().call_soon(done, self._lost())
        else:
            self._outbound.send(tag, data.cast("B"), done)

    def receive(self, tag: int, into: memoryview, done: Done) -> None:
        if tag in self._receives:
            raise ValueError(f"tag {tag:#x} is used twice")
        if self._closed is not None:
            asyncio.get_running_loop().call_soon(done, self._lost())
        else:
            self._receives[tag] = (into.cast("B"), done)

    def close(self) -> None:
        self.fail("closed here")

    def attach(self, inbound: BulkConnection) -> None:
        self.inbound = inbound
        inbound.destination = self._destination
        inbound.arrived = self._arrived

    def uses(self, connection: BulkConnection) -> bool:
        return connection is self._outbound or connection is self.inbound

    def fail(self, reason: str) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        self._transport.forget(self._peer, self)
        dones = self._outbound.abort()
        if self.inbound is not None:
            self.inbound.abort()
        dones += [done for _, done in self._receives.values()]
        self._receives.clear()
        for done in dones:
            asyncio.get_running_loop().call_soon(done, self._lost())

    def _lost(self) -> PeerLost:
        return PeerLost(self._peer.decode(errors="replace"), self._closed or "closed")

    def _destination(self, tag: int, size_bytes: int) -> memoryview | None:
        if tag not in self._receives:
            return None
        into, done = self._receives[tag]
        if len(into) == size_bytes:
            return into
        del self._receives[tag]
        done(HandoffFailed(f"a message of {size_bytes} bytes came for a buffer of {len(into)}"))
        return None

    def _arrived(self, tag: int) -> None:
        _, done = self._receives.pop(tag)
        done(None)


class TcpTransport:
    """Made by `open`."""

    def __init__(self, *, secret: bytes) -> None:
        self._secret = secret
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._address = Address("")
        self._endpoints: dict[bytes, TcpEndpoint] = {}
        self._dials: dict[bytes, asyncio.Lock] = {}
        self._unclaimed: dict[bytes, BulkConnection] = {}  # of peers that we have no endpoint for yet
        self._strangers: set[BulkConnection] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def open(cls, *, bind: str, advertise: str | None, secret: bytes) -> "TcpTransport":
        """`bind` and `advertise` are "host" or "host:port". Raises ConfigError."""
        transport = cls(secret=secret)
        loop = asyncio.get_running_loop()
        host, port = addresses.split(bind)
        try:
            server = await loop.create_server(transport._accept, host, port, start_serving=False)
        except OSError as error:
            raise ConfigError(f"cannot listen on {bind}: {error}", param="bind") from error
        transport._server = server
        try:
            bound_port = server.sockets[0].getsockname()[1]
            transport._address = addresses.reachable(bind=bind, advertise=advertise, port=bound_port)
        except ConfigError:
            server.close()
            raise
        await server.start_serving()
        return transport

    @property
    def kind(self) -> Kind:
        return "tcp"

    @property
    def address(self) -> bytes:
        return _identity(self._hello())

    async def endpoint(self, address: bytes) -> TcpEndpoint:
        async with self._dials.setdefault(address, asyncio.Lock()):
            if address not in self._endpoints:
                outbound = await self._dial(address)
                endpoint = TcpEndpoint(transport=self, peer=address, outbound=outbound)
                self._endpoints[address] = endpoint
                if inbound := self._unclaimed.pop(address, None):
                    endpoint.attach(inbound)
            return self._endpoints[address]

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for endpoint in list(self._endpoints.values()):
            endpoint.fail("transport closed")
        for connection in [*self._unclaimed.values(), *self._strangers]:
            connection.abort()
        await self._server.wait_closed()

    def forget(self, peer: bytes, endpoint: TcpEndpoint) -> None:
        if self._endpoints.get(peer) is endpoint:
            del self._endpoints[peer]

    # ---- dialling ---------------------------------------------------------------------------------------------------

    async def _dial(self, address: bytes) -> BulkConnection:
        """A connection that has passed its hello with exactly the process that `address` names. Raises PeerLost."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[None] = loop.create_future()
        where = Address(address.decode(errors="replace").partition(" ")[0])
        connection = BulkConnection(
            handshake=Handshake(secret=self._secret, own=self._hello(), dialled=where),
            on_ready=functools.partial(_answer, answered),
            on_closed=functools.partial(self._on_dialled_closed, address, answered),
        )
        try:
            async with asyncio.timeout(DIAL_WITHIN_S):
                host, port = addresses.split(where)
                await loop.create_connection(lambda: connection, host, port)
                await answered
            if _identity(connection.peer) != address:
                raise PeerLost(where, "another process has taken its place")
        except (OSError, TimeoutError, ConfigError, ValueError) as error:
            connection.abort()
            raise PeerLost(where, str(error) or "no answer") from error
        except BaseException:
            connection.abort()
            raise
        return connection

    def _on_dialled_closed(
        self, address: bytes, answered: "asyncio.Future[None]", connection: BulkConnection, reason: str
    ) -> None:
        if not answered.done():
            answered.set_exception(ConnectionError(reason))
        endpoint = self._endpoints.get(address)
        if endpoint is not None and endpoint.uses(connection):
            endpoint.fail(reason)

    # ---- listening --------------------------------------------------------------------------------------------------

    def _accept(self) -> BulkConnection:
        connection = BulkConnection(
            handshake=Handshake(secret=self._secret, own=self._hello()),
            on_ready=self._on_introduced,
            on_closed=self._on_left,
        )
        if len(self._strangers) >= MAX_STRANGERS:
            log.warning("bulk connection refused", reason=f"{MAX_STRANGERS} are waiting for their hello already")
            connection.abort()
        else:
            self._strangers.add(connection)
        return connection

    def _on_introduced(self, connection: BulkConnection) -> None:
        self._strangers.discard(connection)
        connection.destination = lambda _tag, _size_bytes: None
        peer = _identity(connection.peer)
        endpoint = self._endpoints.get(peer)
        if endpoint is not None and endpoint.inbound is None:
            endpoint.attach(connection)
            return
        if endpoint is not None:
            endpoint.fail("the peer has connected anew")
        if older := self._unclaimed.pop(peer, None):
            older.abort()
        self._unclaimed[peer] = connection

    def _on_left(self, connection: BulkConnection, reason: str) -> None:
        self._strangers.discard(connection)
        if not connection.handshake.done:
            return
        peer = _identity(connection.peer)
        if self._unclaimed.get(peer) is connection:
            del self._unclaimed[peer]
        endpoint = self._endpoints.get(peer)
        if endpoint is not None and endpoint.uses(connection):
            endpoint.fail(reason)

    def _hello(self) -> Hello:
        nonce = secrets.token_bytes(NONCE_BYTES)
        return Hello(purpose="bulk", address=self._address, incarnation=self._incarnation, nonce=nonce)


def _answer(answered: "asyncio.Future[None]", _: BulkConnection) -> None:
    if not answered.done():
        answered.set_result(None)


def _identity(hello: Hello) -> bytes:
    """The address of a transport: where it is, and which life of it is meant."""
    return f"{hello.address} {hello.incarnation.hex()}".encode()
