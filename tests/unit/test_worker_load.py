"""What a worker says of its load: placements on their way count, and stop counting when they arrive or never will."""

import asyncio

from shared.clock import ManualClock
from shared.ids import EntryId, RequestId, WorkerId
from shared.kv.blocks import blocks_for
from shared.wire.terms import Role
from shared.worker.load import Coming, LoopLag, Speed, blocks_at_end
from shared.worker.service import report_of
from tests.support.mesh import LocalMesh
from tests.support.samples import placed, submitted

ME = WorkerId("me")


def test_a_placement_counts_on_its_side_until_it_arrives() -> None:
    coming = Coming(ME)
    coming.see(placed("a", "me", "other"), EntryId("1-0"), 0.0)
    coming.see(placed("b", "other", "me"), EntryId("2-0"), 0.0)
    coming.see(placed("c", "other", "another"), EntryId("3-0"), 0.0)
    assert coming.covers == "3-0"
    assert coming.prompt_tokens() == 100
    assert coming.blocks(16) == blocks_for(116, 16)
    assert coming.phases() == (True, True)
    coming.arrived((RequestId("a"), 1))
    coming.arrived((RequestId("b"), 1))
    assert (coming.prompt_tokens(), coming.blocks(16), coming.phases()) == (0, 0, (False, False))


def test_what_will_not_come_is_forgotten() -> None:
    coming = Coming(ME)
    coming.see(placed("old", "other", "me"), EntryId("1-0"), 0.0)
    coming.see(placed("old", "other", "elsewhere", attempt=2), EntryId("2-0"), 0.0)
    assert coming.blocks(16) == 0, "a newer attempt went elsewhere"
    coming.see(placed("late", "other", "me", time_left_s=5.0), EntryId("3-0"), 0.0)
    coming.expire(5.0)
    assert coming.blocks(16) == 0, "its deadline is over"
    coming.see(placed("cancelled", "other", "me"), EntryId("4-0"), 0.0)
    coming.cancel(RequestId("cancelled"), 1)
    assert coming.blocks(16) == 0


def test_a_request_may_arrive_before_its_placement_is_read() -> None:
    coming = Coming(ME)
    coming.arrived((RequestId("early"), 1))
    coming.see(placed("early", "me", "me"), EntryId("1-0"), 0.0)
    assert len(coming) == 0 and coming.covers == "1-0"


def test_demand_expects_more_than_the_prompt_and_less_than_any_max_tokens() -> None:
    assert blocks_at_end([submitted(tokens=16, max_tokens=16)], 16) == 2
    assert blocks_at_end([submitted(tokens=16, max_tokens=100_000)], 16) == 1 + 256 // 16


def test_speed_follows_what_is_measured() -> None:
    speed = Speed(1000.0)
    for _ in range(50):
        speed.measured(100, 1.0)
    assert 99.0 < speed.tokens_per_s < 101.0
    speed.measured(0, 1.0)
    speed.measured(5, 0.0)
    assert speed.tokens_per_s > 99.0


async def test_loop_lag_is_the_lateness_of_sleepers() -> None:
    clock = ManualClock()
    lag = LoopLag(clock)
    lag.EVERY_S = 0.001  # type: ignore[misc]
    task = asyncio.create_task(lag.run())
    for _ in range(5):
        clock.advance(0.1)
        await asyncio.sleep(0.005)
    task.cancel()
    assert 0.05 < lag.p99_s < 0.2


async def test_a_prompt_worker_that_decodes_is_observed_in_the_mixed_pool() -> None:
    async with LocalMesh(token=0) as mesh:
        worker = mesh.worker("prompt-0")
        lag = LoopLag(worker.clock)
        assert report_of(worker, lag).pool is Role.PROMPT
        stream = await mesh.submit(range(40), max_tokens=100_000)
        await stream.until(lambda s: len(s.tokens) > 3)
        report = report_of(worker, lag)
        assert (report.pool, report.role, report.running) == (Role.MIXED, Role.PROMPT, 1)
        assert report.kv_blocks_used > 0 and report.kv_blocks_leaked == 0 and report.demand_blocks > 0
        mesh.cancel(stream)
        await mesh.settle()
        assert report_of(worker, lag).pool is Role.PROMPT
