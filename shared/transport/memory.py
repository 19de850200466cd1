"""Transfers within one process, as strict as the port allows, with faults on call: flip a byte, drop, delay, kill."""

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass

from shared.errors import HandoffFailed, PeerLost
from shared.transport.port import Done, Kind


@dataclass(frozen=True, slots=True)
class _Posted:
    data: memoryview
    done: Done


class MemoryFabric:
    """The network of all MemoryTransports that share it. A fault hits the next `count` messages that `matches(tag)`."""

    def __init__(self) -> None:
        self.delay_s = 0.0
        self._transports: dict[bytes, MemoryTransport] = {}
        self._numbers = itertools.count(1)
        self._faults: list[_Fault] = []

    async def open(self) -> "MemoryTransport":
        address = f"memory-{next(self._numbers)}".encode()
        self._transports[address] = MemoryTransport(fabric=self, address=address)
        return self._transports[address]

    def flip(self, *, matches: Callable[[int], bool] = lambda tag: True, count: int = 1) -> None:
        """One bit of these messages arrives wrong."""
        self._faults.append(_Fault("flip", matches, count))

    def drop(self, *, matches: Callable[[int], bool] = lambda tag: True, count: int = 1) -> None:
        """These messages never arrive; neither their send nor their receive ends before the endpoint does."""
        self._faults.append(_Fault("drop", matches, count))

    def kill(self, address: bytes) -> None:
        """Every endpoint of it and to it ends."""
        if transport := self._transports.pop(address, None):
            for endpoint in list(transport.endpoints.values()):
                endpoint.fail("closed here")
        for other in self._transports.values():
            if address in other.endpoints:
                asyncio.get_running_loop().call_soon(other.endpoints[address].fail, "closed by the other end")

    def receives_under_way(self) -> int:
        """Receives that were posted anywhere and have not ended."""
        endpoints = [e for transport in self._transports.values() for e in transport.endpoints.values()]
        return sum(endpoint.receives_under_way for endpoint in endpoints)

    def find(self, address: bytes) -> "MemoryTransport | None":
        return self._transports.get(address)

    def fault(self, tag: int) -> str | None:
        for fault in self._faults:
            if fault.count and fault.matches(tag):
                fault.count -= 1
                return fault.what
        return None


@dataclass(slots=True)
class _Fault:
    what: str
    matches: Callable[[int], bool]
    count: int


class MemoryEndpoint:
    """Made by `MemoryTransport.endpoint`. A send that finds no receive posted when it arrives never completes."""

    def __init__(self, *, transport: "MemoryTransport", peer: bytes) -> None:
        self._transport = transport
        self._peer = peer
        self._sends: dict[int, _Posted] = {}
        self._receives: dict[int, _Posted] = {}
        self._closed: str | None = None

    @property
    def route(self) -> None:
        return None

    @property
    def receives_under_way(self) -> int:
        return len(self._receives)

    def send(self, tag: int, data: memoryview, done: Done) -> None:
        if self._post(self._sends, tag, data, done):
            delay_s = self._transport.fabric.delay_s
            asyncio.get_running_loop().call_later(delay_s, self._carry, tag)

    def receive(self, tag: int, into: memoryview, done: Done) -> None:
        self._post(self._receives, tag, into, done)

    def close(self) -> None:
        self.fail("closed here")

    def fail(self, reason: str) -> None:
        if self._closed is not None:
            return
        self._closed = reason
        self._transport.endpoints.pop(self._peer, None)
        for posted in [*self._sends.values(), *self._receives.values()]:
            asyncio.get_running_loop().call_soon(posted.done, self._lost())
        self._sends.clear()
        self._receives.clear()
        if other := self._far_end():
            asyncio.get_running_loop().call_soon(other.fail, "closed by the other end")

    def _post(self, posted: dict[int, _Posted], tag: int, data: memoryview, done: Done) -> bool:
        if tag in posted:
            raise ValueError(f"tag {tag:#x} is used twice")
        if self._closed is not None:
            asyncio.get_running_loop().call_soon(done, self._lost())
            return False
        posted[tag] = _Posted(data.cast("B"), done)
        return True

    def _carry(self, tag: int) -> None:
        other = self._far_end()
        if tag not in self._sends or other is None or tag not in other._receives:
            return
        fault = self._transport.fabric.fault(tag)
        if fault == "drop":
            return
        sent, wanted = self._sends.pop(tag), other._receives.pop(tag)
        if len(sent.data) != len(wanted.data):
            wanted.done(HandoffFailed(f"a message of {len(sent.data)} bytes came for a buffer of {len(wanted.data)}"))
        else:
            wanted.data[:] = sent.data
            if fault == "flip":
                wanted.data[len(wanted.data) // 2] ^= 1
            wanted.done(None)
        sent.done(None)

    def _far_end(self) -> "MemoryEndpoint | None":
        transport = self._transport.fabric.find(self._peer)
        return transport.endpoints.get(self._transport.address) if transport else None

    def _lost(self) -> PeerLost:
        return PeerLost(self._peer.decode(), self._closed or "closed")


class MemoryTransport:
    """Made by `MemoryFabric.open`, or by `open` with a fabric."""

    def __init__(self, *, fabric: MemoryFabric, address: bytes) -> None:
        self.fabric = fabric
        self.endpoints: dict[bytes, MemoryEndpoint] = {}
        self._address = address

    @classmethod
    async def open(cls, fabric: MemoryFabric) -> "MemoryTransport":
        return await fabric.open()

    @property
    def kind(self) -> Kind:
        return "memory"

    @property
    def address(self) -> bytes:
        return self._address

    async def endpoint(self, address: bytes) -> MemoryEndpoint:
        if self.fabric.find(address) is None or self.fabric.find(self._address) is not self:
            raise PeerLost(address.decode(errors="replace"), "nobody is there")
        if address not in self.endpoints:
            self.endpoints[address] = MemoryEndpoint(transport=self, peer=address)
        return self.endpoints[address]

    async def close(self) -> None:
        self.fabric.kill(self._address)
