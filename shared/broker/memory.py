"""The broker inside one process: the same promises as Redis, kept by plain lists.

One object is shared by all services of the process. Messages are stored as frames, so what arrives is a decoded copy,
never the sender's object. `limit` counts entries per stream.
"""

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from shared.broker.frames import read_frame
from shared.broker.port import Entry
from shared.clock import Clock, SystemClock
from shared.errors import BadFrame
from shared.ids import EntryId, StreamName
from shared.wire.codec import encode
from shared.wire.messages import StreamMessage
from shared.wire.streams import DEAD_LETTER, KEPT_ENTRIES

_Key = tuple[int, int]

_log = structlog.get_logger()


@dataclass(slots=True)
class _Pending:
    consumer: str
    delivered_at: float
    deliveries: int = 1


@dataclass(slots=True)
class _Group:
    """Everything up to `delivered` was given to some consumer; `pending` is what was not settled since."""

    delivered: _Key = (0, 0)
    pending: dict[_Key, _Pending] = field(default_factory=dict)


@dataclass(slots=True)
class _Lease:
    holder: str = ""
    number: int = 0
    until: float = float("-inf")


@dataclass(slots=True)
class _Stream:
    """Keys ascend; `frames` and `stored_at` have exactly the keys in `keys`."""

    keys: list[_Key] = field(default_factory=list)
    frames: dict[_Key, bytes] = field(default_factory=dict)
    stored_at: dict[_Key, float] = field(default_factory=dict)
    groups: dict[str, _Group] = field(default_factory=dict)

    def after(self, key: _Key, limit: int) -> list[_Key]:
        first = bisect_right(self.keys, key)
        return self.keys[first : first + limit]

    def remove(self, key: _Key) -> None:
        if key in self.frames:
            del self.keys[bisect_left(self.keys, key)], self.frames[key], self.stored_at[key]


class MemoryBroker:
    def __init__(self, clock: Clock | None = None, *, reclaim_after_s: float = 2.0, max_deliveries: int = 5) -> None:
        self._clock = clock or SystemClock()
        self._reclaim_after_s = reclaim_after_s
        self._max_deliveries = max_deliveries
        self._streams: dict[StreamName, _Stream] = {}
        self._leases: dict[str, _Lease] = {}
        self._last_key: _Key = (0, 0)
        self._news = asyncio.Event()

    async def publish(self, stream: StreamName, message: StreamMessage) -> EntryId:
        return self.append(stream, encode(message))

    def append(self, stream: StreamName, frame: bytes) -> EntryId:
        """What `publish` does with the encoded message."""
        key = self._next_key()
        lane = self._lane(stream)
        lane.keys.append(key)
        lane.frames[key] = frame
        lane.stored_at[key] = self._clock.now()
        while len(lane.keys) > KEPT_ENTRIES.get(stream, len(lane.keys)):
            lane.remove(lane.keys[0])
        self._news.set()
        self._news = asyncio.Event()
        return _entry_id(key)

    async def last_id(self, stream: StreamName) -> EntryId:
        lane = self._streams.get(stream)
        return _entry_id(lane.keys[-1] if lane and lane.keys else (0, 0))

    async def tail(self, after: Mapping[StreamName, EntryId], *, wait_s: float, limit: int = 256) -> list[Entry]:
        position = {stream: _key(entry_id) for stream, entry_id in after.items()}
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            news = self._news
            found: list[Entry] = []
            for stream, key in position.items():
                for reached in self._lane(stream).after(key, limit):
                    position[stream] = reached
                    found += self._readable(stream, reached)
            if found or not await _happens(news, deadline):
                return found

    async def discard(self, stream: StreamName, entry_ids: Sequence[EntryId]) -> None:
        for entry_id in entry_ids:
            self._lane(stream).remove(_key(entry_id))

    async def consume(
        self, stream: StreamName, group: str, consumer: str, *, wait_s: float, limit: int = 16
    ) -> list[Entry]:
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            news = self._news
            taken = self._take_over(stream, group, consumer, limit) or self._take_new(stream, group, consumer, limit)
            found = [entry for key in taken for entry in self._acceptable(stream, group, key)]
            if found or (not taken and not await _happens(news, deadline)):
                return found

    async def forward(self, entry: Entry, group: str, outgoing: Sequence[tuple[StreamName, StreamMessage]]) -> bool:
        frames = [(stream, encode(message)) for stream, message in outgoing]
        return self._settle(entry.stream, group, _key(entry.entry_id), frames)

    async def delete(self, stream: StreamName) -> None:
        self._streams.pop(stream, None)

    async def lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        lease, now = self._leases.setdefault(name, _Lease()), self._clock.now()
        if now >= lease.until:
            lease.holder, lease.number = holder, max(lease.number + 1, int(now * 1000))
        elif lease.holder != holder:
            return None
        lease.until = now + ttl_s
        return lease.number

    async def ping(self) -> float:
        return 0.0

    async def close(self) -> None:
        """Nothing to release: other services of the process may still use the object."""

    def check(self) -> None:
        """Invariants: keys ascend and match the frames; nothing is pending beyond what was delivered."""
        for lane in self._streams.values():
            assert lane.keys == sorted(lane.frames) == sorted(lane.stored_at)
            for group in lane.groups.values():
                assert all(key <= group.delivered for key in group.pending)

    def _next_key(self) -> _Key:
        milliseconds = int(self._clock.now() * 1000)
        last_ms, last_sequence = self._last_key
        self._last_key = (milliseconds, 0) if milliseconds > last_ms else (last_ms, last_sequence + 1)
        return self._last_key

    def _lane(self, stream: StreamName) -> _Stream:
        return self._streams.setdefault(stream, _Stream())

    def _group(self, stream: StreamName, group: str) -> _Group:
        return self._lane(stream).groups.setdefault(group, _Group())

    def _take_over(self, stream: StreamName, group: str, consumer: str, limit: int) -> list[_Key]:
        """Entries that some consumer left pending for too long now belong to this one."""
        now, state = self._clock.now(), self._group(stream, group)
        idle = [key for key, one in state.pending.items() if now - one.delivered_at >= self._reclaim_after_s]
        for key in idle[:limit]:
            state.pending[key] = _Pending(consumer, now, state.pending[key].deliveries + 1)
        return idle[:limit]

    def _take_new(self, stream: StreamName, group: str, consumer: str, limit: int) -> list[_Key]:
        state = self._group(stream, group)
        keys = self._lane(stream).after(state.delivered, limit)
        for key in keys:
            state.pending[key] = _Pending(consumer, self._clock.now())
            state.delivered = key
        return keys

    def _acceptable(self, stream: StreamName, group: str, key: _Key) -> list[Entry]:
        """The entry, or nothing if it went to the dead-letter stream instead."""
        lane, state = self._lane(stream), self._group(stream, group)
        if key not in lane.frames:
            del state.pending[key]
            return []
        deliveries = state.pending[key].deliveries
        found = self._readable(stream, key, deliveries) if deliveries <= self._max_deliveries else []
        if not found:
            _log.error("entry dead-lettered", stream=stream, entry_id=_entry_id(key), deliveries=deliveries)
            self._settle(stream, group, key, [(DEAD_LETTER, lane.frames[key])])
        return found

    def _readable(self, stream: StreamName, key: _Key, deliveries: int = 1) -> list[Entry]:
        lane = self._lane(stream)
        try:
            message = read_frame(lane.frames[key])
        except BadFrame as error:
            _log.warning("undecodable entry", stream=stream, entry_id=_entry_id(key), reason=str(error))
            return []
        waited_s = self._clock.now() - lane.stored_at[key]
        return [
            Entry(stream=stream, entry_id=_entry_id(key), message=message, deliveries=deliveries, waited_s=waited_s)
        ]

    def _settle(self, stream: StreamName, group: str, key: _Key, frames: Sequence[tuple[StreamName, bytes]]) -> bool:
        if self._group(stream, group).pending.pop(key, None) is None:
            return False
        self._lane(stream).remove(key)
        for outgoing, frame in frames:
            self.append(outgoing, frame)
        return True


async def _happens(event: asyncio.Event, deadline: float) -> bool:
    """Whether the event comes before the deadline on the loop's clock."""
    try:
        async with asyncio.timeout_at(deadline):
            return await event.wait()
    except TimeoutError:
        return False


def _key(entry_id: EntryId) -> _Key:
    milliseconds, _, sequence = entry_id.partition("-")
    return int(milliseconds), int(sequence or 0)


def _entry_id(key: _Key) -> EntryId:
    return EntryId(f"{key[0]}-{key[1]}")
