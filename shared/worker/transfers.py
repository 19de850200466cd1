"""Bytes of KV on their way: carries out what the hand-off deciders command, and tells them what became of it.

A lane per peer keeps order and isolates peers from each other: one that cannot be reached delays nobody else. Slices
are copied out of the pages when they leave and into the pages when they arrive whole, so no transport ever touches a
page, and blocks can be given back while a transfer is still draining.
"""

import asyncio
import secrets
from collections.abc import Callable, Iterator

import structlog
import xxhash

from shared.engine.port import Engine
from shared.errors import PeerLost
from shared.ids import Attempt
from shared.kv.blocks import BlockAllocator
from shared.kv.layout import KvShape, KvSlice, slice_at
from shared.policy import handoff as h
from shared.tasks import Spawn
from shared.transport.port import Endpoint, Transport, tag_of

log = structlog.get_logger()

LANE_IDLE_S = 600.0  # longer than any transfer takes

Job = h.Push | h.Fill | h.PostReceives
Feed = Callable[[h.SlicePushed | h.SliceArrived | h.ReceivesPosted | h.TransferFailed], None]


class Transfers:
    """expects(key, transfer_id): asked at every arrival whether the bytes may be written into that attempt's blocks."""

    def __init__(
        self,
        *,
        engine: Engine,
        transport: Transport,
        blocks: BlockAllocator,
        shape: KvShape,
        feed: Feed,
        expects: Callable[[Attempt, int], bool],
        spawn: Spawn,
    ) -> None:
        self._engine = engine
        self._transport = transport
        self._blocks = blocks
        self._shape = shape
        self._feed = feed
        self._expects = expects
        self._spawn = spawn
        self._lanes: dict[bytes, asyncio.Queue[Job]] = {}
        self._endpoints: dict[bytes, Endpoint] = {}
        self.bytes_pushed = 0

    def start(self, job: Job) -> None:
        """Queue a job on its peer's lane."""
        lane = self._lanes.get(job.kv_address)
        if lane is None:
            lane = self._lanes[job.kv_address] = asyncio.Queue()
            self._spawn(self._run_lane(job.kv_address, lane), name="kv-lane")
        lane.put_nowait(job)

    def close_endpoint(self, kv_address: bytes) -> None:
        if (endpoint := self._endpoints.pop(kv_address, None)) is not None:
            endpoint.close()

    async def _run_lane(self, kv_address: bytes, lane: "asyncio.Queue[Job]") -> None:
        """Until nothing has been asked of this peer for long: peers come and go."""
        while True:
            try:
                async with asyncio.timeout(LANE_IDLE_S):
                    job = await lane.get()
            except TimeoutError:
                if not lane.empty():
                    continue
                del self._lanes[kv_address]
                self._endpoints.pop(kv_address, None)
                return
            try:
                endpoint = await self._transport.endpoint(kv_address)
                self._endpoints[kv_address] = endpoint
                self._carry_out(job, endpoint)
            except PeerLost as error:
                self._fail(job, error)
            await asyncio.sleep(0)  # a prompt has dozens of slices; let tokens and heartbeats through between two

    def _carry_out(self, job: Job, endpoint: Endpoint) -> None:
        match job:
            case h.Push():
                self._push(job, endpoint)
            case h.Fill():
                for index in job.indices:
                    self._fill(job, endpoint, index)
            case h.PostReceives():
                self._post(job, endpoint)

    def _slice(self, job: Job, index: int) -> KvSlice:
        return slice_at(job.mode, job.request.prompt_tokens, self._shape, index)

    def _fill(self, job: h.Push | h.Fill, endpoint: Endpoint, index: int) -> None:
        junk = memoryview(bytearray(self._slice(job, index).size_bytes(self._shape)))
        endpoint.send(tag_of(job.transfer_id, index), junk, lambda error: None)

    def _push(self, job: h.Push, endpoint: Endpoint) -> None:
        key = job.request.key
        if not self._blocks.owned(key):  # ended since; its receive is posted all the same
            self._fill(job, endpoint, job.index)
            return
        data = self._export(key, self._slice(job, job.index))
        checksum = xxhash.xxh3_64_intdigest(data)
        self.bytes_pushed += len(data)

        def done(error: Exception | None) -> None:
            if error is not None:
                self._fail(job, error)

        endpoint.send(tag_of(job.transfer_id, job.index), data, done)
        self._feed(h.SlicePushed(key=key, transfer_id=job.transfer_id, index=job.index, checksum=checksum))

    def _post(self, job: h.PostReceives, endpoint: Endpoint) -> None:
        key = job.request.key
        if not self._expects(key, job.transfer_id):
            return
        for index in job.indices:
            self._receive(key, job, endpoint, index)
        self._feed(h.ReceivesPosted(key=key, transfer_id=job.transfer_id, kv_address=self._transport.address))

    def _receive(self, key: Attempt, job: h.PostReceives, endpoint: Endpoint, index: int) -> None:
        piece = self._slice(job, index)
        buffer = self._engine.receive_buffer(piece.size_bytes(self._shape))

        def done(error: Exception | None) -> None:
            if not self._expects(key, job.transfer_id):
                return
            if error is not None:
                self._fail(job, error)
                return
            self._import(key, piece, buffer)
            checksum = xxhash.xxh3_64_intdigest(buffer)
            self._feed(h.SliceArrived(key=key, transfer_id=job.transfer_id, index=index, checksum=checksum))

        endpoint.receive(tag_of(job.transfer_id, index), buffer, done)

    def _export(self, key: Attempt, piece: KvSlice) -> memoryview:
        blocks = self._blocks.owned(key)
        layers = range(piece.layer_start, piece.layer_end)
        parts = [self._engine.export_kv(i, blocks, piece.token_start, piece.token_end) for i in layers]
        return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))

    def _import(self, key: Attempt, piece: KvSlice, data: memoryview) -> None:
        blocks = self._blocks.owned(key)
        size = piece.size_bytes(self._shape) // (piece.layer_end - piece.layer_start)
        for number, layer in enumerate(range(piece.layer_start, piece.layer_end)):
            part = data[number * size : (number + 1) * size]
            self._engine.import_kv(layer, blocks, piece.token_start, piece.token_end, part)

    def _fail(self, job: Job, error: Exception) -> None:
        log.warning("kv transfer failed", transfer=job.transfer_id, reason=str(error))
        self._feed(h.TransferFailed(key=job.request.key, transfer_id=job.transfer_id, reason=str(error)))


def random_transfer_ids() -> Iterator[int]:
    while True:
        yield secrets.randbelow((1 << 48) - 1) + 1
