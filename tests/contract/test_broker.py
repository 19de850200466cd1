"""The broker contract: the same tests over memory and a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import redis.asyncio

from shared.broker.memory import MemoryBroker
from shared.broker.port import Broker, Entry
from shared.broker.redis_streams import RedisBroker
from shared.errors import BadFrame
from shared.ids import EntryId, ServiceId, StreamName
from shared.wire.codec import encode
from shared.wire.messages import Cancel
from shared.wire.reports import ServiceReport
from shared.wire.streams import DEAD_LETTER, KEPT_ENTRIES, PLACEMENTS, REPORTS
from shared.wire.terms import State

QUEUE, OUT, OTHER = StreamName("queue"), StreamName("out"), StreamName("other")
GROUP = "group"
RECLAIM_S = 0.15
START = EntryId("0-0")

Append = Callable[[StreamName, bytes], Awaitable[EntryId]]


def report(name: str) -> ServiceReport:
    return ServiceReport(service_id=ServiceId(name), service="router", pid=1, state=State.READY)


def names(entries: list[Entry]) -> list[str]:
    return [entry.message.service_id for entry in entries if isinstance(entry.message, ServiceReport)]


class Mesh:
    """`broker` and `peer` are the views of two processes on the same streams; `append` writes raw bytes."""

    def __init__(self, broker: Broker, peer: Broker, append: Append) -> None:
        self.broker, self.peer, self.append = broker, peer, append

    async def consume(self, broker: Broker | None = None, *, consumer: str = "a", **options: Any) -> list[Entry]:
        options = {"wait_s": 0.02} | options
        return await (broker or self.broker).consume(QUEUE, GROUP, consumer, **options)

    async def length(self, stream: StreamName) -> int:
        return len(await self.broker.tail({stream: START}, wait_s=0, limit=100_000))


@pytest.fixture(params=["memory", "redis", "system_redis"])
async def mesh(request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    if request.param == "memory":
        memory = MemoryBroker(reclaim_after_s=RECLAIM_S, max_deliveries=3)

        async def append(stream: StreamName, frame: bytes) -> EntryId:
            return memory.append(stream, frame)

        yield Mesh(memory, memory, append)
        memory.check()
        return
    url = request.getfixturevalue(f"{request.param}_url")
    brokers = [await RedisBroker.connect(url, reclaim_after_s=RECLAIM_S, max_deliveries=3) for _ in range(2)]
    client = redis.asyncio.Redis.from_url(url)

    async def append_redis(stream: StreamName, frame: bytes) -> EntryId:
        entry_id = await client.xadd(f"splitmesh:{stream}", {"m": frame})
        assert isinstance(entry_id, bytes)
        return EntryId(entry_id.decode())

    yield Mesh(brokers[0], brokers[1], append_redis)
    for broker in brokers:
        await broker.close()
    await client.aclose()


async def test_publish_then_tail_returns_messages_in_order(mesh: Mesh) -> None:
    ids = [await mesh.broker.publish(OUT, report(str(number))) for number in range(5)]
    entries = await mesh.peer.tail({OUT: START}, wait_s=1)
    assert [entry.entry_id for entry in entries] == ids
    assert names(entries) == ["0", "1", "2", "3", "4"]
    assert entries[0] == Entry(stream=OUT, entry_id=ids[0], message=report("0"), waited_s=entries[0].waited_s)


async def test_tail_goes_on_after_the_given_id_and_honours_the_limit(mesh: Mesh) -> None:
    ids = [await mesh.broker.publish(OUT, report(str(number))) for number in range(5)]
    assert names(await mesh.peer.tail({OUT: ids[0]}, wait_s=0, limit=2)) == ["1", "2"]


async def test_tail_reads_many_streams_at_once(mesh: Mesh) -> None:
    await mesh.broker.publish(OUT, report("out"))
    await mesh.broker.publish(OTHER, report("other"))
    entries = await mesh.peer.tail({OUT: START, OTHER: START}, wait_s=0)
    assert {entry.stream: names([entry]) for entry in entries} == {OUT: ["out"], OTHER: ["other"]}


async def test_tail_waits_for_news_and_gives_up_after_wait_s(mesh: Mesh) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    assert await mesh.broker.tail({OUT: START}, wait_s=0.1) == []
    assert 0.09 <= loop.time() - began < 0.6
    waiting = loop.create_task(mesh.broker.tail({OUT: START}, wait_s=5))
    await asyncio.sleep(0.02)
    await mesh.peer.publish(OUT, report("late"))
    assert names(await waiting) == ["late"]


async def test_tail_of_nothing_waits_too(mesh: Mesh) -> None:
    began = asyncio.get_running_loop().time()
    assert await mesh.broker.tail({}, wait_s=0.05) == []
    assert asyncio.get_running_loop().time() - began >= 0.045


async def test_tail_skips_what_it_cannot_decode_without_spinning(mesh: Mesh) -> None:
    await mesh.append(OUT, b"junk")
    began = asyncio.get_running_loop().time()
    assert await mesh.broker.tail({OUT: START}, wait_s=0.1) == []
    assert asyncio.get_running_loop().time() - began >= 0.09
    await mesh.broker.publish(OUT, report("good"))
    assert names(await mesh.broker.tail({OUT: START}, wait_s=0.1)) == ["good"]


async def test_a_link_message_in_a_stream_is_no_stream_message(mesh: Mesh) -> None:
    await mesh.append(OUT, encode(Cancel(request_id="r", attempt=1)))  # type: ignore[arg-type]
    assert await mesh.broker.tail({OUT: START}, wait_s=0) == []


async def test_last_id_is_where_news_begins(mesh: Mesh) -> None:
    assert await mesh.broker.last_id(OUT) == START
    await mesh.broker.publish(OUT, report("old"))
    newest = await mesh.broker.publish(OUT, report("newest"))
    assert await mesh.peer.last_id(OUT) == newest
    await mesh.broker.publish(OUT, report("news"))
    assert names(await mesh.peer.tail({OUT: newest}, wait_s=0)) == ["news"]


async def test_waited_s_is_the_time_spent_in_the_stream(mesh: Mesh) -> None:
    await mesh.broker.publish(OUT, report("r"))
    await asyncio.sleep(0.2)
    (entry,) = await mesh.peer.tail({OUT: START}, wait_s=0)
    assert 0.19 <= entry.waited_s < 0.6


async def test_discarded_entries_are_gone(mesh: Mesh) -> None:
    ids = [await mesh.broker.publish(OUT, report(str(number))) for number in range(3)]
    await mesh.peer.discard(OUT, ids[:2])
    await mesh.peer.discard(OUT, [])
    assert names(await mesh.broker.tail({OUT: START}, wait_s=0)) == ["2"]


async def test_reports_are_trimmed_to_about_as_many_as_are_kept(mesh: Mesh) -> None:
    keep = KEPT_ENTRIES[REPORTS]
    for number in range(keep + 300):
        await mesh.broker.publish(REPORTS, report(str(number)))
    kept = names(await mesh.broker.tail({REPORTS: START}, wait_s=0, limit=2 * keep))
    assert keep <= len(kept) < keep + 200
    assert kept[-1] == str(keep + 299)


async def test_a_deleted_stream_is_empty_and_can_be_used_again(mesh: Mesh) -> None:
    await mesh.broker.publish(OUT, report("old"))
    await mesh.peer.delete(OUT)
    assert await mesh.broker.tail({OUT: START}, wait_s=0) == []
    await mesh.broker.publish(OUT, report("new"))
    assert names(await mesh.broker.tail({OUT: START}, wait_s=0)) == ["new"]


async def test_a_group_gets_what_was_published_before_it_existed(mesh: Mesh) -> None:
    await mesh.broker.publish(QUEUE, report("early"))
    (entry,) = await mesh.consume()
    assert names([entry]) == ["early"]
    assert entry.deliveries == 1


async def test_consume_waits_for_news_and_honours_limit_and_wait_s(mesh: Mesh) -> None:
    began = asyncio.get_running_loop().time()
    assert await mesh.consume(wait_s=0.1) == []
    assert 0.09 <= asyncio.get_running_loop().time() - began < 0.6
    waiting = asyncio.get_running_loop().create_task(mesh.consume(wait_s=5))
    await asyncio.sleep(0.02)
    await mesh.peer.publish(QUEUE, report("0"))
    assert names(await waiting) == ["0"]
    for number in range(1, 5):
        await mesh.peer.publish(QUEUE, report(str(number)))
    assert names(await mesh.consume(limit=3)) == ["1", "2", "3"]


async def test_two_consumers_share_the_work_and_each_entry_is_forwarded_once(mesh: Mesh) -> None:
    for number in range(40):
        await mesh.broker.publish(QUEUE, report(str(number)))

    async def route(broker: Broker, consumer: str) -> None:
        while entries := await broker.consume(QUEUE, GROUP, consumer, wait_s=0.05, limit=3):
            for entry in entries:
                assert await broker.forward(entry, GROUP, [(OUT, entry.message)])

    await asyncio.gather(route(mesh.broker, "a"), route(mesh.peer, "b"))
    assert sorted(names(await mesh.broker.tail({OUT: START}, wait_s=0)), key=int) == [str(n) for n in range(40)]
    assert await mesh.length(QUEUE) == 0


async def test_forward_publishes_everything_or_nothing_and_repeating_it_is_harmless(mesh: Mesh) -> None:
    await mesh.broker.publish(QUEUE, report("work"))
    (entry,) = await mesh.consume()
    outgoing = [(OUT, report("order")), (PLACEMENTS, report("notice"))]
    assert await mesh.broker.forward(entry, GROUP, outgoing) is True
    assert await mesh.broker.forward(entry, GROUP, outgoing) is False
    assert await mesh.peer.forward(entry, GROUP, outgoing) is False
    found = await mesh.broker.tail({OUT: START, PLACEMENTS: START}, wait_s=0)
    assert {entry.stream: names([entry]) for entry in found} == {OUT: ["order"], PLACEMENTS: ["notice"]}
    assert len(found) == 2


async def test_an_oversized_message_is_refused_before_anything_is_settled(mesh: Mesh) -> None:
    await mesh.broker.publish(QUEUE, report("work"))
    (entry,) = await mesh.consume()
    with pytest.raises(BadFrame):
        await mesh.broker.forward(entry, GROUP, [(OUT, report("x" * (9 << 20)))])
    assert await mesh.broker.forward(entry, GROUP, [(OUT, report("small"))])


async def test_an_entry_in_a_stopped_consumers_hand_is_dispatched_once(mesh: Mesh) -> None:
    """a takes the entry and stops; b takes it over and forwards; a wakes and forwards, too: nothing happens."""
    await mesh.broker.publish(QUEUE, report("work"))
    (in_hand,) = await mesh.consume(consumer="a")
    assert await mesh.consume(mesh.peer, consumer="b") == []
    await asyncio.sleep(RECLAIM_S * 1.5)
    (taken_over,) = await mesh.consume(mesh.peer, consumer="b")
    assert taken_over.entry_id == in_hand.entry_id
    assert taken_over.deliveries == 2
    assert taken_over.waited_s > RECLAIM_S
    assert await mesh.peer.forward(taken_over, GROUP, [(OUT, report("b"))]) is True
    assert await mesh.broker.forward(in_hand, GROUP, [(OUT, report("a"))]) is False
    assert names(await mesh.broker.tail({OUT: START}, wait_s=0)) == ["b"]


async def test_the_stopped_consumer_may_still_win(mesh: Mesh) -> None:
    await mesh.broker.publish(QUEUE, report("work"))
    (in_hand,) = await mesh.consume(consumer="a")
    await asyncio.sleep(RECLAIM_S * 1.5)
    (taken_over,) = await mesh.consume(mesh.peer, consumer="b")
    assert await mesh.broker.forward(in_hand, GROUP, [(OUT, report("a"))]) is True
    assert await mesh.peer.forward(taken_over, GROUP, [(OUT, report("b"))]) is False
    assert names(await mesh.broker.tail({OUT: START}, wait_s=0)) == ["a"]


async def test_what_is_delivered_too_often_ends_in_the_dead_letter_stream(mesh: Mesh) -> None:
    await mesh.broker.publish(QUEUE, report("poison"))
    seen = []
    for _ in range(5):
        seen += [entry.deliveries for entry in await mesh.consume()]
        await asyncio.sleep(RECLAIM_S * 1.5)
    assert seen == [1, 2, 3]
    assert names(await mesh.broker.tail({DEAD_LETTER: START}, wait_s=0)) == ["poison"]
    assert await mesh.length(QUEUE) == 0


async def test_an_undecodable_frame_is_dead_lettered_and_others_pass(mesh: Mesh) -> None:
    await mesh.append(QUEUE, b"\xff junk")
    await mesh.broker.publish(QUEUE, report("good"))
    assert names(await mesh.consume()) == ["good"]
    assert await mesh.broker.last_id(DEAD_LETTER) != START
    await asyncio.sleep(RECLAIM_S * 1.5)
    assert names(await mesh.consume()) == ["good"]


async def test_ping_is_a_time(mesh: Mesh) -> None:
    assert 0 <= await mesh.broker.ping() < 1
