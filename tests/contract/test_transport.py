"""The transport contract: the same tests over memory, TCP and UCX."""

import asyncio
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvloop

from shared.errors import HandoffFailed, PeerLost
from shared.transport.memory import MemoryFabric
from shared.transport.port import MAX_PARTS, Endpoint, Transport, tag_of
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport

SECRET = b"a secret of this mesh"
KINDS = ["memory", "tcp", "ucx"]
REAL = ["tcp", "ucx"]

Open = Callable[[], Awaitable[Transport]]


async def open_real(kind: str) -> Transport:
    adapter = TcpTransport if kind == "tcp" else UcxTransport
    return await adapter.open(bind="127.0.0.1", advertise=None, secret=SECRET)


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    fabric, transports = MemoryFabric(), list[Transport]()

    async def open_one() -> Transport:
        transports.append(await fabric.open() if request.param == "memory" else await open_real(request.param))
        return transports[-1]

    yield open_one
    for transport in transports:
        await transport.close()


class Transfer:
    """`done` as the port wants it, and a future for the test."""

    def __init__(self) -> None:
        self.ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def __call__(self, error: Exception | None) -> None:
        self.ended.set_result(error)  # a second call raises

    async def result(self, within_s: float = 5.0) -> Exception | None:
        async with asyncio.timeout(within_s):
            return await asyncio.shield(self.ended)


def send(endpoint: Endpoint, tag: int, data: bytes) -> Transfer:
    transfer = Transfer()
    endpoint.send(tag, memoryview(data), transfer)
    return transfer


def receive(endpoint: Endpoint, tag: int, size_bytes: int) -> tuple[bytearray, Transfer]:
    into, transfer = bytearray(size_bytes), Transfer()
    endpoint.receive(tag, memoryview(into), transfer)
    return into, transfer


async def pair(opened: Open) -> tuple[Endpoint, Endpoint]:
    one, other = await opened(), await opened()
    return await one.endpoint(other.address), await other.endpoint(one.address)


def numbers() -> random.Random:
    return random.Random(7)


async def test_a_message_arrives_bit_for_bit_and_both_sides_hear_of_it(opened: Open) -> None:
    one, other = await pair(opened)
    into, received = receive(other, tag_of(1, 0), 1000)
    data = numbers().randbytes(1000)
    sent = send(one, tag_of(1, 0), data)
    assert await received.result() is None and await sent.result() is None
    assert into == data


async def test_many_transfers_of_many_sizes_both_ways_in_any_order(opened: Open) -> None:
    one, other = await pair(opened)
    dice = numbers()
    sizes = [1, 15, 16, 17, 4096, 8191, 8192, 8193, 65_536, 100_003, 1 << 20, (3 << 20) + 1] + [
        dice.randrange(1, 300_000) for _ in range(60)
    ]
    jobs = []
    for source, target, transfer_id in ((one, other, 2), (other, one, 2**48 - 1)):
        for part, size_bytes in enumerate(sizes):
            tag, data = tag_of(transfer_id, part if part else MAX_PARTS - 1), dice.randbytes(size_bytes)
            jobs.append((source, tag, data, *receive(target, tag, size_bytes)))
    dice.shuffle(jobs)
    sends = [send(source, tag, data) for source, tag, data, _, _ in jobs]
    for _, _, data, into, received in jobs:
        assert await received.result() is None
        assert into == data
    assert [await one.result() for one in sends] == [None] * len(sends)


async def test_done_is_never_called_within_the_call(opened: Open) -> None:
    one, other = await pair(opened)
    _, received = receive(other, tag_of(1, 0), 10)
    sent = send(one, tag_of(1, 0), b"0123456789")
    assert not received.ended.done() and not sent.ended.done()
    await received.result()
    _, pending = receive(other, tag_of(1, 1), 10)
    other.close()
    assert not pending.ended.done()
    await pending.result()


async def test_peers_do_not_mix(opened: Open) -> None:
    hub, spokes = await opened(), [await opened() for _ in range(3)]
    jobs = []
    for index, spoke in enumerate(spokes):
        to_hub, from_hub = await spoke.endpoint(hub.address), await hub.endpoint(spoke.address)
        data = bytes([index]) * 50_000
        jobs.append((data, *receive(from_hub, tag_of(index + 1, 0), 50_000), send(to_hub, tag_of(index + 1, 0), data)))
    for data, into, received, _ in jobs:
        assert await received.result() is None
        assert into == data


async def test_there_is_one_endpoint_per_peer_also_for_simultaneous_calls(opened: Open) -> None:
    one, other = await opened(), await opened()
    first, second = await asyncio.gather(one.endpoint(other.address), one.endpoint(other.address))
    assert first is second is await one.endpoint(other.address)


async def test_a_transport_reaches_itself(opened: Open) -> None:
    one = await opened()
    endpoint = await one.endpoint(one.address)
    into, received = receive(endpoint, tag_of(1, 0), 100_000)
    send(endpoint, tag_of(1, 0), b"x" * 100_000)
    assert await received.result() is None and into == b"x" * 100_000


async def test_a_message_that_nobody_waits_for_disturbs_no_other(opened: Open) -> None:
    one, other = await pair(opened)
    untouched, never = receive(other, tag_of(9, 9), 500_000)
    send(one, tag_of(1, 0), b"unwanted" * 50_000)
    into, received = receive(other, tag_of(2, 0), 8)
    send(one, tag_of(2, 0), b"expected")
    assert await received.result() is None and into == b"expected"
    await asyncio.sleep(0.05)
    assert not never.ended.done() and b"unwanted" not in untouched


@pytest.mark.parametrize("sent_bytes", [100, 60_000, 200_000])
async def test_another_size_fails_the_receive_and_nothing_else(opened: Open, sent_bytes: int) -> None:
    one, other = await pair(opened)
    _, wrong = receive(other, tag_of(1, 0), 100_000)
    into, right = receive(other, tag_of(1, 1), 50_000)
    send(one, tag_of(1, 0), b"x" * sent_bytes)
    send(one, tag_of(1, 1), b"y" * 50_000)
    assert isinstance(await wrong.result(), HandoffFailed)
    assert await right.result() is None and into == b"y" * 50_000


@pytest.mark.parametrize("closing_side", ["sender", "receiver"])
async def test_close_fails_everything_under_way_on_both_sides(opened: Open, closing_side: str) -> None:
    one, other = await pair(opened)
    _, settled = receive(other, tag_of(1, 0), 10)
    send(one, tag_of(1, 0), b"0123456789")
    assert await settled.result() is None
    waiting = [receive(other, tag_of(2, part), 1 << 20)[1] for part in range(5)]
    waiting += [receive(one, tag_of(3, 0), 10)[1]]
    big = bytes(32 << 20)
    _, partly = receive(other, tag_of(4, 0), len(big))
    sent = send(one, tag_of(4, 0), big)
    (one if closing_side == "sender" else other).close()
    start = time.monotonic()
    for transfer in [*waiting, partly]:
        assert isinstance(await transfer.result(), PeerLost)
    assert isinstance(await sent.result(), PeerLost | None)
    assert time.monotonic() - start < 0.5


async def test_a_closed_endpoint_refuses_and_a_new_one_works(opened: Open) -> None:
    one, other = await opened(), await opened()
    for generation in range(1, 5):
        to_other, to_one = await one.endpoint(other.address), await other.endpoint(one.address)
        for round_trip in range(2):
            into, received = receive(to_one, tag_of(generation, round_trip), 100_000)
            send(to_other, tag_of(generation, round_trip), bytes([generation]) * 100_000)
            assert await received.result() is None and into == bytes([generation]) * 100_000
        _, pending = receive(to_one, tag_of(generation, 9), 10)
        (to_other if generation % 2 else to_one).close()
        assert isinstance(await pending.result(), PeerLost)
        for endpoint in (to_other, to_one):
            assert isinstance(await receive(endpoint, tag_of(99, 0), 10)[1].result(), PeerLost)
            assert isinstance(await send(endpoint, tag_of(99, 1), b"x").result(), PeerLost)


async def test_nothing_is_written_into_a_buffer_after_its_receive_has_failed(opened: Open) -> None:
    one, other = await pair(opened)
    big = b"\xff" * (64 << 20)
    into, received = receive(other, tag_of(1, 0), len(big))
    send(one, tag_of(1, 0), big)
    await asyncio.sleep(0.002)
    other.close()
    if await received.result() is not None:
        into[:] = bytes(len(into))
        await asyncio.sleep(0.1)
        assert not any(into)


async def test_a_closed_transport_is_lost_to_its_peers(opened: Open) -> None:
    one, other = await opened(), await opened()
    to_other, to_one = await one.endpoint(other.address), await other.endpoint(one.address)
    _, waiting = receive(to_other, tag_of(1, 0), 10)
    _, own = receive(to_one, tag_of(1, 0), 10)
    await other.close()
    assert isinstance(await waiting.result(), PeerLost) and isinstance(await own.result(), PeerLost)
    with pytest.raises(PeerLost):
        await one.endpoint(other.address)


async def test_an_address_that_is_none_is_refused(opened: Open) -> None:
    transport = await opened()
    for address in (b"", b"\xff\xff", b"127.0.0.1:no", b"\x00\x05127.0.0.1:1 00", transport.address[:-3]):
        with pytest.raises(PeerLost):
            await transport.endpoint(address)


# ---- peers in a process of their own ---------------------------------------------------------------------------------


@pytest.fixture(params=REAL)
async def real(request: pytest.FixtureRequest) -> AsyncIterator[Transport]:
    transport = await open_real(request.param)
    yield transport
    await transport.close()


async def connected(real: Transport, start_child: Any) -> tuple[Any, Endpoint]:
    """The child receives 1 MiB parts 0 to 29 of transfer 1 and sends each one back as transfer 2; nothing else."""
    child = await start_child("transport", real.kind)
    address = bytes.fromhex(await child.hear())
    child.tell(real.address.hex())
    endpoint = await real.endpoint(address)
    assert await child.hear() == "posted"
    return child, endpoint


async def test_another_process_gets_and_gives_every_bit(real: Transport, start_child: Any) -> None:
    _, endpoint = await connected(real, start_child)
    dice = numbers()
    jobs = []
    for part in range(30):
        data = dice.randbytes(1 << 20)
        jobs.append((data, *receive(endpoint, tag_of(2, part), 1 << 20)))
        send(endpoint, tag_of(1, part), data)
    for data, into, received in jobs:
        assert await received.result() is None and into == data


async def test_a_killed_process_ends_its_transfers_at_once(real: Transport, start_child: Any) -> None:
    child, endpoint = await connected(real, start_child)
    receives = [receive(endpoint, tag_of(2, part), 1 << 20)[1] for part in range(3)]
    unmatched = send(endpoint, tag_of(7, 0), bytes(32 << 20)) if real.kind == "ucx" else None
    await asyncio.sleep(0.1)
    start = time.monotonic()
    child.signal(signal.SIGKILL)
    for transfer in receives:
        assert isinstance(await transfer.result(), PeerLost)
    assert unmatched is None or isinstance(await unmatched.result(), PeerLost)
    assert time.monotonic() - start < 0.3


async def test_a_process_killed_in_the_middle_leaves_no_transfer_open(real: Transport, start_child: Any) -> None:
    child, endpoint = await connected(real, start_child)
    receives = [receive(endpoint, tag_of(2, part), 1 << 20)[1] for part in range(30)]
    sends = [send(endpoint, tag_of(1, part), bytes(1 << 20)) for part in range(30)]
    assert await receives[3].result() is None
    child.signal(signal.SIGKILL)
    results = [await transfer.result() for transfer in [*sends, *receives]]
    assert all(isinstance(result, PeerLost | None) for result in results)
    assert isinstance(await receive(endpoint, tag_of(3, 0), 10)[1].result(), PeerLost)


async def test_a_stopped_process_can_be_closed_upon(real: Transport, start_child: Any) -> None:
    child, endpoint = await connected(real, start_child)
    child.signal(signal.SIGSTOP)
    sends = [send(endpoint, tag_of(1, part), bytes(1 << 20)) for part in range(30)]
    _, waiting = receive(endpoint, tag_of(2, 0), 1 << 20)
    await asyncio.sleep(0.1)
    assert not waiting.ended.done()
    start = time.monotonic()
    endpoint.close()
    assert isinstance(await waiting.result(), PeerLost)
    assert isinstance(await sends[-1].result(), PeerLost)
    assert time.monotonic() - start < 0.3
    child.signal(signal.SIGCONT)
    assert await child.hear() == "lost"


def test_an_idle_ucx_transport_with_receives_posted_costs_no_processor_time() -> None:
    async def idle() -> float:
        one, other = await open_real("ucx"), await open_real("ucx")
        to_other, to_one = await one.endpoint(other.address), await other.endpoint(one.address)
        _, received = receive(to_one, tag_of(1, 0), 1 << 20)
        send(to_other, tag_of(1, 0), bytes(1 << 20))
        assert await received.result() is None
        waiting = [receive(to_one, tag_of(2, part), 1 << 20) for part in range(30)]
        await asyncio.sleep(0.1)
        start_s = time.process_time()
        await asyncio.sleep(0.5)
        used_s = time.process_time() - start_s
        await one.close()
        await other.close()
        assert all([isinstance(await transfer.result(), PeerLost) for _, transfer in waiting])
        return used_s

    assert uvloop.run(idle()) < 0.025


@pytest.mark.parametrize("kind", REAL)
def test_bulk_data_crosses_under_uvloop_too(kind: str) -> None:
    async def cross() -> None:
        one, other = await open_real(kind), await open_real(kind)
        to_other, to_one = await one.endpoint(other.address), await other.endpoint(one.address)
        data = numbers().randbytes(5 << 20)
        jobs = [
            (*receive(to_one, tag_of(1, part), len(data)), send(to_other, tag_of(1, part), data)) for part in range(4)
        ]
        for into, received, sent in jobs:
            assert await received.result() is None and await sent.result() is None and into == data
        await one.close()
        await other.close()

    uvloop.run(cross())
