"""Real processes are killed and stopped under load; every request ends as if nothing had happened.

The paced engine stands in for a model, so that four workers fit on two cores and the right text is known.
"""

import asyncio
import os
import signal
import time
from collections.abc import Iterator

import aiohttp
import pytest

from tests.support.client import Answer, assert_all_right, load, stream
from tests.support.running import RunningMesh

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

PACED = ("--engine", "paced", "--prompt-workers", "2", "--token-workers", "2", "--routers", "2")


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh(*PACED) as running:
        yield running


async def under_load(mesh: RunningMesh, fault: object, *, count: int = 32, after_s: float = 1.0) -> list[Answer]:
    """`fault()` happens while the load runs."""
    running = asyncio.create_task(load(mesh.url, count, spread_s=2.0))
    await asyncio.sleep(after_s)
    await asyncio.to_thread(fault)  # type: ignore[arg-type]
    return await running


def healthy(mesh: RunningMesh) -> None:
    """Everyone is back, and nothing leaked."""
    mesh.wait_for(lambda: len(mesh.ready_workers()) == 4, 30.0, "four ready workers")
    mesh.settle()


async def test_many_streams_without_faults(mesh: RunningMesh) -> None:
    assert_all_right(await load(mesh.url, 32))
    healthy(mesh)


@pytest.mark.parametrize("victim", ["token-0", "token-1", "prompt-0", "prompt-1", "router-0", "pool-manager-0"])
async def test_a_killed_process_loses_no_request(mesh: RunningMesh, victim: str) -> None:
    answers = await under_load(mesh, lambda: mesh.signal(victim, signal.SIGKILL))
    assert_all_right(answers)
    await asyncio.to_thread(healthy, mesh)


@pytest.mark.parametrize("victim", ["token-0", "prompt-1"])
async def test_a_stopped_worker_is_as_good_as_dead_and_harmless_when_it_goes_on(mesh: RunningMesh, victim: str) -> None:
    stopped: list[int] = []
    answers = await under_load(mesh, lambda: stopped.append(mesh.signal(victim, signal.SIGSTOP)))
    os.kill(stopped[0], signal.SIGCONT)
    assert_all_right(answers)
    await asyncio.to_thread(healthy, mesh)


async def test_a_gateway_that_stands_still_for_three_seconds_loses_no_stream(mesh: RunningMesh) -> None:
    running = asyncio.create_task(load(mesh.url, 16, spread_s=0.5))
    await asyncio.sleep(1.5)
    stopped = mesh.signal("gateway-0", signal.SIGSTOP)
    await asyncio.sleep(3.0)
    os.kill(stopped, signal.SIGCONT)
    assert_all_right(await running)
    await asyncio.to_thread(healthy, mesh)


async def test_a_router_stopped_with_entries_in_hand_dispatches_nothing_twice(mesh: RunningMesh) -> None:
    stopped = mesh.signal("router-1", signal.SIGSTOP)
    try:
        answers = await load(mesh.url, 16, spread_s=0.5)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert_all_right(answers)
    await asyncio.sleep(1.0)
    await asyncio.to_thread(healthy, mesh)


async def test_running_streams_do_not_notice_that_redis_is_stopped(mesh: RunningMesh) -> None:
    """Five seconds without Redis: streams go on without a gap, new requests wait or get 503, nobody is lost."""
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        running = [asyncio.create_task(stream(session, mesh.url, f"stream {n} ", 400)) for n in range(4)]
        await asyncio.sleep(1.5)
        pids = {w["id"] for w in mesh.workers()}
        redis = mesh.signal("redis", signal.SIGSTOP)
        stopped_at = time.monotonic()
        try:
            late = await stream(session, mesh.url, "while redis is stopped", 5)
            await asyncio.sleep(max(0.0, stopped_at + 5.0 - time.monotonic()))
        finally:
            os.kill(redis, signal.SIGCONT)
        answers = await asyncio.gather(*running)
    assert_all_right(answers, 400)
    outage = [a for answer in answers for a in answer.arrivals if stopped_at < a < stopped_at + 5.0]
    assert len(outage) > 50, "the streams went on during the outage"
    assert max(a.largest_gap_s for a in answers) < 1.0
    assert late.status == 503 or late.finish == "length", f"{late.status} {late.error}"
    await asyncio.sleep(2.0)
    assert {w["id"] for w in mesh.workers() if w["state"] == "ready"} == pids, "nobody was declared lost"
    assert_all_right(await load(mesh.url, 4))


async def test_redis_killed_and_restarted_under_load(mesh: RunningMesh) -> None:
    answers = await under_load(mesh, lambda: mesh.signal("redis", signal.SIGKILL), count=16)
    assert not [a for a in answers if a.error and a.status == 200], "an accepted stream broke"
    for answer in answers:
        assert answer.finish == "length" or answer.status == 503, f"{answer.status} {answer.error}"
    await asyncio.to_thread(healthy, mesh)
    assert_all_right(await load(mesh.url, 8))


async def test_clients_that_leave_free_everything(mesh: RunningMesh) -> None:
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        tasks = [asyncio.create_task(stream(session, mesh.url, f"leaver {n} ", 5000)) for n in range(24)]
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.to_thread(mesh.settle, 3.0)
