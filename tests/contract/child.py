"""The other process of a contract test: `child.py links` echoes every message to its sender."""

import sys

import uvloop

from shared.clock import SystemClock
from shared.link.port import Received
from shared.link.tcp import TcpLinks
from shared.runtime.supervise import Supervisor

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


if __name__ == "__main__":
    uvloop.run({"links": echo_links}[sys.argv[1]]())
