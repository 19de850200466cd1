"""What the Redis broker does when Redis is killed, stopped, emptied or full, or loses a reply."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import pytest

from shared.broker.port import Entry
from shared.broker.redis_streams import RedisBroker
from shared.errors import ConfigError, Transient
from shared.ids import EntryId, ServiceId, StreamName
from shared.wire.reports import ServiceReport
from shared.wire.terms import State

if TYPE_CHECKING:
    from tests.conftest import RedisServer

QUEUE, OUT = StreamName("queue"), StreamName("out")
GROUP = "group"
START = EntryId("0-0")


def report(name: str) -> ServiceReport:
    return ServiceReport(service_id=ServiceId(name), service="router", pid=1, state=State.READY)


def names(entries: list[Entry]) -> list[str]:
    return [entry.message.service_id for entry in entries if isinstance(entry.message, ServiceReport)]


@pytest.fixture
async def broker(redis_server: "RedisServer") -> AsyncIterator[RedisBroker]:
    broker = await RedisBroker.connect(redis_server.url, reclaim_after_s=0.2, patience_s=0)
    yield broker
    await broker.close()


async def fails_within(limit_s: float, call: Awaitable[object]) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(Transient):
        await call
    assert asyncio.get_running_loop().time() - began < limit_s


async def until_it_answers(broker: RedisBroker, *, consumer: str = "a") -> list[Entry]:
    """The loop of every consumer."""
    for _ in range(50):
        try:
            if entries := await broker.consume(QUEUE, GROUP, consumer, wait_s=0.1):
                return entries
        except Transient:
            pass
    raise AssertionError("the broker did not recover")


async def test_a_killed_redis_continues_where_it_was(redis_server: "RedisServer", broker: RedisBroker) -> None:
    await broker.publish(QUEUE, report("in hand"))
    await broker.publish(QUEUE, report("waiting"))
    (in_hand,) = await broker.consume(QUEUE, GROUP, "a", wait_s=0.1, limit=1)
    redis_server.kill()
    await fails_within(1.0, broker.publish(OUT, report("lost")))
    await fails_within(1.0, broker.consume(QUEUE, GROUP, "a", wait_s=0.1))
    await fails_within(1.0, broker.tail({OUT: START}, wait_s=0.1))
    await fails_within(1.0, broker.forward(in_hand, GROUP, [(OUT, report("in hand"))]))
    redis_server.start()
    seen: set[str] = set()
    while len(seen) < 2:
        for entry in await until_it_answers(broker):
            if await broker.forward(entry, GROUP, [(OUT, entry.message)]):
                seen.update(names([entry]))
    assert seen == {"in hand", "waiting"}
    assert sorted(names(await broker.tail({OUT: START}, wait_s=0))) == ["in hand", "waiting"]


async def test_a_stopped_redis_is_transient_within_a_second_or_two(
    redis_server: "RedisServer", broker: RedisBroker
) -> None:
    blocked = asyncio.get_running_loop().create_task(broker.tail({OUT: START}, wait_s=0.5))
    await asyncio.sleep(0.05)
    redis_server.pause()
    try:
        await asyncio.gather(
            fails_within(2.5, blocked),
            fails_within(2.0, broker.publish(QUEUE, report("maybe"))),
            fails_within(2.0, broker.consume(QUEUE, GROUP, "a", wait_s=0.1)),
            *(fails_within(2.5, broker.ping()) for _ in range(40)),
        )
    finally:
        redis_server.resume()
    entries = await until_it_answers(broker)
    assert names(entries) == ["maybe"]
    assert await broker.forward(entries[0], GROUP, [])
    assert await broker.ping() < 1


async def test_many_failed_reads_use_up_no_connections(redis_server: "RedisServer", broker: RedisBroker) -> None:
    redis_server.pause()
    try:
        reads = [broker.tail({OUT: START}, wait_s=0.05) for _ in range(60)]
        assert all(isinstance(result, Transient) for result in await asyncio.gather(*reads, return_exceptions=True))
    finally:
        redis_server.resume()
    assert await broker.tail({OUT: START}, wait_s=0.05) == []
    assert int(redis_server.client().info("clients")["connected_clients"]) < 70


async def test_an_emptied_redis_gets_its_groups_again(redis_server: "RedisServer", broker: RedisBroker) -> None:
    assert await broker.consume(QUEUE, GROUP, "a", wait_s=0) == []
    redis_server.client().flushall()
    await broker.publish(QUEUE, report("after"))
    entries = await until_it_answers(broker)
    assert names(entries) == ["after"]
    redis_server.client().flushall()
    assert await broker.forward(entries[0], GROUP, [(OUT, report("gone"))]) is False


async def test_a_blocked_consumer_survives_the_emptying(redis_server: "RedisServer", broker: RedisBroker) -> None:
    consuming = asyncio.get_running_loop().create_task(broker.consume(QUEUE, GROUP, "a", wait_s=5))
    await asyncio.sleep(0.1)
    redis_server.client().flushall()
    await broker.publish(QUEUE, report("after"))
    assert names(await consuming) == ["after"]


async def test_entries_of_a_read_that_nobody_saw_come_at_once(redis_server: "RedisServer", broker: RedisBroker) -> None:
    """The connection breaks while Redis answers: the entry is pending for us although we never saw it."""
    assert await broker.consume(QUEUE, GROUP, "a", wait_s=0) == []
    await broker.publish(QUEUE, report("unseen"))
    redis_server.client().xreadgroup(GROUP, "a", {"splitmesh:queue": ">"})
    redis_server.kill()
    await fails_within(1.0, broker.consume(QUEUE, GROUP, "a", wait_s=0))
    redis_server.start()
    (entry,) = await until_it_answers(broker)
    assert (names([entry]), entry.deliveries) == (["unseen"], 2)


async def test_an_entry_deleted_while_pending_is_no_obstacle(redis_server: "RedisServer", broker: RedisBroker) -> None:
    for name in ("deleted", "kept"):
        await broker.publish(QUEUE, report(name))
    entries = await broker.consume(QUEUE, GROUP, "dead", wait_s=0)
    await broker.discard(QUEUE, [entries[0].entry_id])
    await asyncio.sleep(0.25)
    (entry,) = await until_it_answers(broker)
    assert names([entry]) == ["kept"]
    assert await broker.forward(entry, GROUP, [])
    await broker.consume(QUEUE, GROUP, "a", wait_s=0)
    assert redis_server.client().xpending("splitmesh:queue", GROUP)["pending"] == 0


async def test_a_full_redis_is_transient_and_settles_nothing_by_half(
    redis_server: "RedisServer", broker: RedisBroker
) -> None:
    await broker.publish(QUEUE, report("work"))
    (entry,) = await broker.consume(QUEUE, GROUP, "a", wait_s=0)
    redis_server.client().config_set("maxmemory", "1")
    with pytest.raises(Transient):
        await broker.publish(OUT, report("no room"))
    redis_server.client().config_set("maxmemory", "0")
    assert await broker.forward(entry, GROUP, [(OUT, report("work"))])


async def test_a_lost_reply_makes_one_entry_and_a_blind_forward_repeats_nothing(
    redis_server: "RedisServer", broker: RedisBroker
) -> None:
    async with LossyProxy(redis_server.url) as proxy:
        lossy = await RedisBroker.connect(proxy.url, patience_s=0)
        for name in ("first", "second"):
            await lossy.publish(QUEUE, report(name))
        first, second = await lossy.consume(QUEUE, GROUP, "a", wait_s=0)
        assert await lossy.forward(first, GROUP, [])  # Redis knows the script now
        proxy.lose_replies_to = (b"XADD", b"EVALSHA")
        with pytest.raises(Transient):
            await lossy.publish(OUT, report("once"))
        with pytest.raises(Transient):
            await lossy.forward(second, GROUP, [(OUT, report("forwarded"))])
        proxy.lose_replies_to = ()
        assert await lossy.forward(second, GROUP, [(OUT, report("forwarded"))]) is False
        assert names(await broker.tail({OUT: START}, wait_s=0)) == ["once", "forwarded"]
        await lossy.close()


async def test_lease_numbers_grow_although_redis_forgot_them(redis_server: "RedisServer", broker: RedisBroker) -> None:
    before = await broker.lease("l", "a", 5.0)
    redis_server.client().flushall()
    after = await broker.lease("l", "b", 5.0)
    assert before is not None and after is not None and after > before


async def test_a_lease_outlives_a_killed_redis_with_its_file(redis_server: "RedisServer", broker: RedisBroker) -> None:
    number = await broker.lease("l", "a", 60.0)
    await asyncio.sleep(1.2)  # its file is written every second
    redis_server.kill()
    await fails_within(2.5, broker.lease("l", "a", 60.0))
    redis_server.start()
    assert await broker.lease("l", "b", 60.0) is None
    assert await broker.lease("l", "a", 60.0) == number


async def test_connect_waits_for_a_redis_that_starts_late(redis_server: "RedisServer") -> None:
    redis_server.kill()
    connecting = asyncio.get_running_loop().create_task(RedisBroker.connect(redis_server.url, patience_s=10))
    await asyncio.sleep(0.3)
    redis_server.start()
    await (await connecting).close()


async def test_connect_says_what_can_never_work(redis_server: "RedisServer") -> None:
    with pytest.raises(ConfigError, match="--redis-url"):
        await RedisBroker.connect("http://nowhere")
    with pytest.raises(ConfigError, match="password"):
        await RedisBroker.connect(redis_server.url + "x", patience_s=0)
    redis_server.kill()
    with pytest.raises(Transient):
        await RedisBroker.connect(redis_server.url, patience_s=0)


class LossyProxy:
    """Stands before Redis; requests pass, but instead of the reply to some commands the connection breaks."""

    def __init__(self, redis_url: str) -> None:
        parts = urlsplit(redis_url)
        self._socket_path = parts.path
        self._password = parse_qs(parts.query)["password"][0]
        self.lose_replies_to: tuple[bytes, ...] = ()

    async def __aenter__(self) -> "LossyProxy":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://:{self._password}@127.0.0.1:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _serve(self, client: asyncio.StreamReader, replies: asyncio.StreamWriter) -> None:
        redis, requests = await asyncio.open_unix_connection(self._socket_path)
        while request := await client.read(1 << 16):
            requests.write(request)
            reply = await redis.read(1 << 16)
            if any(command in request for command in self.lose_replies_to):
                break
            replies.write(reply)
        requests.close()
        replies.close()
