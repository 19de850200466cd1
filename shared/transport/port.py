"""The transport port: tagged bulk transfers into buffers that the receiver has posted before.

Rules (they come from UCX, and hold for every adapter):
- a receive is posted before the peer is told to send; a send that nobody receives never completes;
- a tag is used once: 48 random bits of transfer id and 16 bits of part number;
- one transfer cannot be cancelled: an unwanted one is drained, its buffer stays referenced until `done`;
- closing an endpoint fails everything under way on it, on both sides; that is the answer to a lost or late peer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from shared.wire.terms import LinkKind

Kind = Literal["ucx", "tcp", "memory"]

MAX_PARTS = 1 << 16
HINT = "do both workers share the IPC and PID namespaces, and see the devices? see docs/operations.md"


def tag_of(transfer_id: int, part: int) -> int:
    """64-bit tag of one part (a layer, or a slice of one) of a transfer."""
    if not (0 <= part < MAX_PARTS and 0 < transfer_id < 1 << 48):
        raise ValueError(f"transfer_id {transfer_id} or part {part} out of range")
    return transfer_id << 16 | part


# Called on the event loop when a transfer ends: None, or why it failed (PeerLost).
Done = Callable[[Exception | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """How bulk gets to a peer. via: means and device, such as "tcp/eth1"."""

    kind: LinkKind
    via: str


class Endpoint(Protocol):
    """One peer, reached by the address that it sent over an authenticated link."""

    @property
    def route(self) -> Route | None:
        """None until the first message has shown it, and where nobody can tell."""
        ...

    def send(self, tag: int, data: memoryview, done: Done) -> None:
        """Start sending; the buffer must not change until `done`. Completion means "buffer reusable", not "arrived"."""
        ...

    def receive(self, tag: int, into: memoryview, done: Done) -> None:
        """Post a receive of exactly `len(into)` bytes. A message of another size fails it."""
        ...

    def close(self) -> None:
        """Abort: every transfer under way on this endpoint ends with PeerLost."""
        ...


class Transport(Protocol):
    @property
    def kind(self) -> Kind: ...

    @property
    def address(self) -> bytes:
        """What a peer needs to reach this transport; goes over an authenticated link only."""
        ...

    async def endpoint(self, address: bytes) -> Endpoint:
        """The endpoint to a peer; one per peer, made on first use. Raises PeerLost."""
        ...

    async def close(self) -> None: ...
