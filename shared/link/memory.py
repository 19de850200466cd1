"""Links within one process, with the faults of a network on call: kill, freeze, partition.

Frames cross as bytes, so what cannot cross TCP cannot cross here. Between a frozen or cut-off pair they are held; after
`lost_after_s` the sender hears Lost and the held frames are gone.
"""

import asyncio
from collections import deque

from shared.errors import BadFrame
from shared.ids import Address
from shared.link.port import LinkEvent, Lost, Received
from shared.wire.codec import decode, encode
from shared.wire.messages import LinkMessage

Pair = tuple[Address, Address]  # who sends, to whom


class MemoryNetwork:
    """All processes of a test. `links(name)` after `kill(name)` is that process's next incarnation."""

    def __init__(self, *, lost_after_s: float = 2.0) -> None:
        self._lost_after_s = lost_after_s
        self._alive: dict[Address, MemoryLinks] = {}
        self._frozen: set[Address] = set()
        self._cut: set[frozenset[Address]] = set()
        self._held: dict[Pair, deque[bytes]] = {}
        self._patience: dict[Pair, asyncio.TimerHandle] = {}

    def links(self, name: str) -> "MemoryLinks":
        address = Address(name)
        if address in self._alive:
            raise ValueError(f"{name} is alive already")
        self._alive[address] = MemoryLinks(network=self, address=address)
        return self._alive[address]

    def kill(self, address: Address) -> None:
        """Everyone with a link to it hears Lost; what it was sent and has not received is gone."""
        if victim := self._alive.pop(address, None):
            victim.die()
        self._frozen.discard(address)
        for pair in [pair for pair in self._patience if address in pair]:
            self._stop_waiting(pair)
        for other in list(self._alive.values()):
            other.lose(address, "killed")

    def freeze(self, address: Address) -> None:
        """It neither receives nor sends until `thaw`; the others find it silent."""
        self._frozen.add(address)
        for other in self._alive.values():
            if other.knows(address):
                self._wait(other.address, address)

    def thaw(self, address: Address) -> None:
        self._frozen.discard(address)
        if links := self._alive.get(address):
            links.release_events()
        self._deliver_held()

    def partition(self, one: Address, other: Address) -> None:
        """Nothing passes between these two until `heal`."""
        self._cut.add(frozenset((one, other)))
        for source, target in ((one, other), (other, one)):
            if source in self._alive and self._alive[source].knows(target):
                self._wait(source, target)

    def heal(self, one: Address, other: Address) -> None:
        self._cut.discard(frozenset((one, other)))
        self._deliver_held()

    def is_frozen(self, address: Address) -> bool:
        return address in self._frozen

    def reach(self, source: Address, target: Address) -> bool:
        """False: nobody is there. Starts the silence if the target does not answer."""
        if target in self._alive and self._blocked(source, target):
            self._wait(source, target)
        return target in self._alive

    def carry(self, source: Address, target: Address, frame: bytes) -> None:
        if self._blocked(source, target) or (source, target) in self._held:
            self._held.setdefault((source, target), deque()).append(frame)
        elif links := self._alive.get(target):
            links.deliver(source, frame)

    def _blocked(self, source: Address, target: Address) -> bool:
        return bool({source, target} & self._frozen) or frozenset((source, target)) in self._cut

    def _wait(self, source: Address, target: Address) -> None:
        if (source, target) not in self._patience and source not in self._frozen:
            loop = asyncio.get_running_loop()
            self._patience[source, target] = loop.call_later(self._lost_after_s, self._give_up, (source, target))

    def _give_up(self, pair: Pair) -> None:
        self._stop_waiting(pair)
        if pair[0] in self._alive:
            self._alive[pair[0]].lose(pair[1], f"silent for {self._lost_after_s} s")

    def _stop_waiting(self, pair: Pair) -> None:
        self._held.pop(pair, None)
        if timer := self._patience.pop(pair, None):
            timer.cancel()

    def _deliver_held(self) -> None:
        for pair in [pair for pair in {**self._patience, **self._held} if not self._blocked(*pair)]:
            frames = self._held.get(pair, deque())
            self._stop_waiting(pair)
            for frame in frames:
                self.carry(*pair, frame)


class MemoryLinks:
    """Made by `MemoryNetwork.links`."""

    def __init__(self, *, network: MemoryNetwork, address: Address) -> None:
        self._network = network
        self._address = address
        self._peers: set[Address] = set()
        self._events: asyncio.Queue[LinkEvent] = asyncio.Queue()
        self._while_frozen: list[LinkEvent] = []
        self._alive = True

    @property
    def address(self) -> Address:
        return self._address

    def send(self, peer: Address, message: LinkMessage) -> None:
        frame = encode(message)
        if self._alive and self._reach(peer):
            self._network.carry(self._address, peer, frame)

    def watch(self, peer: Address) -> None:
        if self._alive:
            self._reach(peer)

    async def receive(self) -> LinkEvent:
        return await self._events.get()

    async def close(self) -> None:
        if self._alive:
            self._network.kill(self._address)

    # ---- called by the network --------------------------------------------------------------------------------------

    def knows(self, peer: Address) -> bool:
        return peer in self._peers

    def deliver(self, peer: Address, frame: bytes) -> None:
        message = decode(frame)
        if not isinstance(message, LinkMessage):
            raise BadFrame(f"{type(message).__name__} does not travel on links")
        self._put(Received(peer=peer, message=message))

    def lose(self, peer: Address, reason: str) -> None:
        if peer in self._peers:
            self._peers.discard(peer)
            self._put(Lost(peer=peer, reason=reason))

    def release_events(self) -> None:
        for event in self._while_frozen:
            self._events.put_nowait(event)
        self._while_frozen.clear()

    def die(self) -> None:
        self._alive = False
        self._events = asyncio.Queue()

    def _reach(self, peer: Address) -> bool:
        self._peers.add(peer)
        if not self._network.reach(self._address, peer):
            asyncio.get_running_loop().call_soon(self.lose, peer, "connection refused")
            return False
        return True

    def _put(self, event: LinkEvent) -> None:
        if self._network.is_frozen(self._address):
            self._while_frozen.append(event)
        else:
            self._events.put_nowait(event)
