"""The broker port: ordered streams of messages, at-least-once work queues, atomic forwarding.

Every call ends within a bounded time: an answer, or Transient when the broker does not give one. A cancelled read may
have consumed an entry; therefore readers are never cancelled for control flow, they return empty after `wait_s`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from shared.ids import EntryId, StreamName
from shared.wire.messages import StreamMessage


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One message as it lies in a stream. `waited_s`: how long it has lain there, by the broker's own clock."""

    stream: StreamName
    entry_id: EntryId
    message: StreamMessage
    deliveries: int = 1
    waited_s: float = 0.0


class Broker(Protocol):
    async def publish(self, stream: StreamName, message: StreamMessage) -> EntryId:
        """Append; exactly one entry or Transient (then: none or one). Streams are trimmed as KEPT_ENTRIES says."""
        ...

    async def last_id(self, stream: StreamName) -> EntryId:
        """Id of the newest entry, or "0-0": where to start tailing for what comes next."""
        ...

    async def tail(self, after: Mapping[StreamName, EntryId], *, wait_s: float, limit: int = 256) -> list[Entry]:
        """Entries after the given ids, in order per stream; empty after `wait_s` without any."""
        ...

    async def discard(self, stream: StreamName, entry_ids: Sequence[EntryId]) -> None:
        """Delete entries that their only reader has taken."""
        ...

    async def consume(
        self, stream: StreamName, group: str, consumer: str, *, wait_s: float, limit: int = 16
    ) -> list[Entry]:
        """New entries for this consumer of a group; each stays pending until it is forwarded. Entries that
        another consumer left pending for longer than the reclaim time are taken over, with their delivery count.
        Undecodable or too often delivered ones go to the dead-letter stream."""
        ...

    async def forward(self, entry: Entry, group: str, outgoing: Sequence[tuple[StreamName, StreamMessage]]) -> bool:
        """Atomically: settle the pending entry, delete it, publish `outgoing`. False if someone else settled it
        before: then nothing was published. Repeating the call is harmless."""
        ...

    async def delete(self, stream: StreamName) -> None:
        """Drop a whole stream (that of a dead worker)."""
        ...

    async def lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        """Take or renew the lease for `ttl_s` from now; None while another holds it. The number fences: it grows with
        every new hold, also beyond what a broker that lost its memory gave out. `ttl_s` 0 gives the lease up."""
        ...

    async def ping(self) -> float:
        """Round trip in seconds."""
        ...

    async def close(self) -> None: ...
