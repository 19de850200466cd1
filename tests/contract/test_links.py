"""The link contract: the same tests over memory and TCP. TCP peers that die or stop are processes of their own."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from shared.clock import SystemClock
from shared.ids import Address, RequestId
from shared.link.memory import MemoryLinks, MemoryNetwork
from shared.link.port import LinkEvent, Links, Lost, Received
from shared.link.tcp import TcpLinks
from shared.wire.messages import Chunk, Failed, LinkMessage, Tokens
from tests.support.links import cancel, next_event, nothing_for

HEARTBEAT_S, LOST_AFTER_S = 0.08, 0.32

SECRET = b"a secret of this mesh"


class Peer:
    """Another process that echoes every message to its sender."""

    def __init__(
        self, address: Address, kill: Callable[[], None], freeze: Callable[[], None], thaw: Callable[[], None]
    ):
        self.address, self.kill, self.freeze, self.thaw = address, kill, freeze, thaw


class MemoryMesh:
    def __init__(self, spawn: Any) -> None:
        self._network = MemoryNetwork(lost_after_s=LOST_AFTER_S)
        self._spawn = spawn
        self._numbers = itertools.count()

    async def links(self, at: Address | None = None) -> Links:
        return self._network.links(at or f"process-{next(self._numbers)}")

    async def echo(self) -> Peer:
        network, links = self._network, self._network.links(f"echo-{next(self._numbers)}")

        async def run(links: MemoryLinks) -> None:
            while True:
                match await links.receive():
                    case Received(peer=peer, message=message):
                        links.send(peer, message)
                    case Lost():
                        pass

        self._spawn(run(links), name="echo")
        address = links.address
        return Peer(
            address, lambda: network.kill(address), lambda: network.freeze(address), lambda: network.thaw(address)
        )

    async def close(self) -> None:
        pass


class TcpMesh:
    def __init__(self, spawn: Any, start_child: Any) -> None:
        self._spawn = spawn
        self._start_child = start_child
        self._opened: list[TcpLinks] = []

    async def links(self, at: Address | None = None) -> Links:
        self._opened.append(
            await TcpLinks.open(
                bind=at or "127.0.0.1",
                advertise=None,
                secret=SECRET,
                spawn=self._spawn,
                clock=SystemClock(),
                heartbeat_s=HEARTBEAT_S,
                lost_after_s=LOST_AFTER_S,
            )
        )
        return self._opened[-1]

    async def echo(self) -> Peer:
        child = await self._start_child("links")
        return Peer(
            Address(await child.hear()),
            lambda: child.signal(signal.SIGKILL),
            lambda: child.signal(signal.SIGSTOP),
            lambda: child.signal(signal.SIGCONT),
        )

    async def close(self) -> None:
        for links in self._opened:
            await links.close()


Mesh = MemoryMesh | TcpMesh


@pytest.fixture(params=["memory", "tcp"])
async def mesh(request: pytest.FixtureRequest, spawn: Any, start_child: Any) -> AsyncIterator[Mesh]:
    mesh = MemoryMesh(spawn) if request.param == "memory" else TcpMesh(spawn, start_child)
    yield mesh
    await mesh.close()


async def lost(links: Links, peer: Address) -> float:
    """Seconds until `peer` is reported lost; nothing else may be reported before."""
    start = time.monotonic()
    event = await next_event(links)
    assert isinstance(event, Lost) and event.peer == peer
    return time.monotonic() - start


async def test_messages_arrive_in_order_in_both_directions_at_once(mesh: Mesh) -> None:
    one, other = await mesh.links(), await mesh.links()
    for number in range(500):
        one.send(other.address, cancel(number))
        other.send(one.address, cancel(-number))
    for number in range(500):
        assert await next_event(other) == Received(peer=one.address, message=cancel(number))
        assert await next_event(one) == Received(peer=other.address, message=cancel(-number))


async def test_peers_do_not_mix(mesh: Mesh) -> None:
    hub, spokes = await mesh.links(), [await mesh.links() for _ in range(4)]
    for number in range(50):
        for index, spoke in enumerate(spokes):
            spoke.send(hub.address, cancel(number * 10 + index))
            hub.send(spoke.address, cancel(number * 10 + index))
    by_peer: dict[Address, list[Any]] = {spoke.address: [] for spoke in spokes}
    for _ in range(200):
        event = await next_event(hub)
        assert isinstance(event, Received)
        by_peer[event.peer].append(event.message)
    for index, spoke in enumerate(spokes):
        expected = [cancel(number * 10 + index) for number in range(50)]
        assert by_peer[spoke.address] == expected
        assert [event.message for event in [await next_event(spoke) for _ in range(50)]] == expected  # type: ignore[union-attr]


async def test_large_messages_arrive_whole_between_small_ones(mesh: Mesh) -> None:
    one, other = await mesh.links(), await mesh.links()
    chunk = Chunk(request_id=RequestId("r"), attempt=0, position=0, token_ids=tuple(range(100_000, 700_000)))
    sent: list[LinkMessage] = [cancel(1), Tokens(chunks=(chunk,)), cancel(2), Tokens(chunks=(chunk,)), cancel(3)]
    for message in sent:
        one.send(other.address, message)
    assert [await next_event(other) for _ in sent] == [Received(peer=one.address, message=m) for m in sent]


async def test_a_process_reaches_itself(mesh: Mesh) -> None:
    links = await mesh.links()
    links.send(links.address, cancel(7))
    assert await next_event(links) == Received(peer=links.address, message=cancel(7))


async def test_nobody_at_the_address_is_lost_at_once_and_once_per_attempt(mesh: Mesh) -> None:
    links, gone = await mesh.links(), await mesh.links()
    await gone.close()
    for _ in range(2):
        links.send(gone.address, cancel(1))
        links.send(gone.address, cancel(2))
        assert await lost(links, gone.address) < 0.2
    await nothing_for(links, 0.1)


async def test_a_killed_peer_is_lost_quickly_and_once(mesh: Mesh) -> None:
    links, peer = await mesh.links(), await mesh.echo()
    links.send(peer.address, cancel(1))
    assert await next_event(links) == Received(peer=peer.address, message=cancel(1))
    links.watch(peer.address)
    peer.kill()
    assert await lost(links, peer.address) < 0.3
    await nothing_for(links, LOST_AFTER_S + 2 * HEARTBEAT_S)


async def test_a_stopped_peer_is_lost_in_time_even_if_nothing_is_sent(mesh: Mesh) -> None:
    links, peer = await mesh.links(), await mesh.echo()
    links.watch(peer.address)
    await asyncio.sleep(3 * HEARTBEAT_S)
    peer.freeze()
    assert LOST_AFTER_S / 2 < await lost(links, peer.address) < LOST_AFTER_S + 0.5
    links.send(peer.address, cancel(1))  # still stopped: dialled anew, lost anew
    assert await lost(links, peer.address) < LOST_AFTER_S + 0.5
    peer.thaw()
    links.send(peer.address, cancel(2))
    assert await next_event(links) == Received(peer=peer.address, message=cancel(2))


async def test_a_short_stop_loses_nothing(mesh: Mesh) -> None:
    links, peer = await mesh.links(), await mesh.echo()
    links.watch(peer.address)
    await asyncio.sleep(2 * HEARTBEAT_S)
    peer.freeze()
    links.send(peer.address, cancel(1))
    links.send(peer.address, cancel(2))
    await asyncio.sleep(LOST_AFTER_S / 4)
    peer.thaw()
    assert await next_event(links) == Received(peer=peer.address, message=cancel(1))
    assert await next_event(links) == Received(peer=peer.address, message=cancel(2))


async def test_a_quiet_link_stays(mesh: Mesh) -> None:
    one, other = await mesh.links(), await mesh.links()
    one.watch(other.address)
    await nothing_for(one, 2 * LOST_AFTER_S)
    one.send(other.address, cancel(1))
    assert await next_event(other) == Received(peer=one.address, message=cancel(1))


async def test_another_process_at_the_same_address_means_lost_first(mesh: Mesh) -> None:
    links, first = await mesh.links(), await mesh.links()
    links.send(first.address, cancel(1))
    await next_event(first)
    await first.close()
    second = await mesh.links(at=first.address)
    assert await lost(links, first.address) < 0.3
    links.send(second.address, cancel(2))
    assert await next_event(second) == Received(peer=links.address, message=cancel(2))


async def test_a_cancelled_receive_loses_nothing(mesh: Mesh) -> None:
    one, other = await mesh.links(), await mesh.links()
    got: list[LinkEvent] = []
    for number in range(100):
        waiting = asyncio.create_task(other.receive())
        await asyncio.sleep(0)
        one.send(other.address, cancel(number))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        waiting.cancel()
        try:
            got.append(await waiting)
        except asyncio.CancelledError:
            continue
    while len(got) < 100:
        got.append(await next_event(other))
    assert got == [Received(peer=one.address, message=cancel(number)) for number in range(100)]


async def test_close_delivers_what_was_sent(mesh: Mesh) -> None:
    one, other = await mesh.links(), await mesh.links()
    text = "x" * 100_000
    for number in range(50):  # more than the sockets hold; the first ones before the link stands
        one.send(
            other.address, Failed(request_id=RequestId("r"), attempt=number, retryable=True, code="c", message=text)
        )
    await one.close()
    for number in range(50):
        event = await next_event(other)
        assert isinstance(event, Received) and isinstance(event.message, Failed) and event.message.attempt == number
    one.send(other.address, cancel(1))  # a closed one is silent, and closes twice without harm
    await one.close()
    await nothing_for(other, 0.05)


def test_tcp_links_work_on_uvloop_too() -> None:
    async def talk() -> None:
        async with asyncio.TaskGroup() as group:

            def spawn(coroutine: Any, *, name: str) -> "asyncio.Task[None]":
                return group.create_task(coroutine, name=name)

            async def opened() -> TcpLinks:
                return await TcpLinks.open(
                    bind="127.0.0.1", advertise=None, secret=SECRET, spawn=spawn, clock=SystemClock()
                )

            one, other = await opened(), await opened()
            text = "x" * 1_000_000
            sent = [
                Failed(request_id=RequestId("r"), attempt=n, retryable=True, code="c", message=text) for n in range(9)
            ]
            for message in sent:
                one.send(other.address, message)
            closing = group.create_task(one.close())
            assert [await next_event(other) for _ in sent] == [Received(peer=one.address, message=m) for m in sent]
            await closing
            other.send(one.address, cancel(1))
            assert await lost(other, one.address) < 0.3
            await other.close()

    uvloop.run(talk())
