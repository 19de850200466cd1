"""The link port: ordered, authenticated message frames straight from one process to another.

A process has one `Links`: it listens at `address` and sends to any other process's address. Sending dials when
needed, keeps order per peer, and never blocks or raises: a peer that is gone is reported once as `Lost`. Links carry
heartbeats, so a stopped or partitioned peer is noticed as well as a dead one.
"""

from dataclasses import dataclass
from typing import Protocol

from shared.ids import Address
from shared.wire.messages import LinkMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """`peer` is the address at which the sender itself can be reached."""

    peer: Address
    message: LinkMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Lost:
    """The peer refused, reset, answered as another incarnation, or was silent too long. What was sent to it and not
    delivered is gone. A later `send` dials anew."""

    peer: Address
    reason: str


LinkEvent = Received | Lost


class Links(Protocol):
    @property
    def address(self) -> Address:
        """Where others reach this process."""
        ...

    def send(self, peer: Address, message: LinkMessage) -> None:
        """Queue a frame. A peer whose unsent frames exceed the buffer limit is declared lost."""
        ...

    def watch(self, peer: Address) -> None:
        """Keep a link to this peer, so that its loss is noticed even when nothing is sent."""
        ...

    async def receive(self) -> LinkEvent:
        """The next event of any peer. Safe to cancel: nothing is lost by it."""
        ...

    async def close(self) -> None:
        """Flush what is queued (bounded), then close everything."""
        ...
