"""The transport contract: the same tests over memory, TCP and UCX."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from shared.errors import HandoffFailed, PeerLost
from shared.transport.memory import MemoryFabric
from shared.transport.port import MAX_PARTS, Endpoint, Transport, tag_of
from tests.support.transport import KINDS, Open, numbers, open_real, receive, send


@pytest.fixture(params=KINDS)
async def opened(request: pytest.FixtureRequest) -> AsyncIterator[Open]:
    fabric, transports = MemoryFabric(), list[Transport]()

    async def open_one() -> Transport:
        transports.append(await fabric.open() if request.param == "memory" else await open_real(request.param))
        return transports[-1]

    yield open_one
    for transport in transports:
        await transport.close()


async def pair(opened: Open) -> tuple[Endpoint, Endpoint]:
    one, other = await opened(), await opened()
    return await one.endpoint(other.address), await other.endpoint(one.address)


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
