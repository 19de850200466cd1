"""The other process of a contract test. `child.py links` echoes every message to its sender; `child.py transport KIND`
takes 30 parts of 1 MiB as transfer 1 and sends each back as transfer 2."""

import asyncio
import functools
import sys

import uvloop

from shared.clock import SystemClock
from shared.link.port import Lost, Received
from shared.link.tcp import TcpLinks
from shared.runtime.supervise import Supervisor
from shared.transport.port import Endpoint, tag_of
from shared.transport.tcp import TcpTransport
from shared.transport.ucx import UcxTransport

SECRET = b"a secret of this mesh"


async def echo_links() -> None:
    async with Supervisor() as supervisor:
        links = await TcpLinks.open(
            bind="127.0.0.1", advertise=None, secret=SECRET, spawn=supervisor.spawn, clock=SystemClock()
        )
        print(links.address, flush=True)
        while True:
            match await links.receive():
                case Received(peer=peer, message=message):
                    links.send(peer, message)
                case Lost():
                    pass


async def echo_transport() -> None:
    adapter = TcpTransport if sys.argv[2] == "tcp" else UcxTransport
    transport = await adapter.open(bind="127.0.0.1", advertise=None, secret=SECRET)
    print(transport.address.hex(), flush=True)
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    endpoint = await transport.endpoint(bytes.fromhex(line))
    ended = asyncio.Event()
    for part in range(30):
        data = bytearray(1 << 20)
        endpoint.receive(tag_of(1, part), memoryview(data), functools.partial(send_back, endpoint, part, data, ended))
    print("posted", flush=True)
    await ended.wait()
    print("lost", flush=True)


def send_back(endpoint: Endpoint, part: int, data: bytearray, ended: asyncio.Event, error: Exception | None) -> None:
    if error is None:
        endpoint.send(tag_of(2, part), memoryview(data), lambda error: ended.set() if error else None)
    else:
        ended.set()


if __name__ == "__main__":
    uvloop.run({"links": echo_links, "transport": echo_transport}[sys.argv[1]]())
