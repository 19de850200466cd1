"""What the gateway answers when it would be too late, and whom it lets in."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from shared.ids import RequestId, ServiceId
from shared.wire.messages import Unplaceable
from shared.wire.reports import ServiceReport
from shared.wire.streams import PLACEMENTS, REPORTS
from shared.wire.terms import Finish, Role, State
from tests.support.gateway import Rig, body, error_of, eventually, heard_by_gateway, is_status, mesh

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


@asynccontextmanager
async def one_worker(queue_s: float = 0.0, **promises: Any) -> AsyncIterator[Rig]:
    """Its prompts take a second per 1,000 tokens; a prompt of 100 tokens takes 0.1 s."""
    async with mesh(ready=False, **promises) as rig:
        router = ServiceReport(service_id=ServiceId("router-0.aa"), service="router", pid=1, state=State.READY)
        await rig.broker.publish(REPORTS, router)
        await rig.report(Role.MIXED, "prompt", queue_s=queue_s, queue_tokens=int(queue_s * 1000), kv_blocks_total=1000)
        await eventually(lambda: is_status(rig, "/ready", 200))
        yield rig


async def answer_of(rig: Rig, fields: Any, path: str = "/v1/completions") -> tuple[int, str | None, dict[str, Any]]:
    async with rig.post(path, fields) as response:
        return response.status, response.headers.get("Retry-After"), error_of(await response.json())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "asked"), [("/v1/completions", body()), ("/v1/chat/completions", CHAT)])
async def test_what_would_come_too_late_is_refused_at_the_door(path: str, asked: dict[str, Any], stream: bool) -> None:
    async with one_worker(queue_s=4.2, ttft_target_s=1.0) as rig:
        status, retry_after, error = await answer_of(rig, {**asked, "stream": stream}, path)
        assert (status, retry_after) == (429, "4")
        assert (error["type"], error["code"]) == ("rate_limit_error", "ttft_unattainable")
        assert "the target is 1 s" in error["message"]
        async with rig.http.get(rig.url + "/metrics") as response:
            assert 'splitmesh_requests_total{outcome="rejected"} 1.0' in await response.text()


async def test_each_promise_has_its_code() -> None:
    async with one_worker(queue_s=0.5, max_queued_tokens=500) as rig:
        assert (await answer_of(rig, body()))[:2] == (429, "1")
        assert (await answer_of(rig, body()))[2]["code"] == "queue_full"
    async with one_worker(tbt_target_s=0.009) as rig:
        status, retry_after, error = await answer_of(rig, body())
        assert (status, retry_after, error["code"]) == (429, None, "tbt_unattainable"), "no wait makes a step faster"
    async with one_worker(queue_s=5.0, request_timeout_s=2.0) as rig:
        assert (await answer_of(rig, body()))[2]["code"] == "deadline_unattainable"


async def test_without_targets_a_long_queue_refuses_nobody() -> None:
    async with one_worker(queue_s=300.0) as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(rig.post("/v1/completions", body()).__aenter__())
        await rig.answer(b"ok")
        assert (await asked).status == 200


async def test_of_a_burst_on_one_picture_only_what_fits_is_let_in_until_it_ends() -> None:
    """Nothing is placed meanwhile. Ten prompts of 0.1 s have their first token within 1.05 s."""
    prompt = {"prompt": [65] * 100, "max_tokens": 5}
    async with one_worker(ttft_target_s=1.05) as rig:
        asked = [asyncio.ensure_future(rig.post("/v1/completions", body(**prompt)).__aenter__()) for _ in range(30)]
        await eventually(lambda: all_answered(asked, 20))
        refused = [response.result() for response in asked if response.done()]
        assert [(r.status, r.headers["Retry-After"]) for r in refused] == [(429, "1")] * 20
        for waiting in asked:
            waiting.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        for _ in range(10):
            await rig.submitted()
        fresh = asyncio.ensure_future(rig.post("/v1/completions", body(**prompt)).__aenter__())
        await rig.answer(b"ok")
        assert (await fresh).status == 200, "those whose clients left do not count any more"


async def all_answered(asked: list[Any], count: int) -> bool:
    return sum(response.done() for response in asked) == count


@pytest.mark.parametrize("placed", [True, False])
async def test_word_from_a_router_replaces_what_was_expected(placed: bool) -> None:
    """A placement elsewhere, or none: the first worker is as free as before, though the request still runs."""
    prompt = {"prompt": [65] * 100, "max_tokens": 5}
    async with one_worker(ttft_target_s=0.15) as rig, asyncio.TaskGroup() as group:
        first = group.create_task(rig.post("/v1/completions", body(**prompt)).__aenter__())
        request = await rig.submitted()
        assert (await answer_of(rig, body(**prompt)))[0] == 429
        if placed:
            await rig.place(request, "spare", "spare")
            await heard_by_gateway(rig, request, "placed")
        else:
            word = Unplaceable(
                request_id=RequestId(request.request_id), attempt=1, gateway_id=request.gateway_id, reason="busy"
            )
            await rig.broker.publish(PLACEMENTS, word)
            await heard_by_gateway(rig, request, "unplaceable")
        second = group.create_task(rig.post("/v1/completions", body(**prompt)).__aenter__())
        if not placed:
            found = [await rig.submitted(), await rig.submitted()]
            other = next(one for one in found if one.request_id != request.request_id)
            request = next(one for one in found if one.request_id == request.request_id)
        else:
            other = await rig.submitted()
        for one in (other, request):
            await rig.place(one, "spare", "spare")
            rig.say("spare", one, 0, b"a", Finish.LENGTH)
        assert [(await first).status, (await second).status] == [200, 200]


async def test_priority_is_carried_to_the_routers() -> None:
    async with one_worker() as rig, asyncio.TaskGroup() as group:
        for given, sent in ((-3, -3), (10, 10), (None, 0)):
            asked = group.create_task(rig.post("/v1/completions", body(priority=given)).__aenter__())
            assert (await rig.answer(b"ok")).priority == sent
            assert (await asked).status == 200
