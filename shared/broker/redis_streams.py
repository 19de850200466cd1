"""The broker over Redis streams, within the command set of Redis 6.2.

Every call is bounded in time (about 1 s, blocking reads `wait_s` + 1 s) and tried once; callers loop. Connections,
consumer groups and scripts are made anew by the next call after Redis was killed, stopped or emptied; entries that a
failed call may have consumed unseen are read back from this consumer's pending list. An entry has one field, `m`, with
the frame. `limit` counts entries per stream.
"""

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import ResponseError

from shared.broker.frames import read_frame
from shared.broker.port import Entry
from shared.broker.redis_calls import NoGroup, RedisCalls
from shared.broker.redis_scripts import LEASE, SETTLE
from shared.clock import SystemClock
from shared.errors import BadFrame, Transient
from shared.ids import EntryId, StreamName
from shared.wire.codec import encode
from shared.wire.messages import StreamMessage
from shared.wire.streams import DEAD_LETTER, KEPT_ENTRIES

FIELD = b"m"
OFFSET_VALID_S = 30.0
NEWEST = EntryId("0-0")

_Reader = tuple[StreamName, str, str]  # stream, group, consumer
_Raw = tuple[EntryId, bytes | None]  # None: deleted while it was pending

_log = structlog.get_logger()


class RedisBroker:
    """Made by `connect`."""

    def __init__(self, calls: RedisCalls, prefix: str, reclaim_after_s: float, max_deliveries: int) -> None:
        self._calls = calls
        self._prefix = prefix
        self._reclaim_after_ms = int(reclaim_after_s * 1000)
        self._max_deliveries = max_deliveries
        self._settle_script = calls.commands.register_script(SETTLE)
        self._lease_script = calls.commands.register_script(LEASE)
        self._clock = SystemClock()
        self._offset_s = 0.0  # Redis's time minus our clock
        self._offset_at = -OFFSET_VALID_S
        self._recovered: set[_Reader] = set()  # group exists, nothing of ours is pending unseen
        self._reclaim_from: dict[_Reader, EntryId] = {}
        self._reclaim_at: dict[_Reader, float] = {}
        self._complained: dict[StreamName, EntryId] = {}

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        prefix: str = "splitmesh:",
        reclaim_after_s: float = 2.0,
        max_deliveries: int = 5,
        patience_s: float = 10.0,
    ) -> "RedisBroker":
        """Waits up to `patience_s` for a Redis that is still starting, then raises Transient; ConfigError for a URL
        or password that cannot work."""
        broker = cls(RedisCalls(url), prefix, reclaim_after_s, max_deliveries)
        clock, jitter = broker._clock, random.Random()
        give_up_at = clock.now() + patience_s
        while True:
            try:
                await broker._measure_offset()
                return broker
            except Transient:
                if clock.now() >= give_up_at:
                    await broker.close()
                    raise
                await asyncio.sleep(jitter.uniform(0.05, 0.5))

    async def publish(self, stream: StreamName, message: StreamMessage) -> EntryId:
        frame = {FIELD: encode(message)}
        keep = KEPT_ENTRIES.get(stream)
        reply = self._calls.commands.xadd(self._key(stream), frame, maxlen=keep, approximate=True)  # type: ignore[arg-type]
        return _id(await self._calls.short(reply))

    async def last_id(self, stream: StreamName) -> EntryId:
        newest = await self._calls.short(self._calls.commands.xrevrange(self._key(stream), count=1))
        return _id(newest[0][0]) if newest else NEWEST

    async def tail(self, after: Mapping[StreamName, EntryId], *, wait_s: float, limit: int = 256) -> list[Entry]:
        position = dict(after)
        give_up_at = self._clock.now() + wait_s
        while position:
            left_s = max(0.0, give_up_at - self._clock.now())
            keys: Any = {self._key(stream): entry_id for stream, entry_id in position.items()}
            reply = self._calls.reads.xread(keys, count=limit, block=_block_ms(left_s))
            lanes = self._lanes(await self._calls.blocking(reply, wait_s=left_s))
            found = [entry for stream, lane in lanes for raw in lane for entry in await self._readable(stream, raw)]
            if found or not lanes:
                return found
            # Nothing but undecodable entries: step over them, else the next read would return them at once.
            position |= {stream: lane[-1][0] for stream, lane in lanes}
        await asyncio.sleep(wait_s)
        return []

    async def discard(self, stream: StreamName, entry_ids: Sequence[EntryId]) -> None:
        if entry_ids:
            await self._calls.short(self._calls.commands.xdel(self._key(stream), *entry_ids))

    async def consume(
        self, stream: StreamName, group: str, consumer: str, *, wait_s: float, limit: int = 16
    ) -> list[Entry]:
        reader = (stream, group, consumer)
        try:
            try:
                taken = await self._take(reader, wait_s, limit)
            except NoGroup:
                self._recovered.discard(reader)
                taken = await self._take(reader, wait_s, limit)
            return [entry for raw, deliveries in taken for entry in await self._acceptable(reader, raw, deliveries)]
        except Transient:
            # Redis may have handed out entries that we never saw.
            self._recovered.discard(reader)
            raise

    async def forward(self, entry: Entry, group: str, outgoing: Sequence[tuple[StreamName, StreamMessage]]) -> bool:
        frames = [(stream, encode(message)) for stream, message in outgoing]
        try:
            return await self._settle(entry.stream, group, entry.entry_id, frames)
        except Transient:
            # Unsettled perhaps; then whoever consumes here next gets it again.
            self._recovered = {reader for reader in self._recovered if reader[:2] != (entry.stream, group)}
            raise

    async def delete(self, stream: StreamName) -> None:
        await self._calls.short(self._calls.commands.unlink(self._key(stream)))

    async def lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        script = self._lease_script(keys=[f"{self._prefix}lease:{name}"], args=[holder, int(ttl_s * 1000)])
        number = await self._calls.short(script)
        return None if number is None else int(number)

    async def ping(self) -> float:
        started = self._clock.now()
        await self._calls.short(self._calls.commands.ping())
        return self._clock.now() - started

    async def close(self) -> None:
        await self._calls.close()

    # ---- taking entries of a group: [((id, frame), deliveries)] ----------------------------------------------------

    async def _take(self, reader: _Reader, wait_s: float, limit: int) -> list[tuple[_Raw, int]]:
        """Our own forgotten entries, else those that others left too long, else new ones."""
        raws: list[_Raw] = []
        if reader not in self._recovered:
            await self._ensure_group(reader)
            raws = await self._read_group(reader, "0", None, limit)
            self._recovered.add(reader)
        raws = raws or await self._reclaim(reader, limit)
        if raws:
            return list(zip(raws, await self._deliveries(reader, raws), strict=True))
        return [(raw, 1) for raw in await self._read_group(reader, ">", wait_s, limit)]

    async def _ensure_group(self, reader: _Reader) -> None:
        """Make the group read from the very beginning: what was published before it existed counts, too."""
        stream, group, _ = reader
        try:
            await self._calls.short(self._calls.commands.xgroup_create(self._key(stream), group, "0", mkstream=True))
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def _read_group(self, reader: _Reader, start: str, wait_s: float | None, limit: int) -> list[_Raw]:
        stream, group, consumer = reader
        block = None if wait_s is None else _block_ms(wait_s)
        reply = self._calls.reads.xreadgroup(group, consumer, {self._key(stream): start}, count=limit, block=block)
        lanes = self._lanes(await self._calls.blocking(reply, wait_s=wait_s or 0.0))
        return [raw for _, lane in lanes for raw in lane]

    async def _reclaim(self, reader: _Reader, limit: int) -> list[_Raw]:
        """Take over what was pending too long; asked for at most four times per reclaim time."""
        now = self._clock.now()
        if now < self._reclaim_at.get(reader, 0.0):
            return []
        stream, group, consumer = reader
        cursor, found, *_ = await self._calls.short(  # from 7.0 on also what was deleted while pending
            self._calls.commands.xautoclaim(
                self._key(stream), group, consumer, self._reclaim_after_ms,
                start_id=self._reclaim_from.get(reader, NEWEST), count=limit,
            )
        )  # fmt: skip
        self._reclaim_from[reader] = _id(cursor)
        if _id(cursor) == NEWEST:
            self._reclaim_at[reader] = now + self._reclaim_after_ms / 4000
        if any(entry_id is None for entry_id, _ in found):
            # 6.2 names no id for an entry deleted while pending; reading our own pending list does.
            self._recovered.discard(reader)
        return [(_id(entry_id), fields.get(FIELD)) for entry_id, fields in found if entry_id is not None]

    async def _deliveries(self, reader: _Reader, raws: Sequence[_Raw]) -> list[int]:
        stream, group, consumer = reader
        pipeline = self._calls.commands.pipeline(transaction=False)
        for entry_id, _ in raws:
            _ = pipeline.xpending_range(self._key(stream), group, entry_id, entry_id, 1, consumer)
        replies = await self._calls.short(pipeline.execute())
        return [reply[0]["times_delivered"] if reply else 1 for reply in replies]

    async def _acceptable(self, reader: _Reader, raw: _Raw, deliveries: int) -> list[Entry]:
        """The entry, or nothing if it went to the dead-letter stream instead."""
        stream, group, _ = reader
        entry_id, frame = raw
        found = await self._readable(stream, raw, deliveries) if deliveries <= self._max_deliveries else []
        if not found:
            dead = [] if frame is None else [(DEAD_LETTER, frame)]
            if await self._settle(stream, group, entry_id, dead) and dead:
                _log.error("entry dead-lettered", stream=stream, entry_id=entry_id, deliveries=deliveries)
        return found

    async def _settle(
        self, stream: StreamName, group: str, entry_id: EntryId, frames: Sequence[tuple[StreamName, bytes]]
    ) -> bool:
        keys = [self._key(stream), *(self._key(outgoing) for outgoing, _ in frames)]
        arguments: list[Any] = [group, entry_id]
        for outgoing, frame in frames:
            arguments += [KEPT_ENTRIES.get(outgoing, 0), frame]
        return bool(await self._calls.short(self._settle_script(keys=keys, args=arguments)))

    # ---- reading replies -------------------------------------------------------------------------------------------

    def _lanes(self, reply: Any) -> list[tuple[StreamName, list[_Raw]]]:
        return [
            (
                StreamName(key.decode().removeprefix(self._prefix)),
                [(_id(entry_id), fields.get(FIELD)) for entry_id, fields in entries],
            )
            for key, entries in reply or []
        ]

    async def _readable(self, stream: StreamName, raw: _Raw, deliveries: int = 1) -> list[Entry]:
        entry_id, frame = raw
        try:
            message = read_frame(frame or b"")
        except BadFrame as error:
            if frame is not None and self._complained.get(stream) != entry_id:
                self._complained[stream] = entry_id
                _log.warning("undecodable entry", stream=stream, entry_id=entry_id, reason=str(error))
            return []
        stored_s = int(entry_id.partition("-")[0]) / 1000
        waited_s = max(0.0, await self._redis_now() - stored_s)
        return [Entry(stream=stream, entry_id=entry_id, message=message, deliveries=deliveries, waited_s=waited_s)]

    async def _redis_now(self) -> float:
        """Seconds on Redis's clock, from an offset that is measured now and then."""
        if self._clock.now() - self._offset_at > OFFSET_VALID_S:
            try:
                await self._measure_offset()
            except Transient:
                self._offset_at = self._clock.now()  # the old offset serves until the next turn
        return self._clock.now() + self._offset_s

    async def _measure_offset(self) -> None:
        seconds, microseconds = await self._calls.short(self._calls.commands.time())
        self._offset_at = self._clock.now()
        self._offset_s = seconds + microseconds / 1e6 - self._offset_at

    def _key(self, stream: StreamName) -> str:
        return self._prefix + stream


def _block_ms(wait_s: float) -> int | None:
    """BLOCK 0 would wait for ever; no BLOCK at all does not wait."""
    return max(1, int(wait_s * 1000)) if wait_s > 0 else None


def _id(raw: bytes) -> EntryId:
    return EntryId(raw.decode())
