"""The faults that the memory fabric plays on call."""

import asyncio

from shared.errors import PeerLost
from shared.transport.memory import MemoryEndpoint, MemoryFabric
from shared.transport.port import tag_of


async def pair(fabric: MemoryFabric) -> tuple[bytes, MemoryEndpoint, MemoryEndpoint]:
    one, other = await fabric.open(), await fabric.open()
    return other.address, await one.endpoint(other.address), await other.endpoint(one.address)


def transfer(source: MemoryEndpoint, target: MemoryEndpoint, tag: int) -> tuple[bytearray, list[Exception | None]]:
    into, ends = bytearray(8), list[Exception | None]()
    target.receive(tag, memoryview(into), ends.append)
    source.send(tag, memoryview(b"12345678"), ends.append)
    return into, ends


async def test_a_flipped_bit_arrives_in_the_message_that_was_meant_and_no_other() -> None:
    fabric = MemoryFabric()
    _, one, other = await pair(fabric)
    fabric.flip(matches=lambda tag: tag & 0xFFFF == 3)
    got = [transfer(one, other, tag_of(transfer_id, part))[0] for transfer_id in (1, 2) for part in (2, 3)]
    await asyncio.sleep(0.01)
    assert [bytes(into) for into in got] == [b"12345678", b"12344678", b"12345678", b"12345678"]


async def test_a_dropped_message_ends_with_its_endpoint_only() -> None:
    fabric = MemoryFabric()
    _, one, other = await pair(fabric)
    fabric.drop()
    _, dropped = transfer(one, other, tag_of(1, 0))
    _, arrived = transfer(one, other, tag_of(1, 1))
    await asyncio.sleep(0.01)
    assert dropped == [] and arrived == [None, None]
    one.close()
    await asyncio.sleep(0.01)
    assert [type(end) for end in dropped] == [PeerLost, PeerLost]


async def test_a_delayed_message_arrives_later() -> None:
    fabric = MemoryFabric()
    _, one, other = await pair(fabric)
    fabric.delay_s = 0.05
    _, ends = transfer(one, other, tag_of(1, 0))
    await asyncio.sleep(0.02)
    assert ends == []
    await asyncio.sleep(0.05)
    assert ends == [None, None]


async def test_a_killed_transport_is_lost_to_its_peers() -> None:
    fabric = MemoryFabric()
    address, one, _ = await pair(fabric)
    ends: list[Exception | None] = []
    one.receive(tag_of(1, 0), memoryview(bytearray(1)), ends.append)
    fabric.kill(address)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert [type(end) for end in ends] == [PeerLost]
