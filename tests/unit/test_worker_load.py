"""What a worker says of its load: placements on their way count, and stop counting when they arrive or never will."""

import asyncio
from collections.abc import Callable

import pytest

from shared.clock import ManualClock, SystemClock
from shared.engine.fake import FakeEngine
from shared.engine.paced import PacedEngine
from shared.ids import EntryId, RequestId, WorkerId
from shared.kv.blocks import blocks_for
from shared.policy.demand import AnswerLength
from shared.wire.costs import Costs
from shared.wire.reports import WorkerReport
from shared.wire.terms import Role
from shared.worker.load import Coming, LoopLag
from shared.worker.report import report_of
from shared.worker.warm import PROMPTS, warm
from tests.support.gates import GatedEngine
from tests.support.mesh import LocalMesh
from tests.support.samples import placed

ME = WorkerId("me")


async def until(condition: Callable[[], bool], timeout_s: float = 5.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.002)


def test_a_placement_counts_on_its_side_until_it_arrives() -> None:
    coming = Coming(ME)
    coming.see(placed("a", "me", "other"), EntryId("1-0"), 0.0)
    coming.see(placed("b", "other", "me"), EntryId("2-0"), 0.0)
    coming.see(placed("c", "other", "another"), EntryId("3-0"), 0.0)
    assert coming.covers == "3-0"
    assert (coming.prompts(), coming.decodes()) == ([100], [(100, 16)])
    coming.arrived((RequestId("a"), 1))
    coming.arrived((RequestId("b"), 1))
    assert (coming.prompts(), coming.decodes()) == ([], [])


def test_what_will_not_come_is_forgotten() -> None:
    coming = Coming(ME)
    coming.see(placed("old", "other", "me"), EntryId("1-0"), 0.0)
    coming.see(placed("old", "other", "elsewhere", attempt=2), EntryId("2-0"), 0.0)
    assert coming.decodes() == [], "a newer attempt went elsewhere"
    coming.see(placed("late", "other", "me", time_left_s=5.0), EntryId("3-0"), 0.0)
    coming.expire(5.0)
    assert coming.decodes() == [], "its deadline is over"
    coming.see(placed("cancelled", "other", "me"), EntryId("4-0"), 0.0)
    coming.cancel(RequestId("cancelled"), 1)
    assert coming.decodes() == []


def test_a_request_may_arrive_before_its_placement_is_read() -> None:
    coming = Coming(ME)
    coming.arrived((RequestId("early"), 1))
    coming.see(placed("early", "me", "me"), EntryId("1-0"), 0.0)
    assert len(coming) == 0 and coming.covers == "1-0"


def test_an_answer_is_expected_to_be_as_long_as_answers_here_were() -> None:
    answers = AnswerLength()
    assert answers.tokens_at_end(16, 0, 16) == 32
    assert answers.tokens_at_end(16, 0, 100_000) == 16 + 256, "more than nothing, less than any max_tokens"
    assert answers.tokens_at_end(16, 300, 100_000) == 16 + 301, "at least what it has, and one more"
    assert answers.tokens_at_end(16, 300, 300) == 316
    for _ in range(300):
        answers.ended(40, 1000)
    assert answers.mean_tokens == pytest.approx(40, rel=0.02)
    for _ in range(30):
        answers.ended(400, 1000)
    assert 150 < answers.mean_tokens < 350
    for _ in range(300):
        answers.ended(7, 7)
    assert answers.tokens_at_end(16, 0, 500) == 516, "clients who get what they ask for"


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


def report(mesh: LocalMesh, name: str) -> WorkerReport:
    worker = mesh.worker(name)
    return report_of(worker, LoopLag(worker.clock))


async def test_a_prompt_worker_that_decodes_is_observed_in_the_mixed_pool() -> None:
    async with LocalMesh(token=0) as mesh:
        assert report(mesh, "prompt-0").pool is Role.PROMPT
        stream = await mesh.submit(range(40), max_tokens=100_000)
        await stream.until(lambda s: len(s.tokens) > 3)
        seen = report(mesh, "prompt-0")
        assert (seen.pool, seen.role, seen.running, seen.decodes) == (Role.MIXED, Role.PROMPT, 1, 1)
        assert seen.kv_blocks_used > 0 and seen.kv_blocks_leaked == 0
        assert seen.demand_blocks >= blocks_for(40 + 256, 16)
        mesh.worker("prompt-0").role = Role.MIXED
        assert report(mesh, "prompt-0").pool is Role.MIXED
        mesh.worker("prompt-0").role = Role.TOKEN
        assert report(mesh, "prompt-0").pool is Role.TOKEN, "a new home at once"
        mesh.cancel(stream)
        await mesh.settle()
        assert report(mesh, "prompt-0").decodes == report(mesh, "prompt-0").demand_blocks == 0


async def test_the_queue_is_told_in_tokens_and_seconds_the_running_step_included() -> None:
    engine = GatedEngine(stop_at=1)
    async with LocalMesh(token=0, make_engine=lambda: engine, max_num_batched_tokens=100) as mesh:
        worker = mesh.worker("prompt-0")
        worker.batcher.costs = Costs((10.0, 1.0, 0.01), (20.0, 0.0, 1.0))
        first = await mesh.submit(range(150))
        await until(engine.reached.is_set)
        second = await mesh.submit(range(60))
        await until(lambda: len(worker.batcher.waiting) == 1)
        seen = report(mesh, "prompt-0")
        assert (seen.queue_tokens, seen.decodes, seen.waiting) == (210, 2, 1), "both will decode here"
        steps_ms, tokens_ms, squares_ms = 3 * 10.0, 210 * 1.0, (150**2 + 60**2) * 0.01
        assert seen.queue_s == pytest.approx((steps_ms + tokens_ms + squares_ms) / 1000)
        assert seen.step_target_s == pytest.approx(4 * 0.021)
        engine.release(then_stop_at=1)
        await until(lambda: engine.reached.is_set() and any(s.computed for s in worker.in_step()))
        assert report(mesh, "prompt-0").queue_tokens == 50 + 60, "a piece of 100 is done"
        engine.release()
        for stream in (first, second):
            await stream.end()
        await mesh.settle()
        assert (report(mesh, "prompt-0").queue_tokens, report(mesh, "prompt-0").queue_s) == (0, 0.0)


async def test_the_costs_are_those_of_the_steps_taken_and_answers_those_given() -> None:
    costs = Costs((2.0, 0.2, 0.0), (3.0, 0.0, 0.5))
    async with LocalMesh(make_engine=lambda: PacedEngine(costs)) as mesh:
        for n in range(12):
            await (await mesh.submit(range(20 + 13 * n), max_tokens=10)).end()
        prompt, token = report(mesh, "prompt-0"), report(mesh, "token-0")
        assert prompt.fit.prefill_steps == 12 and prompt.fit.decode_steps == 0
        assert prompt.fit.costs.prefill_s(100) == pytest.approx(costs.prefill_s(100), rel=0.25)
        assert token.fit.costs.decode_s(100, 1) == pytest.approx(costs.decode_s(100, 1), rel=0.35)
        assert mesh.worker("token-0").batcher.costs == token.fit.costs
        assert token.expected_output_tokens < 80 < prompt.expected_output_tokens == 256.0, "nothing has ended there"


def test_a_worker_measures_itself_before_it_serves() -> None:
    clock = ManualClock()
    costs = Costs((4.0, 0.1, 0.0), (5.0, 0.0, 1.0))
    fit = warm(PacedEngine(costs, clock=clock, sleep=clock.advance), clock).fit
    assert fit.prefill_steps == fit.decode_steps == len(PROMPTS) and clock.now() < 0.3
    assert fit.costs.prefill_s(500) == pytest.approx(costs.prefill_s(500), rel=0.3)
    assert fit.costs.decode_s(100, 4) == pytest.approx(costs.decode_s(100, 4), rel=0.3)


def test_measuring_stops_when_it_has_taken_long_enough_and_fits_any_memory() -> None:
    clock = ManualClock()
    slow = PacedEngine(Costs((200.0, 1.0, 0.0), (100.0, 0.0, 0.0)), clock=clock, sleep=clock.advance)
    fit = warm(slow, clock).fit
    assert fit.prefill_steps == fit.decode_steps == 1
    tiny = FakeEngine(kv_blocks=2, max_model_len=20)
    assert warm(tiny, SystemClock()).fit.prefill_steps == 1
