"""Links over TCP: one listener per process, one dialled connection per peer; messages go out on the dialled one only.

After the hello a dialled connection carries message frames and empty frames (pings) one way, and counts of the messages
received (pongs) the other way. A connection that breaks is dialled again unnoticed when the peer had counted every
message on it; else, or when the peer refuses, is another incarnation, or is silent for `lost_after_s`, the peer is Lost
and everything known of it is forgotten, its watch too.
"""

import asyncio
import functools
import secrets
from collections import deque
from dataclasses import dataclass, field

from shared.clock import Clock
from shared.errors import BadFrame, ConfigError
from shared.ids import Address
from shared.link.port import LinkEvent, Lost
from shared.link.tcp_connection import Connection, log
from shared.link.tcp_listener import HELLO_WITHIN_S, Listener
from shared.tasks import Spawn
from shared.wire import address as addresses
from shared.wire.codec import encode
from shared.wire.frames import framed
from shared.wire.hello import INCARNATION_BYTES, NONCE_BYTES, Handshake, Hello
from shared.wire.messages import LinkMessage

MAX_UNSENT_BYTES = 64 << 20
REDIAL_AFTER_S = 0.05
FLUSH_WITHIN_S = 1.0
PING = framed(b"")


@dataclass(slots=True, kw_only=True)
class _Link:
    """A peer that we dial. `down_since` is None exactly while `connection` has passed its hello."""

    peer: Address
    down_since: float | None
    heard_at: float
    trouble: str = "no answer"
    incarnation: bytes | None = None
    connection: Connection | None = None
    unsent: deque[bytes] = field(default_factory=deque)
    unsent_bytes: int = 0
    counted: int = 0  # messages of this connection that the peer has counted

    @property
    def ready(self) -> Connection | None:
        return self.connection if self.down_since is None else None

    @property
    def idle(self) -> bool:
        return not self.unsent and (self.connection is None or self.connection.messages == self.counted)


class TcpLinks:
    """Made by `open`."""

    def __init__(self, *, secret: bytes, spawn: Spawn, clock: Clock, heartbeat_s: float, lost_after_s: float) -> None:
        self._address = Address("")
        self._secret = secret
        self._spawn = spawn
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._lost_after_s = lost_after_s
        self._incarnation = secrets.token_bytes(INCARNATION_BYTES)
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._links: dict[Address, _Link] = {}
        self._dials: set[asyncio.Task[None]] = set()
        self._closing = False
        self._link_ended = asyncio.Event()
        self._tick_due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._listener = Listener(handshake=self._handshake, clock=clock, on_message=self._events.put_nowait)

    @classmethod
    async def open(
        cls,
        *,
        bind: str,
        advertise: str | None,
        secret: bytes,
        spawn: Spawn,
        clock: Clock,
        heartbeat_s: float = 0.5,
        lost_after_s: float = 2.0,
    ) -> "TcpLinks":
        """`bind` and `advertise` are "host" or "host:port". Raises ConfigError when nobody can listen or dial there."""
        links = cls(secret=secret, spawn=spawn, clock=clock, heartbeat_s=heartbeat_s, lost_after_s=lost_after_s)
        links._address = await links._listener.bind(bind=bind, advertise=advertise)
        await links._listener.start()
        links._schedule_tick()
        return links

    @property
    def address(self) -> Address:
        return self._address

    def send(self, peer: Address, message: LinkMessage) -> None:
        data = framed(encode(message))
        if self._closing:
            return
        link = self._link(peer)
        if connection := link.ready:
            connection.write(data)
            connection.messages += 1
            backlog_bytes = connection.backlog_bytes
        else:
            link.unsent.append(data)
            link.unsent_bytes += len(data)
            backlog_bytes = link.unsent_bytes
        if backlog_bytes > MAX_UNSENT_BYTES:
            self._lose(link, f"{backlog_bytes} bytes are waiting to be sent")

    def watch(self, peer: Address) -> None:
        if not self._closing:
            self._link(peer)

    async def receive(self) -> LinkEvent:
        return await self._events.get()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        for link in list(self._links.values()):
            self._finish(link)
        try:
            async with asyncio.timeout(FLUSH_WITHIN_S):
                while self._links:
                    self._link_ended.clear()
                    await self._link_ended.wait()
        except TimeoutError:
            log.warning("link messages unsent at close", peers=list(self._links))
        finally:
            await self._end()

    async def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for task in self._dials:
            task.cancel()
        for link in list(self._links.values()):
            self._forget(link)
        await self._listener.close()

    # ---- a link's life ----------------------------------------------------------------------------------------------

    def _link(self, peer: Address) -> _Link:
        """The link to this peer; dialled if there was none."""
        link = self._links.get(peer)
        if link is None:
            now = self._clock.now()
            link = self._links[peer] = _Link(peer=peer, down_since=now, heard_at=now)
            self._start_dial(link, after_s=0)
        return link

    def _start_dial(self, link: _Link, *, after_s: float) -> None:
        task = self._spawn(self._dial(link, after_s), name=f"dial {link.peer}")
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, link: _Link, after_s: float) -> None:
        """Ends when a connection stands (its hello is still to come) or the link is lost."""
        while self._links.get(link.peer) is link:
            await asyncio.sleep(after_s)
            after_s = REDIAL_AFTER_S
            try:
                host, port = addresses.split(link.peer)
                async with asyncio.timeout(self._lost_after_s):
                    await asyncio.get_running_loop().create_connection(lambda: self._call(link), host, port)
                return
            except ConnectionRefusedError:
                self._lose(link, "connection refused")
            except (ConfigError, ValueError) as error:
                self._lose(link, str(error))
            except (OSError, TimeoutError) as error:
                link.trouble = str(error) or "no answer"

    def _call(self, link: _Link) -> Connection:
        connection = Connection(
            handshake=self._handshake(dialled=link.peer),
            opened_at=self._clock.now(),
            on_ready=functools.partial(self._on_answered, link),
            on_frame=functools.partial(self._on_pong, link),
            on_closed=functools.partial(self._on_broken, link),
        )
        if self._links.get(link.peer) is link:
            link.connection = connection
        else:
            connection.abort()
        return connection

    def _on_answered(self, link: _Link, connection: Connection) -> None:
        peer = connection.handshake.peer
        assert peer is not None
        if link.incarnation not in (None, peer.incarnation):
            self._lose(link, "another process has taken its place")
            return
        link.incarnation = peer.incarnation
        link.down_since, link.heard_at, link.counted = None, self._clock.now(), 0
        for data in link.unsent:
            connection.write(data)
            connection.messages += 1
        link.unsent.clear()
        link.unsent_bytes = 0
        if self._closing:
            self._finish(link)

    def _on_pong(self, link: _Link, connection: Connection, body: bytes) -> None:
        if len(body) != 8:
            raise BadFrame("no pong")
        link.counted = int.from_bytes(body)
        link.heard_at = self._clock.now()

    def _on_broken(self, link: _Link, connection: Connection, reason: str) -> None:
        if self._links.get(link.peer) is not link or link.connection is not connection:
            return
        was_ready, all_counted = link.ready is not None, link.idle
        if connection.untrusted or (was_ready and not all_counted):
            self._lose(link, reason)
            return
        link.connection = None
        if self._closing and was_ready:
            self._forget(link)
            return
        link.trouble = reason
        if link.down_since is None:
            link.down_since = self._clock.now()
        self._start_dial(link, after_s=0 if was_ready else REDIAL_AFTER_S)

    def _lose(self, link: _Link, reason: str) -> None:
        if self._links.get(link.peer) is not link:
            return
        self._forget(link)
        if not self._closing:
            log.info("link lost", peer=link.peer, reason=reason)
            self._events.put_nowait(Lost(peer=link.peer, reason=reason))

    def _forget(self, link: _Link) -> None:
        del self._links[link.peer]
        if link.connection is not None:
            link.connection.abort()
        self._link_ended.set()

    def _finish(self, link: _Link) -> None:
        """Closing: a ready link ends when the peer has read all, one without anything to say ends now."""
        if connection := link.ready:
            connection.finish()
        elif not link.unsent:
            self._forget(link)

    # ---- time -------------------------------------------------------------------------------------------------------

    def _schedule_tick(self) -> None:
        self._tick_due = self._clock.now() + self._heartbeat_s
        self._timer = asyncio.get_running_loop().call_later(self._heartbeat_s, self._tick)

    def _tick(self) -> None:
        now = self._clock.now()
        late_s = now - self._tick_due
        if late_s > self._heartbeat_s:
            self._excuse(late_s)
        self._schedule_tick()
        self._listener.drop_silent_strangers(now)
        for link in list(self._links.values()):
            self._check(link, now)

    def _excuse(self, late_s: float) -> None:
        """This process itself stood still: what its peers said meanwhile is unread, not unsaid."""
        for link in self._links.values():
            link.heard_at += late_s
            if link.down_since is not None:
                link.down_since += late_s

    def _check(self, link: _Link, now: float) -> None:
        patience_s = self._lost_after_s - self._heartbeat_s / 2  # ticks come in steps: judge at the nearest one
        if link.down_since is not None:
            if now - link.down_since >= patience_s:
                self._lose(link, link.trouble)
            elif link.connection is not None and now - link.connection.opened_at > HELLO_WITHIN_S:
                link.connection.drop("no hello in time")
        elif now - link.heard_at >= patience_s:
            self._lose(link, f"silent for {now - link.heard_at:.1f} s")
        elif link.connection is not None and not self._closing:
            link.connection.write(PING)

    def _handshake(self, *, dialled: Address | None = None) -> Handshake:
        nonce = secrets.token_bytes(NONCE_BYTES)
        own = Hello(purpose="link", address=self._address, incarnation=self._incarnation, nonce=nonce)
        return Handshake(secret=self._secret, own=own, dialled=dialled)
