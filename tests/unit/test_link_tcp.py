"""TCP links against strangers, broken networks and pauses of their own."""

import asyncio
import struct
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.clock import SystemClock
from shared.errors import ConfigError
from shared.ids import Address, RequestId, ServiceId
from shared.link import tcp, tcp_listener
from shared.link.port import Lost, Received
from shared.link.tcp import TcpLinks
from shared.link.tcp_listener import MAX_STRANGERS
from shared.wire.address import split
from shared.wire.codec import encode
from shared.wire.frames import framed
from shared.wire.hello import Handshake, Hello
from shared.wire.messages import Failed
from shared.wire.reports import ServiceReport
from shared.wire.terms import State
from tests.support.links import cancel, next_event, nothing_for

HEARTBEAT_S, LOST_AFTER_S = 0.08, 0.32

SECRET = b"a secret of this mesh"


class Opener:
    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []
        self._opened: list[TcpLinks] = []

    def spawn(self, coroutine: Any, *, name: str) -> "asyncio.Task[None]":
        self._tasks.append(asyncio.create_task(coroutine, name=name))
        return self._tasks[-1]

    async def links(self, *, bind: str = "127.0.0.1", secret: bytes = SECRET, advertise: str | None = None) -> TcpLinks:
        links = await TcpLinks.open(
            bind=bind,
            advertise=advertise,
            secret=secret,
            spawn=self.spawn,
            clock=SystemClock(),
            heartbeat_s=HEARTBEAT_S,
            lost_after_s=LOST_AFTER_S,
        )
        self._opened.append(links)
        return links

    async def close(self) -> None:
        for links in self._opened:
            await links.close()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        assert [one for one in results if isinstance(one, Exception)] == []


@pytest.fixture
async def opener() -> AsyncIterator[Opener]:
    opener = Opener()
    yield opener
    await opener.close()


class Proxy:
    """A network in between: `cut` breaks its connections, `deaf` makes it swallow everything."""

    def __init__(self) -> None:
        self.target: Address | None = None
        self.deaf = False
        self._writers: list[asyncio.StreamWriter] = []

    async def open(self) -> Address:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return Address(f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.target is not None
        far_reader, far_writer = await asyncio.open_connection(*split(self.target))
        self._writers += [writer, far_writer]
        await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if not self.deaf:
                    writer.write(data)
        except ConnectionError:
            pass
        writer.close()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        self.cut()
        await asyncio.sleep(0.01)


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    proxy = Proxy()
    yield proxy
    await proxy.close()


async def still_serves(opener: Opener, links: TcpLinks) -> None:
    friend = await opener.links()
    friend.send(links.address, cancel(99))
    assert await next_event(links) == Received(peer=friend.address, message=cancel(99))


async def closed_within(reader: asyncio.StreamReader, seconds: float) -> float:
    start = time.monotonic()
    async with asyncio.timeout(seconds):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - start


def hello(address: str, nonce: bytes = b"n" * 32) -> Hello:
    return Hello(purpose="link", address=Address(address), incarnation=b"i" * 16, nonce=nonce)


async def test_another_secret_is_refused_on_both_sides(opener: Opener) -> None:
    links, stranger = await opener.links(), await opener.links(secret=b"another secret")
    for source, target in ((stranger, links), (links, stranger)):
        source.send(target.address, cancel(1))
        event = await next_event(source)
        assert isinstance(event, Lost) and "secret" in event.reason
        await nothing_for(target, 0.05)


@pytest.mark.parametrize(
    "junk",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\xff" * 100_000,
        struct.pack(">I", 0) * 1000,
        framed(encode(cancel(1))) * 10,
        framed(b"splitmesh" + b"\x01" * 200),
        framed(hello("127.0.0.1:1").pack()) + framed(b"\0" * 32) + framed(encode(cancel(1))),
    ],
)
async def test_a_stranger_injects_nothing_and_is_closed_at_once(opener: Opener, junk: bytes) -> None:
    links = await opener.links()
    reader, writer = await asyncio.open_connection(*split(links.address))
    writer.write(junk)
    assert await closed_within(reader, 1.0) < 0.5
    writer.close()
    await still_serves(opener, links)


async def test_a_recorded_hello_is_worth_nothing_later(opener: Opener) -> None:
    links = await opener.links()
    reader, writer = await asyncio.open_connection(*split(links.address))
    handshake = Handshake(secret=SECRET, own=hello("127.0.0.1:1"), dialled=links.address)
    said = [framed(frame) for frame in handshake.opening()]
    writer.write(said[0])
    while not handshake.done:
        size = int.from_bytes(await reader.readexactly(4))
        said += [framed(frame) for frame in handshake.take(await reader.readexactly(size))]
    said.append(framed(encode(cancel(1))))
    writer.write(b"".join(said[1:]))
    assert await next_event(links) == Received(peer=Address("127.0.0.1:1"), message=cancel(1))
    replay_reader, replay = await asyncio.open_connection(*split(links.address))
    replay.write(b"".join(said))
    assert await closed_within(replay_reader, 1.0) < 0.5
    await nothing_for(links, 0.05)
    writer.write(framed(encode(cancel(2))))  # the true one is still connected
    assert await next_event(links) == Received(peer=Address("127.0.0.1:1"), message=cancel(2))
    replay.close()
    writer.close()


async def test_what_an_authenticated_peer_must_not_say_closes_its_connection(opener: Opener) -> None:
    links = await opener.links()
    report = ServiceReport(service_id=ServiceId("x"), service="router", pid=1, state=State.READY)
    for nonsense in (b"\xc1 no msgpack", encode(report)):
        reader, writer = await asyncio.open_connection(*split(links.address))
        handshake = Handshake(secret=SECRET, own=hello("127.0.0.1:1"), dialled=links.address)
        writer.write(framed(handshake.opening()[0]))
        while not handshake.done:
            size = int.from_bytes(await reader.readexactly(4))
            for frame in handshake.take(await reader.readexactly(size)):
                writer.write(framed(frame))
        writer.write(framed(nonsense))
        assert await closed_within(reader, 1.0) < 0.5
        writer.close()
    await still_serves(opener, links)


async def test_silent_strangers_are_few_and_closed_in_time(opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcp_listener, "HELLO_WITHIN_S", 0.3)
    links = await opener.links()
    connections = [await asyncio.open_connection(*split(links.address)) for _ in range(MAX_STRANGERS)]
    await asyncio.sleep(0.05)
    extra, extra_writer = await asyncio.open_connection(*split(links.address))
    assert await closed_within(extra, 1.0) < 0.5
    assert not connections[0][0].at_eof()
    await asyncio.gather(*(closed_within(reader, 1.0) for reader, _ in connections))
    for _, writer in connections:
        writer.close()
    extra_writer.close()
    await still_serves(opener, links)


async def test_a_break_with_nothing_under_way_passes_unnoticed(opener: Opener, proxy: Proxy) -> None:
    one, other = await opener.links(), await opener.links(advertise=await proxy.open())
    proxy.target = Address(f"127.0.0.1:{split(_bound(other))[1]}")
    one.send(other.address, cancel(1))
    assert await next_event(other) == Received(peer=one.address, message=cancel(1))
    await asyncio.sleep(2 * HEARTBEAT_S)  # the pong has counted it
    for number in range(2, 5):
        proxy.cut()
        await asyncio.sleep(0.02)
        one.send(other.address, cancel(number))
        assert await next_event(other) == Received(peer=one.address, message=cancel(number))
        await asyncio.sleep(2 * HEARTBEAT_S)
    await nothing_for(one, 0.05)


async def test_a_break_with_a_message_under_way_is_a_loss(opener: Opener, proxy: Proxy) -> None:
    one, other = await opener.links(), await opener.links(advertise=await proxy.open())
    proxy.target = Address(f"127.0.0.1:{split(_bound(other))[1]}")
    one.watch(other.address)
    await asyncio.sleep(2 * HEARTBEAT_S)
    proxy.deaf = True
    one.send(other.address, cancel(1))
    await asyncio.sleep(0.02)
    proxy.cut()
    assert isinstance(await next_event(one), Lost)


async def test_a_partition_is_noticed_in_time(opener: Opener, proxy: Proxy) -> None:
    one, other = await opener.links(), await opener.links(advertise=await proxy.open())
    proxy.target = Address(f"127.0.0.1:{split(_bound(other))[1]}")
    one.watch(other.address)
    await asyncio.sleep(2 * HEARTBEAT_S)
    proxy.deaf = True
    start = time.monotonic()
    assert isinstance(await next_event(one), Lost)
    assert time.monotonic() - start < LOST_AFTER_S + 0.5


async def test_an_own_pause_is_not_the_peers_silence(opener: Opener) -> None:
    one, other = await opener.links(), await opener.links()
    one.watch(other.address)
    await asyncio.sleep(2 * HEARTBEAT_S)
    time.sleep(1.5 * LOST_AFTER_S)  # noqa: ASYNC251 - the pause is the test
    await nothing_for(one, LOST_AFTER_S)


async def test_a_peer_that_takes_nothing_is_lost_when_the_buffer_is_full(
    opener: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp, "MAX_UNSENT_BYTES", 1 << 20)
    links = await opener.links()
    server = await asyncio.start_server(lambda _r, _w: asyncio.sleep(1), "127.0.0.1", 0)
    deaf = Address(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
    message = Failed(request_id=RequestId("r"), attempt=0, retryable=True, code="c", message="x" * 300_000)
    for _ in range(4):
        links.send(deaf, message)
    event = await next_event(links)
    assert isinstance(event, Lost) and "waiting to be sent" in event.reason
    server.close()


async def test_addresses_that_cannot_work_are_refused(opener: Opener) -> None:
    taken = await opener.links()
    for bind, advertise in ((taken.address, None), ("0.0.0.0", None), ("127.0.0.1:http", None), ("0.0.0.0", "[::]:5")):
        with pytest.raises(ConfigError):
            await opener.links(bind=bind, advertise=advertise)
    for nowhere in ("127.0.0.1:no-port", "\ufffd\ufffd", "\0:1", ""):
        taken.send(Address(nowhere), cancel(1))
        assert isinstance(await next_event(taken), Lost)


def _bound(links: TcpLinks) -> str:
    """Where the listener really is, behind the proxy that it advertises."""
    server = links._listener._server
    assert server is not None
    return f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
