"""Transports opened for a test, and transfers that remember how they ended."""

import asyncio
import random
from collections.abc import Awaitable, Callable

from shared.transport.port import Endpoint, Transport
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport

SECRET = b"a secret of this mesh"
KINDS = ["memory", "tcp", "ucx"]
REAL = ["tcp", "ucx"]

Open = Callable[[], Awaitable[Transport]]


async def open_real(kind: str) -> Transport:
    adapter = TcpTransport if kind == "tcp" else UcxTransport
    return await adapter.open(bind="127.0.0.1", advertise=None, secret=SECRET)


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


def numbers() -> random.Random:
    return random.Random(7)
