"""One TCP connection between two processes: a hello, then frames; whatever is wrong closes it and is logged."""

import asyncio
import socket
from collections.abc import Callable
from typing import cast

import structlog

from shared.errors import BadFrame
from shared.ids import Address
from shared.wire.codec import MAX_FRAME_BYTES
from shared.wire.frames import Splitter, framed
from shared.wire.hello import MAX_HELLO_BYTES, Handshake

log: structlog.stdlib.BoundLogger = structlog.get_logger()


class Connection(asyncio.Protocol):
    """Calls `on_ready` once the other end has proved itself, `on_frame` per frame after that, `on_closed` at the end.

    `on_frame` may raise BadFrame. `untrusted`: the other end failed the hello. `messages`: how many the owner took or
    wrote on this connection.
    """

    def __init__(
        self,
        *,
        handshake: Handshake,
        opened_at: float,
        on_ready: "Callable[[Connection], None]",
        on_frame: "Callable[[Connection, bytes], None]",
        on_closed: "Callable[[Connection, str], None]",
    ) -> None:
        self.handshake = handshake
        self.opened_at = opened_at
        self.messages = 0
        self.untrusted = False
        self._on_ready = on_ready
        self._on_frame = on_frame
        self._on_closed = on_closed
        self._splitter = Splitter(MAX_HELLO_BYTES)
        self._transport: asyncio.Transport | None = None
        self._dropped: str | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._dropped is not None:
            self._transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for body in self.handshake.opening():
            self.write(framed(body))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._splitter.feed(data):
                if self._dropped is not None:
                    return
                self._take(body)
        except BadFrame as error:
            self.untrusted = not self.handshake.done
            self.drop(str(error))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_closed(self, self._dropped or str(exc or "closed by the other end"))

    @property
    def peer_address(self) -> Address:
        """The address that the other end proved to be; only after the hello."""
        assert self.handshake.done and self.handshake.peer is not None
        return self.handshake.peer.address

    def write(self, data: bytes) -> None:
        if self._transport is not None and self._dropped is None:
            self._transport.write(data)

    @property
    def backlog_bytes(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport else 0

    def finish(self) -> None:
        """Write what is left, then end; the other end closes when it has read all of it."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def drop(self, reason: str) -> None:
        """End now; what is unsent is lost."""
        if self._dropped is not None:
            return
        self._dropped = reason
        peer = self._transport.get_extra_info("peername") if self._transport else None
        log.warning("link connection dropped", reason=reason, peer=peer, authenticated=self.handshake.done)
        self.abort()

    def abort(self) -> None:
        self._dropped = self._dropped or "closed here"
        if self._transport is not None:
            self._transport.abort()

    def _take(self, body: bytes) -> None:
        if self.handshake.done:
            self._on_frame(self, body)
        else:
            self._greet(body)

    def _greet(self, body: bytes) -> None:
        for answer in self.handshake.take(body):
            self.write(framed(answer))
        if self.handshake.done:
            self._splitter.limit_bytes = MAX_FRAME_BYTES
            self._on_ready(self)
