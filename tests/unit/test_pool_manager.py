"""Pool managers: one acts, any number stand by; who is gone is swept; membership is decided from reports alone."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from services.pool_manager import lease as lease_module
from services.pool_manager import service as service_module
from services.pool_manager.lease import MARGIN_S, TTL_S, Lease
from services.pool_manager.service import PoolManager
from shared.broker.memory import MemoryBroker
from shared.clock import ManualClock, SystemClock
from shared.errors import Transient
from shared.ids import EntryId, ServiceId, WorkerId
from shared.policy import membership as membership_module
from shared.policy.membership import GRACE_S, Membership
from shared.policy.view import View
from shared.runtime.supervise import Supervisor
from shared.wire.reports import SetRole, WorkerReport
from shared.wire.streams import REPORTS, worker_stream
from shared.wire.terms import Role, State
from tests.support.samples import report

START = EntryId("0-0")
TTL_HERE_S = 0.4


class Broker(MemoryBroker):
    """One that can be made silent, and that can forget its leases."""

    silent = False

    async def lease(self, name: str, holder: str, ttl_s: float) -> int | None:
        if self.silent:
            raise Transient("no answer")
        return await super().lease(name, holder, ttl_s)

    def forget_leases(self) -> None:
        self._leases.clear()

    async def orders(self, worker_id: str) -> list[SetRole]:
        entries = await self.tail({worker_stream(WorkerId(worker_id)): START}, wait_s=0)
        return [entry.message for entry in entries if isinstance(entry.message, SetRole)]


# ---- the lease ------------------------------------------------------------------------------------------------------


def holders(clock: ManualClock) -> tuple[Broker, Lease, Lease]:
    broker = Broker(clock)
    return broker, Lease("l", "a", broker, clock), Lease("l", "b", broker, clock)


async def test_a_lease_is_believed_for_less_than_it_lasts() -> None:
    clock = ManualClock(100.0)
    broker, first, second = holders(clock)
    await first.renew()
    await second.renew()
    assert first.fence() is not None and second.fence() is None
    broker.silent = True
    clock.advance(TTL_S - MARGIN_S - 0.1)
    await first.renew()
    assert first.fence() is not None, "a silent broker takes nothing away before its time"
    clock.advance(0.2)
    assert first.fence() is None, "but others may have it soon"


async def test_a_lost_lease_is_lost_at_once_and_the_next_number_is_larger() -> None:
    clock = ManualClock(100.0)
    broker, first, second = holders(clock)
    await first.renew()
    before = first.fence()
    broker.forget_leases()
    clock.advance(0.1)
    await second.renew()
    await first.renew()
    after = second.fence()
    assert first.fence() is None
    assert before is not None and after is not None and after > before


async def test_what_is_given_up_is_free_and_what_is_not_held_cannot_be_given_up() -> None:
    clock = ManualClock(100.0)
    _, first, second = holders(clock)
    await first.renew()
    await second.give_up()
    await second.renew()
    assert second.fence() is None
    await first.give_up()
    assert first.fence() is None
    await second.renew()
    assert second.fence() is not None


# ---- the service ----------------------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "EVERY_S", 0.02)
    monkeypatch.setattr(lease_module, "TTL_S", TTL_HERE_S)
    monkeypatch.setattr(lease_module, "MARGIN_S", 0.1)
    monkeypatch.setattr(membership_module, "GRACE_S", 0.1)


@asynccontextmanager
async def manager(broker: Broker, name: str) -> AsyncIterator[Supervisor]:
    async with Supervisor() as supervisor:
        one = PoolManager(manager_id=ServiceId(name), broker=broker, clock=SystemClock())
        running = supervisor.spawn(one.run(supervisor), name=name)
        yield supervisor
        supervisor.stopping.set()
        await running


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(3):
        while not await holds():
            await asyncio.sleep(0.01)


async def say(broker: Broker, *reports: WorkerReport) -> None:
    for one in reports:
        await broker.publish(REPORTS, one)


def without_token_workers() -> list[WorkerReport]:
    return [report("p0"), report("p1"), report("t0", Role.TOKEN, state=State.LOST)]


@pytest.mark.usefixtures("quick")
async def test_of_several_managers_one_gives_orders_with_its_number() -> None:
    broker = Broker()
    async with manager(broker, "a"), manager(broker, "b"):
        await say(broker, *without_token_workers())
        await eventually(lambda: broker.orders("p0"))
        await asyncio.sleep(0.1)
        (order,) = await broker.orders("p0")
        assert order.role is Role.TOKEN and "lost its last worker" in order.reason
        assert order.fence == await broker.lease(service_module.LEASE, await _holder(broker), 1.0)
        assert await broker.orders("p1") == []


async def _holder(broker: Broker) -> str:
    return broker._leases[service_module.LEASE].holder


@pytest.mark.usefixtures("quick")
async def test_who_stops_hands_over_at_once() -> None:
    broker = Broker()
    async with manager(broker, "a"):
        await eventually(lambda: held_by(broker, "a"))
    async with manager(broker, "b"):
        async with asyncio.timeout(TTL_HERE_S / 2):
            while not await held_by(broker, "b"):
                await asyncio.sleep(0.005)


async def held_by(broker: Broker, holder: str) -> bool:
    lease = broker._leases.get(service_module.LEASE)
    return lease is not None and lease.holder == holder


@pytest.mark.usefixtures("quick")
async def test_a_standby_takes_over_from_who_died_and_fences_it_off() -> None:
    broker = Broker()
    dead = await broker.lease(service_module.LEASE, "dead", TTL_HERE_S)
    async with manager(broker, "b"):
        await say(broker, *without_token_workers())
        await asyncio.sleep(TTL_HERE_S / 2)
        assert await broker.orders("p0") == []
        await eventually(lambda: broker.orders("p0"))
        (order,) = await broker.orders("p0")
        assert dead is not None and order.fence is not None and order.fence > dead


@pytest.mark.usefixtures("quick")
async def test_only_who_holds_the_lease_sweeps_and_only_the_dead() -> None:
    broker = Broker()
    await say(broker, report("p0"), report("t0", Role.TOKEN, state=State.LOST))
    left = SetRole(worker_id=WorkerId("t0"), role=None, fence=None, reason="")
    for worker in ("p0", "t0"):
        await broker.publish(worker_stream(WorkerId(worker)), left)
    await broker.lease(service_module.LEASE, "another", 0.6)
    async with manager(broker, "b"):
        await asyncio.sleep(0.4)
        assert len(await broker.orders("t0")) == 1, "it stands by"
        await eventually(lambda: _empty(broker, "t0"))
        assert len(await broker.orders("p0")) == 1


async def _empty(broker: Broker, worker_id: str) -> bool:
    return not await broker.orders(worker_id)


# ---- membership -----------------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.view = View()
        self.membership = Membership(self.view)

    def speaking(self, *names: str, at: float, state: State = State.READY) -> None:
        for name in names:
            self.view.apply(report(name, state=state), EntryId("1-0"), at)


def test_membership_forgets_the_silent_after_a_grace_and_only_once() -> None:
    heard = Heard()
    heard.speaking("p0", "p1", at=0.0)
    assert heard.membership.gone(50.0) == [], "nobody is heard"
    for second in range(1, 8):
        heard.speaking("p1", at=float(second))
    assert heard.membership.gone(7.0) == [], "silent, but perhaps only stopped"
    for second in range(8, 26):
        heard.speaking("p1", at=float(second))
    assert heard.membership.gone(7.0 + GRACE_S) == ["p0"]
    assert heard.membership.gone(7.1 + GRACE_S) == ["p0"], "until it is swept"
    heard.membership.swept(WorkerId("p0"))
    assert heard.membership.gone(7.2 + GRACE_S) == []


def test_membership_forgives_who_comes_back() -> None:
    heard = Heard()
    heard.speaking("p0", "p1", at=0.0)
    for second in range(1, 10):
        heard.speaking("p1", at=float(second))
    assert heard.membership.gone(9.0) == []
    for second in range(10, 40):
        heard.speaking("p0", "p1", at=float(second))
        assert heard.membership.gone(float(second)) == []


def test_membership_takes_a_goodbye_for_what_it_is() -> None:
    heard = Heard()
    heard.speaking("p0", at=0.0, state=State.LOST)
    assert heard.membership.gone(0.0) == []
    heard.speaking("p1", at=1.0)
    assert heard.membership.gone(GRACE_S + 0.1) == ["p0"]
