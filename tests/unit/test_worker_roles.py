"""What a worker does when it is told its role, or to leave: at once, and nothing in flight notices."""

import asyncio
from typing import Any

from shared.broker.memory import MemoryBroker
from shared.engine.fake import FakeEngine
from shared.engine.paced import PacedEngine
from shared.ids import EntryId, WorkerId
from shared.wire.costs import Costs
from shared.wire.messages import StreamMessage
from shared.wire.reports import DrainWorker, RoleChanged, SetRole, WorkerReport
from shared.wire.streams import EVENTS, REPORTS, worker_stream
from shared.wire.terms import Role, State
from shared.worker.orders import on_set_role
from tests.support.gateway import eventually
from tests.support.mesh import LocalMesh, Stream

PROMPT = [(7 * i) % 251 for i in range(50)]


async def messages(broker: MemoryBroker, stream: Any) -> list[StreamMessage]:
    return [entry.message for entry in await broker.tail({stream: EntryId("0-0")}, wait_s=0)]


def changed(worker: str, was: Role, now: Role) -> RoleChanged:
    return RoleChanged(worker_id=WorkerId(worker), was=was, role=now, reason="test")


def engine() -> PacedEngine:
    return PacedEngine(Costs((1.0, 0.05, 0.0), (4.0, 0.0, 0.0)), kv_blocks=512)


async def last_report(local: LocalMesh, name: str) -> WorkerReport:
    reports = await messages(local.broker, REPORTS)
    return [r for r in reports if isinstance(r, WorkerReport) and r.worker_id == name][-1]


async def tell(local: LocalMesh, order: SetRole | DrainWorker) -> None:
    await local.broker.publish(worker_stream(order.worker_id), order)


def set_role(name: str, wanted: Role | None, fence: int | None = None) -> SetRole:
    return SetRole(worker_id=WorkerId(name), role=wanted, fence=fence, reason="test")


async def all_answered(streams: list[Stream], tokens: int) -> None:
    for stream in streams:
        await stream.end()
        assert stream.failed is None and stream.text == FakeEngine.expected(PROMPT, tokens)


async def test_a_role_changes_under_load_and_nothing_in_flight_notices() -> None:
    async with LocalMesh(prompt=1, token=2, make_engine=engine) as local:
        streams = [await local.submit(PROMPT, max_tokens=60) for _ in range(6)]
        await streams[0].until(lambda s: len(s.tokens) > 3)
        asked_at = asyncio.get_running_loop().time()
        await tell(local, set_role("token-0", Role.PROMPT))

        async def reported() -> bool:
            return (await last_report(local, "token-0")).role is Role.PROMPT

        await eventually(reported)
        assert asyncio.get_running_loop().time() - asked_at < 0.2, "at once, not with the next regular report"
        mine = await last_report(local, "token-0")
        assert mine.role_pinned and mine.pool is Role.MIXED, "it still decodes"
        assert await messages(local.broker, EVENTS) == [changed("token-0", Role.TOKEN, Role.PROMPT)]
        more = [await local.submit(PROMPT, max_tokens=60) for _ in range(6)]
        await all_answered([*streams, *more], 60)
        await local.settle()

        async def home_again() -> bool:
            return (await last_report(local, "token-0")).pool is Role.PROMPT

        await eventually(home_again)


async def test_orders_of_former_managers_are_refused_and_an_operators_word_stands() -> None:
    async with LocalMesh(prompt=1, token=1) as local:
        worker = local.worker("token-0")
        on_set_role(worker, set_role("token-0", Role.PROMPT, fence=7))
        assert worker.role is Role.PROMPT
        on_set_role(worker, set_role("token-0", Role.TOKEN, fence=6))
        assert worker.role is Role.PROMPT, "an older fence"
        on_set_role(worker, set_role("token-0", Role.MIXED))
        assert worker.role is Role.MIXED and worker.role_pinned
        on_set_role(worker, set_role("token-0", Role.TOKEN, fence=9))
        assert worker.role is Role.MIXED, "pinned"
        on_set_role(worker, set_role("token-0", None))
        assert worker.role is Role.MIXED and not worker.role_pinned
        on_set_role(worker, set_role("token-0", Role.TOKEN, fence=8))
        assert worker.role is Role.MIXED, "9 was seen, although it was not followed"
        on_set_role(worker, set_role("token-0", Role.TOKEN, fence=9))
        assert worker.role is Role.TOKEN


async def test_the_same_role_again_is_no_event() -> None:
    async with LocalMesh(prompt=1, token=1) as local:
        await tell(local, set_role("token-0", Role.TOKEN))

        async def pinned() -> bool:
            return (await last_report(local, "token-0")).role_pinned

        await eventually(pinned)
        assert await messages(local.broker, EVENTS) == []


async def test_a_drained_worker_finishes_without_limit_and_leaves() -> None:
    """Its requests take longer than a worker that is stopped would have."""
    async with LocalMesh(prompt=1, token=2, make_engine=engine) as local:
        streams = [await local.submit(PROMPT, max_tokens=350) for _ in range(4)]
        await streams[-1].until(lambda s: len(s.tokens) > 3)
        assert not local.worker("token-0").idle
        await tell(local, DrainWorker(worker_id=WorkerId("token-0")))

        async def draining() -> bool:
            return (await last_report(local, "token-0")).state is State.DRAINING

        await eventually(draining)
        more = [await local.submit(PROMPT, max_tokens=20) for _ in range(4)]
        await all_answered(more, 20)
        await all_answered(streams, 350)
        async with asyncio.timeout(2):
            await local.members["token-0"].task
        assert (await last_report(local, "token-0")).state is State.LOST
        assert await messages(local.broker, worker_stream(WorkerId("token-0"))) == []
        await all_answered([await local.submit(PROMPT, max_tokens=5)], 5)


async def test_a_leaving_worker_that_is_stopped_has_only_the_time_of_one_that_is_stopped() -> None:
    async with LocalMesh(prompt=1, token=1, make_engine=engine) as local:
        stream = await local.submit(PROMPT, max_tokens=2000)
        await stream.until(lambda s: len(s.tokens) > 3)
        await tell(local, DrainWorker(worker_id=WorkerId("token-0")))
        await asyncio.sleep(0.1)
        local.members["token-0"].supervisor.stopping.set()
        async with asyncio.timeout(2):
            await local.members["token-0"].task
        assert (await stream.end()).failed is not None
