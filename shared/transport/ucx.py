"""Bulk transfers over UCX, driven by the event loop: no thread, no polling.

UCX says nothing when the other end closes or stops listening, and proves nobody's identity. So every endpoint has a
tether: an endpoint of the TCP transport, which both sides hold as long as their UCX endpoint, and whose end ends it.
For the rest: receives belong to endpoints (a worker's would outlive them), every buffer stays referenced until UCX has
completed its request, and a request ends by completion or by the close of its endpoint, nothing else.
"""

import asyncio
import secrets
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from shared.clock import SystemClock
from shared.errors import HandoffFailed, PeerLost
from shared.transport.port import HINT, Done, Kind, Route
from shared.transport.tcp import TcpEndpoint, TcpTransport
from shared.transport.ucx_lanes import route_of
from shared.transport.ucx_library import TLS, Library, interface_of
from shared.wire import address as addresses
from shared.wire.terms import LinkKind

TETHER_TAG = 0  # no transfer has id 0
MARK_BYTES = 16
MAX_PROGRESS_S = 0.002
CLOSE_WITHIN_S = 0.2
_TETHER_SIZE = struct.Struct(">H")
log: structlog.stdlib.BoundLogger = structlog.get_logger()


@dataclass(slots=True)
class _Transfer:
    """`buffer` and `array` are held for UCX. `mark`: what a receive buffer ended with when it was posted."""

    endpoint: "UcxEndpoint"
    buffer: memoryview
    array: Any
    done: Done
    mark: bytes | None


class UcxEndpoint:
    """Made by `UcxTransport.endpoint`."""

    def __init__(self, *, transport: "UcxTransport", peer: bytes, ucx: Any, tether: TcpEndpoint) -> None:
        self._transport = transport
        self._peer = peer
        self._ucx = ucx
        self._tether = tether
        self._closed: str | None = None
        self.route: Route | None = None
        loop = asyncio.get_running_loop()
        ucx.set_close_callback(lambda: loop.call_soon(self.fail, "UCX lost the connection"))
        tether.receive(TETHER_TAG, memoryview(bytearray(1)), lambda error: self.fail(str(error)))

    def send(self, tag: int, data: memoryview, done: Done) -> None:
        self._start(self._ucx.tag_send, tag, data, done, mark=None)

    def receive(self, tag: int, into: memoryview, done: Done) -> None:
        """UCX completes a receive whose message is too short: a random mark at the buffer's end must be overwritten.
        So a message of less than 16 bytes, or short by less, passes; those are the checksums' part."""
        mark = secrets.token_bytes(MARK_BYTES) if len(into) >= MARK_BYTES else None
        if mark is not None and self._closed is None:
            into[-MARK_BYTES:] = mark
        self._start(self._ucx.tag_recv, tag, into, done, mark=mark)

    def close(self) -> None:
        self.fail("closed here")

    def fail(self, reason: str) -> None:
        """Cancels every request; each `done` follows as soon as UCX has let go of its buffer."""
        if self._closed is not None:
            return
        self._closed = reason
        self._transport.forget(self._peer, self)
        self._tether.close()
        self._ucx.close_blocking()
        self._transport.cancel_orphans()

    def arrived(self) -> None:
        """A message got through, so it is known by now which way."""
        if self.route is None and self._closed is None and (route := route_of(self._ucx.handle)):
            self.route = route
            if not route.kind.at_least(required := self._transport.required):
                log.warning("kv link is worse than required", via=route.via, required=required.value, hint=HINT)

    def lost(self) -> PeerLost:
        return PeerLost("UCX peer", self._closed or "closed")

    def _start(self, post: Callable[..., Any], tag: int, buffer: memoryview, done: Done, mark: bytes | None) -> None:
        if self._closed is not None:
            asyncio.get_running_loop().call_soon(done, self.lost())
        else:
            self._transport.start(post, tag, _Transfer(self, buffer.cast("B"), None, done, mark))

    @property
    def closed(self) -> bool:
        return self._closed is not None


class UcxTransport:
    """Made by `open`."""

    def __init__(self, *, library: Library, worker: Any, tether: TcpTransport, required: LinkKind) -> None:
        self.required = required
        self._library = library
        self._worker = worker
        self._tether = tether
        self._loop = asyncio.get_running_loop()
        self._now = SystemClock().now  # a loop's own time may stand still within one of its rounds
        self._endpoints: dict[bytes, UcxEndpoint] = {}
        self._under_way: dict[Any, _Transfer] = {}
        self._kicked = False
        self._own: bytes = worker.address.tobytes()
        self._fd: int | None = worker.epoll_file_descriptor
        self._loop.add_reader(self._fd, self._progress)
        self.kick()

    @classmethod
    async def open(
        cls, *, bind: str, advertise: str | None, secret: bytes, required: LinkKind = LinkKind.TCP
    ) -> "UcxTransport":
        """Uses the network interface that has the address `bind`, unless UCX_NET_DEVICES or UCX_TLS say otherwise.
        UCX may use whatever a link that is `required` may need, and a worse one is warned of. Raises ConfigError when
        there is no UCX here."""
        library = Library()
        host, _ = addresses.split(bind)
        worker = library.worker(devices=interface_of(host), tls=TLS[required])
        return cls(
            library=library,
            worker=worker,
            required=required,
            tether=await TcpTransport.open(bind=bind, advertise=advertise, secret=secret),
        )

    @property
    def kind(self) -> Kind:
        return "ucx"

    @property
    def address(self) -> bytes:
        return _TETHER_SIZE.pack(len(self._tether.address)) + self._tether.address + self._own

    async def endpoint(self, address: bytes) -> UcxEndpoint:
        tether_address, worker_address = _split(address)
        tether = await self._tether.endpoint(tether_address)
        if address not in self._endpoints:
            try:
                ucx = self._library.endpoint(self._worker, worker_address)
            except self._library.error as error:
                tether.close()
                raise PeerLost(repr(tether_address), f"UCX: {error}") from error
            self._endpoints[address] = UcxEndpoint(transport=self, peer=address, ucx=ucx, tether=tether)
            self.kick()
        return self._endpoints[address]

    async def close(self) -> None:
        if self._fd is None:
            return
        for endpoint in list(self._endpoints.values()):
            endpoint.fail("transport closed")
        give_up_at = self._loop.time() + CLOSE_WITHIN_S
        while self._under_way and self._loop.time() < give_up_at:
            await asyncio.sleep(0.001)
        self._loop.remove_reader(self._fd)
        self._fd = None
        self._library.let_go(self._worker)
        self._worker = None
        await self._tether.close()

    # ---- called by the endpoints ------------------------------------------------------------------------------------

    def start(self, post: Callable[..., Any], tag: int, transfer: _Transfer) -> None:
        transfer.array = self._library.array(transfer.buffer)
        self._under_way[post(transfer.array, self._library.tag(tag))] = transfer
        self.kick()

    def forget(self, peer: bytes, endpoint: UcxEndpoint) -> None:
        if self._endpoints.get(peer) is endpoint:
            del self._endpoints[peer]

    def kick(self) -> None:
        """Progress soon: whatever was asked of UCX since it was armed would otherwise wait for the next event."""
        if not self._kicked:
            self._kicked = True
            self._loop.call_soon(self._progress)

    def cancel_orphans(self) -> None:
        """Requests of an endpoint that UCX has found broken are the worker's to cancel, not the endpoint's."""
        if self._worker is not None:
            self._worker.cancel_inflight_requests()
            self.kick()

    # ---- progress ---------------------------------------------------------------------------------------------------

    def _progress(self) -> None:
        """Until nothing moves and the descriptor is armed, or the event loop has waited long enough."""
        if self._fd is None:
            return
        self._kicked = False
        pause_at = self._now() + MAX_PROGRESS_S
        while True:
            while self._worker.progress_once():
                if self._now() > pause_at:
                    break
            self._settle()
            if self._now() > pause_at:
                self.kick()
                return
            if self._worker.arm():
                return

    def _settle(self) -> None:
        for request in [request for request in self._under_way if request.completed]:
            transfer = self._under_way.pop(request)
            transfer.done(self._outcome(request, transfer))

    def _outcome(self, request: Any, transfer: _Transfer) -> Exception | None:
        try:
            request.check_error()
        except self._library.truncated:
            return HandoffFailed(f"a message was too long for a buffer of {len(transfer.buffer)} bytes")
        except self._library.error as error:
            if not transfer.endpoint.closed:
                transfer.endpoint.fail(f"UCX: {error}")
            return transfer.endpoint.lost()
        if transfer.mark is not None and transfer.buffer[-MARK_BYTES:] == transfer.mark:
            return HandoffFailed(f"a message was too short for a buffer of {len(transfer.buffer)} bytes")
        transfer.endpoint.arrived()
        return None


def _split(address: bytes) -> tuple[bytes, bytes]:
    """(tether's address, UCX worker's address); raises PeerLost for anything else."""
    if len(address) < _TETHER_SIZE.size:
        raise PeerLost(repr(address), "no UCX address")
    (size_bytes,) = _TETHER_SIZE.unpack_from(address)
    start = _TETHER_SIZE.size
    if len(address) <= start + size_bytes:
        raise PeerLost(repr(address[:40]), "no UCX address")
    return address[start : start + size_bytes], address[start + size_bytes :]
