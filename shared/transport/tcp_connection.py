"""One TCP connection for bulk data: a hello, then messages of (tag, size, bytes), read straight into their destination.

Messages flow one way only, from the dialer to the listener.
"""

import asyncio
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import structlog

from shared.errors import BadFrame
from shared.transport.port import Done
from shared.wire.frames import framed
from shared.wire.hello import MAX_HELLO_BYTES, Handshake, Hello

log: structlog.stdlib.BoundLogger = structlog.get_logger()

PIECE_BYTES = 256 << 10
HELLO_WITHIN_S = 1.5
_HEADER = struct.Struct(">QQ")
_SIZE = struct.Struct(">I")


@dataclass(slots=True)
class _Outgoing:
    tag: int
    data: memoryview
    done: Done
    sent_bytes: int = -1  # -1: not even the header

    @property
    def ended(self) -> bool:
        return self.sent_bytes == len(self.data)


class BulkConnection(asyncio.BufferedProtocol):
    """`destination(tag, size)` tells where a message goes, None to drop it; `arrived(tag)` that it is there. A dialled
    connection has neither."""

    def __init__(
        self,
        *,
        handshake: Handshake,
        on_ready: "Callable[[BulkConnection], None]",
        on_closed: "Callable[[BulkConnection, str], None]",
    ) -> None:
        self.handshake = handshake
        self.destination: Callable[[int, int], memoryview | None] | None = None
        self.arrived: Callable[[int], None] | None = None
        self._on_ready = on_ready
        self._on_closed = on_closed
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._dropped: str | None = None
        self._outgoing: deque[_Outgoing] = deque()
        self._written: list[Done] = []  # wholly handed to the socket buffer, not yet out of ours
        self._paused = False
        self._scratch = bytearray(64 << 10)
        self._target = memoryview(self._scratch)[: _SIZE.size]
        self._filled_bytes = 0
        self._filled: Callable[[], None] = self._on_hello_size
        self._drain_bytes = 0
        self._tag = 0

    @property
    def peer(self) -> Hello:
        """Who the other end proved to be; only after the hello."""
        assert self.handshake.done and self.handshake.peer is not None
        return self.handshake.peer

    def send(self, tag: int, data: memoryview, done: Done) -> None:
        self._outgoing.append(_Outgoing(tag, data, done))
        self._pump()

    def abort(self, reason: str = "closed here") -> list[Done]:
        """End now: nothing is read or written any more. Returns the callbacks of all unfinished sends."""
        self._dropped = self._dropped or reason
        unfinished = [*self._written, *(item.done for item in self._outgoing)]
        self._written.clear()
        self._outgoing.clear()
        if self._transport is not None:
            self._transport.abort()
        return unfinished

    # ---- asyncio ----------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._dropped is not None:
            self._transport.abort()
            return
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._transport.set_write_buffer_limits(high=0)  # paused means: some bytes are still ours to keep
        self._deadline = asyncio.get_running_loop().call_later(HELLO_WITHIN_S, self._drop, "no hello in time")
        for body in self.handshake.opening():
            self._transport.write(framed(body))

    def connection_lost(self, exc: Exception | None) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._on_closed(self, self._dropped or str(exc or "closed by the other end"))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._target[self._filled_bytes :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled_bytes += nbytes
        if self._filled_bytes < len(self._target) or self._dropped is not None:
            return
        try:
            self._filled()
        except BadFrame as error:
            self._drop(str(error))

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._settle()
        self._pump()

    # ---- reading: each step says what to fill next, and what to do then ---------------------------------------------

    def _expect(self, target: memoryview, then: Callable[[], None]) -> None:
        self._target, self._filled_bytes, self._filled = target, 0, then
        if not target:
            then()

    def _expect_small(self, size_bytes: int, then: Callable[[], None]) -> None:
        self._expect(memoryview(self._scratch)[:size_bytes], then)

    def _on_hello_size(self) -> None:
        (size_bytes,) = _SIZE.unpack(self._target)
        if not 0 < size_bytes <= MAX_HELLO_BYTES:
            raise BadFrame("no hello")
        self._expect_small(size_bytes, self._on_hello)

    def _on_hello(self) -> None:
        assert self._transport is not None and self._deadline is not None
        for answer in self.handshake.take(bytes(self._target)):
            self._transport.write(framed(answer))
        if not self.handshake.done:
            self._expect_small(_SIZE.size, self._on_hello_size)
            return
        self._deadline.cancel()
        self._expect_small(_HEADER.size, self._on_header)
        self._on_ready(self)

    def _on_header(self) -> None:
        if self.destination is None:
            raise BadFrame("data on a connection that only sends")
        self._tag, size_bytes = _HEADER.unpack(self._target)
        target = self.destination(self._tag, size_bytes)
        if target is None:
            self._drain_bytes = size_bytes
            self._drain()
        else:
            self._expect(target, self._on_message)

    def _drain(self) -> None:
        """Read past a message that nobody wants, one bufferful at a time."""
        step_bytes = min(self._drain_bytes, len(self._scratch))
        self._drain_bytes -= step_bytes
        if step_bytes:
            self._expect_small(step_bytes, self._drain)
        else:
            self._expect_small(_HEADER.size, self._on_header)

    def _on_message(self) -> None:
        tag = self._tag
        self._expect_small(_HEADER.size, self._on_header)  # lets go of the destination before its owner hears of it
        if self.arrived is not None:
            self.arrived(tag)

    # ---- writing ----------------------------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Write pieces until the socket takes no more; going on is resume_writing's part."""
        assert self._transport is not None
        while self._outgoing and not self._paused and self._dropped is None:
            item = self._outgoing[0]
            if item.sent_bytes < 0:
                self._transport.write(_HEADER.pack(item.tag, len(item.data)))
                item.sent_bytes = 0
            else:
                piece = item.data[item.sent_bytes : item.sent_bytes + PIECE_BYTES]
                self._transport.write(piece)
                item.sent_bytes += len(piece)
            if item.ended:
                self._written.append(self._outgoing.popleft().done)
        if not self._paused:
            self._settle()

    def _settle(self) -> None:
        loop = asyncio.get_running_loop()
        for done in self._written:
            loop.call_soon(done, None)
        self._written.clear()

    def _drop(self, reason: str) -> None:
        peer = self._transport.get_extra_info("peername") if self._transport else None
        log.warning("bulk connection dropped", reason=reason, peer=peer, authenticated=self.handshake.done)
        self._dropped = self._dropped or reason
        if self._transport is not None:
            self._transport.abort()
