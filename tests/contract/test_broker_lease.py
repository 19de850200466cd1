"""The lease of the broker contract: one holder at a time, and numbers that only grow; over memory and a real Redis."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.broker.memory import MemoryBroker
from shared.broker.port import Broker
from shared.broker.redis_streams import RedisBroker

Pair = tuple[Broker, Broker]  # as two processes see it


@pytest.fixture(params=["memory", "redis", "system_redis"])
async def brokers(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    if request.param == "memory":
        memory = MemoryBroker()
        yield memory, memory
        memory.check()
        return
    url = request.getfixturevalue(f"{request.param}_url")
    first, second = await RedisBroker.connect(url), await RedisBroker.connect(url)
    yield first, second
    await first.close()
    await second.close()


async def test_a_lease_has_one_holder_who_renews_it_under_its_number(brokers: Pair) -> None:
    number = await brokers[0].lease("l", "a", 0.4)
    assert number is not None and number > 0
    for _ in range(3):
        await asyncio.sleep(0.2)
        assert await brokers[0].lease("l", "a", 0.4) == number
        assert await brokers[1].lease("l", "b", 0.4) is None
    assert await brokers[1].lease("another", "b", 0.4) is not None


async def test_an_expired_lease_goes_to_who_asks_next_with_a_larger_number(brokers: Pair) -> None:
    first = await brokers[0].lease("l", "a", 0.1)
    await asyncio.sleep(0.15)
    second = await brokers[1].lease("l", "b", 5.0)
    assert first is not None and second is not None and second > first
    assert await brokers[0].lease("l", "a", 0.1) is None
    assert await brokers[1].lease("l", "b", 0.0) == second, "given up"
    third = await brokers[0].lease("l", "a", 0.05)
    assert third is not None and third > second
    await asyncio.sleep(0.1)
    fourth = await brokers[0].lease("l", "a", 1.0)
    assert fourth is not None and fourth > third, "it may have been someone else's meanwhile"


async def test_of_many_who_ask_at_once_one_gets_the_lease(brokers: Pair) -> None:
    asked = (broker.lease("l", f"{name}", 5.0) for name, broker in enumerate([brokers[0], brokers[1]] * 5))
    numbers = await asyncio.gather(*asked)
    assert len([number for number in numbers if number is not None]) == 1
