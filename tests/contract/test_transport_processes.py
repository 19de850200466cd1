"""The real transports between two processes: bits, kills, stops, idle cost."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvloop

from shared.errors import PeerLost
from shared.transport.port import Endpoint, Transport, tag_of
from tests.support.transport import REAL, numbers, open_real, receive, send


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
