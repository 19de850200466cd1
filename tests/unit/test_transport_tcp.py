"""The TCP transport against strangers, and against frames that its peers must not send."""

import asyncio
import struct
from collections.abc import AsyncIterator

import pytest

from shared.errors import PeerLost
from shared.ids import Address
from shared.transport import tcp_connection
from shared.transport.port import tag_of
from shared.transport.tcp import MAX_STRANGERS, TcpTransport
from shared.wire.address import split
from shared.wire.frames import framed
from shared.wire.hello import Handshake, Hello

SECRET = b"a secret of this mesh"


@pytest.fixture
async def transport() -> AsyncIterator[TcpTransport]:
    transport = await TcpTransport.open(bind="127.0.0.1", advertise=None, secret=SECRET)
    yield transport
    await transport.close()


def where(transport: TcpTransport) -> tuple[str, int]:
    return split(transport.address.decode().partition(" ")[0])


async def ends(reader: asyncio.StreamReader, within_s: float = 1.0) -> None:
    async with asyncio.timeout(within_s):
        try:
            while await reader.read(65536):
                pass
        except ConnectionError:
            pass


async def introduced(
    transport: TcpTransport, purpose: str = "bulk"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(*where(transport))
    own = Hello(purpose=purpose, address=Address("127.0.0.1:1"), incarnation=b"i" * 16, nonce=b"n" * 32)
    dialled = Address(transport.address.decode().partition(" ")[0])
    handshake = Handshake(secret=SECRET, own=own, dialled=dialled)
    writer.write(framed(handshake.opening()[0]))
    while not handshake.done:
        size_bytes = int.from_bytes(await reader.readexactly(4))
        for frame in handshake.take(await reader.readexactly(size_bytes)):
            writer.write(framed(frame))
    return reader, writer


@pytest.mark.parametrize("junk", [b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10_000, bytes(4), framed(b"splitmesh" * 20)])
async def test_junk_is_closed_at_once(transport: TcpTransport, junk: bytes) -> None:
    reader, writer = await asyncio.open_connection(*where(transport))
    writer.write(junk)
    await ends(reader, within_s=0.5)
    writer.close()


async def test_silent_strangers_are_few_and_closed_in_time(
    transport: TcpTransport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tcp_connection, "HELLO_WITHIN_S", 0.3)
    connections = [await asyncio.open_connection(*where(transport)) for _ in range(MAX_STRANGERS)]
    await asyncio.sleep(0.05)
    extra, extra_writer = await asyncio.open_connection(*where(transport))
    await ends(extra, within_s=0.5)
    await asyncio.gather(*(ends(reader, within_s=1.0) for reader, _ in connections))
    for _, writer in [*connections, (extra, extra_writer)]:
        writer.close()


async def test_another_secret_is_refused_on_both_sides(transport: TcpTransport) -> None:
    stranger = await TcpTransport.open(bind="127.0.0.1", advertise=None, secret=b"another")
    for source, target in ((transport, stranger), (stranger, transport)):
        with pytest.raises(PeerLost, match="secret"):
            await source.endpoint(target.address)
    await stranger.close()


async def test_another_process_at_the_same_address_is_refused(transport: TcpTransport) -> None:
    host, port = where(transport)
    old_address = transport.address
    await transport.close()
    successor = await TcpTransport.open(bind=f"{host}:{port}", advertise=None, secret=SECRET)
    other = await TcpTransport.open(bind="127.0.0.1", advertise=None, secret=SECRET)
    with pytest.raises(PeerLost, match="taken its place"):
        await other.endpoint(old_address)
    await successor.close()
    await other.close()


async def test_a_size_on_the_wire_is_never_allocated(transport: TcpTransport) -> None:
    """A peer announces 2**62 bytes that nobody waits for: they are read past, a bufferful at a time."""
    reader, writer = await introduced(transport)
    writer.write(struct.pack(">QQ", tag_of(5, 5), 1 << 62) + b"x" * 100_000)
    await writer.drain()
    await asyncio.sleep(0.05)
    assert not reader.at_eof()
    writer.close()


async def test_the_hello_of_a_link_does_not_open_a_bulk_connection(transport: TcpTransport) -> None:
    with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
        await introduced(transport, purpose="link")
