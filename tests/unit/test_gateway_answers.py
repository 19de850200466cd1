"""The gateway's answers over real HTTP: shapes, streams, retries, cancels, ends."""

import asyncio

from shared.ids import Address, RequestId
from shared.link.memory import MemoryLinks
from shared.wire.messages import (
    Cancel,
    Chunk,
    Failed,
    Tokens,
    Unplaceable,
)
from shared.wire.streams import PLACEMENTS
from shared.wire.terms import Finish
from tests.support.gateway import (
    CONTEXT,
    Rig,
    body,
    error_of,
    events,
    eventually,
    heard_by_gateway,
    mesh,
    read_all,
    status_and_error,
)


async def test_completion_not_streamed() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        answered = group.create_task(rig.answer(b"hello"))
        async with rig.post("/v1/completions", body(), **{"x-request-id": "mine-1\u00e4"}) as response:
            content = await response.json()
            assert response.headers["x-request-id"] == "mine-1"
        request = await answered
        assert content["choices"] == [{"index": 0, "text": "hello", "logprobs": None, "finish_reason": "stop"}]
        assert content["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
        assert (content["object"], content["model"]) == ("text_completion", "bytes")
        assert content["id"] == f"cmpl-{request.request_id}"
        assert request.token_ids == tuple(b"hi") and request.sampling.temperature == 0


async def test_completion_streamed() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        group.create_task(rig.answer("a😀b".encode(), Finish.LENGTH))
        async with rig.post("/v1/completions", body(stream=True, stream_options={"include_usage": True})) as response:
            assert response.content_type == "text/event-stream"
            frames = await events(response)
    assert frames[-1] == "[DONE]"
    assert frames[-2]["choices"] == [] and frames[-2]["usage"]["completion_tokens"] == 6
    pieces = [frame["choices"][0] for frame in frames[:-2]]
    assert "".join(piece["text"] for piece in pieces) == "a😀b"
    assert not any("�" in piece["text"] for piece in pieces)
    assert [piece["finish_reason"] for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert all(frame["usage"] is None for frame in frames[:-2])


async def test_chat_streamed_and_whole() -> None:
    chat = {"model": "bytes", "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]}
    async with mesh() as rig:
        async with asyncio.TaskGroup() as group:
            answered = group.create_task(rig.answer(b"yes"))
            async with rig.post("/v1/chat/completions", {**chat, "stream": True}) as response:
                frames = await events(response)
        request = await answered
        assert bytes(request.token_ids) == b"user: hi\nassistant: "
        assert request.sampling.max_tokens == CONTEXT - len(request.token_ids), "the rest of the context"
        deltas = [frame["choices"][0]["delta"] for frame in frames[:-1]]
        assert deltas[0] == {"role": "assistant", "content": ""}
        assert "".join(delta.get("content", "") for delta in deltas) == "yes"
        assert frames[-2]["choices"][0]["finish_reason"] == "stop" and frames[-1] == "[DONE]"
        async with asyncio.TaskGroup() as group:
            group.create_task(rig.answer(b"yes"))
            async with rig.post("/v1/chat/completions", chat) as response:
                content = await response.json()
        assert content["object"] == "chat.completion"
        assert content["choices"][0]["message"] == {"role": "assistant", "content": "yes"}


async def test_token_ids_as_prompt_and_options_pass_through() -> None:
    fields = {"prompt": [[1, 2, 3]], "top_k": 5, "top_p": 0.5, "seed": 7, "ignore_eos": True, "min_tokens": 2}
    async with mesh() as rig, asyncio.TaskGroup() as group:
        answered = group.create_task(rig.answer(b"x", Finish.LENGTH))
        async with rig.post("/v1/completions", body(**fields, stop_token_ids=[9], unknown=1)) as response:
            assert response.status == 200
    request = answered.result()
    assert request.token_ids == (1, 2, 3) and request.emitted == 0 and request.attempt == 1
    sampling = request.sampling
    assert (sampling.top_k, sampling.top_p, sampling.seed, sampling.min_tokens) == (5, 0.5, 7, 2)
    assert sampling.ignore_eos and sampling.stop_token_ids == (9,) and sampling.max_tokens == 50


async def test_stop_string_over_chunks_ends_the_answer_and_cancels_the_workers() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(read_all(rig, body(stop=["END"], stream=True)))
        request = await rig.submitted()
        await rig.place(request)
        for position, token in enumerate(b"abE"):
            rig.say("token", request, position, [token])
        rig.say("token", request, 3, b"NDxyz")
        frames = await asked
        assert "".join(frame["choices"][0]["text"] for frame in frames[:-1]) == "ab"
        assert frames[-2]["choices"][0]["finish_reason"] == "stop"
        assert await rig.heard("token") == Cancel(request_id=request.request_id, attempt=1)
        assert await rig.heard("prompt") == Cancel(request_id=request.request_id, attempt=1)


async def test_stop_token_has_no_text() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(read_all(rig, body(stop_token_ids=[ord("!")], stream=True)))
        request = await rig.submitted()
        rig.say("prompt", request, 0, b"a!", Finish.STOP)
        assert "".join(frame["choices"][0]["text"] for frame in (await asked)[:-1]) == "a"


# ---- trouble --------------------------------------------------------------------------------------------------------


async def test_answer_continues_exactly_after_a_worker_was_killed() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(read_all(rig, body(stream=True)))
        first = await rig.submitted()
        await rig.place(first)
        await watched(rig, "token")
        rig.say("prompt", first, 0, b"a")
        rig.say("token", first, 0, b"ab")
        rig.say("token", first, 1, b"b")
        await heard_by_gateway(rig, first, "first_token")
        rig.network.kill(Address("token"))
        second = await rig.submitted()
        assert (second.attempt, bytes(second.token_ids), second.emitted) == (2, b"hiab", 2)
        await rig.place(second, token="spare")
        rig.say("prompt", first, 2, b"STALE")
        rig.say("prompt", second, 2, b"c")
        rig.say("spare", second, 3, b"d", Finish.LENGTH)
        frames = await asked
        assert "".join(frame["choices"][0]["text"] for frame in frames[:-1]) == "abcd"
        assert [frame["choices"][0]["finish_reason"] for frame in frames[:-1]].count("length") == 1


async def watched(rig: Rig, name: str) -> None:
    gateway_links: MemoryLinks = rig.network._alive[Address("gateway")]
    await eventually(lambda: _true(gateway_links.knows(Address(name))))


async def _true(value: bool) -> bool:
    return value


async def test_error_before_and_after_the_headers() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(status_and_error(rig, body(stream=True)))
        request = await rig.submitted()
        fatal = Failed(request_id=request.request_id, attempt=1, retryable=False, code="broken", message="no luck")
        rig.send("prompt", request, fatal)
        assert (await asked)[0] == 500
        streaming = group.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        rig.say("prompt", request, 0, b"a")
        await heard_by_gateway(rig, request, "first_token")
        fatal = Failed(request_id=request.request_id, attempt=1, retryable=False, code="broken", message="no luck")
        rig.send("prompt", request, fatal)
        frames = await streaming
        assert error_of(frames[-1])["code"] == "broken" and "[DONE]" not in frames


async def test_unplaceable_is_submitted_again() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        group.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        refusal = Unplaceable(
            request_id=request.request_id, attempt=1, gateway_id=request.gateway_id, reason="all are full"
        )
        await rig.broker.publish(PLACEMENTS, refusal)
        assert (await rig.answer(b"x")).attempt == 2


async def test_leaving_client_cancels_at_once() -> None:
    async with mesh() as rig:
        asking = asyncio.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        await rig.place(request)
        rig.say("prompt", request, 0, b"a")
        await heard_by_gateway(rig, request, "placed")
        asking.cancel()
        for name in ("prompt", "token"):
            assert await rig.heard(name) == Cancel(request_id=request.request_id, attempt=1)
        rig.say("token", request, 1, b"b")
        assert await rig.heard("token") == Cancel(request_id=request.request_id, attempt=1), "nobody asked for it"


async def test_silent_broker_refuses_new_requests_and_leaves_running_ones() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        running = group.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        await rig.place(request)
        rig.say("prompt", request, 0, b"a")
        rig.broker.silent = True
        async with asyncio.timeout(1.2), rig.post("/v1/completions", body()) as response:
            assert response.status == 503 and int(response.headers["Retry-After"]) >= 1
            assert error_of(await response.json())["code"] == "broker_unavailable"
        rig.say("token", request, 1, b"b", Finish.LENGTH)
        assert (await running)[-1] == "[DONE]"
        rig.broker.silent = False


async def test_deadline() -> None:
    async with mesh(request_timeout_s=0.3) as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(status_and_error(rig, body()))
        await rig.place(await rig.submitted())
        status, error = await asked
        assert (status, error["code"]) == (504, "timeout")
        assert isinstance(await rig.heard("token"), Cancel)


async def test_unknown_frames_are_answered_by_cancel() -> None:
    async with mesh() as rig:
        chunk = Chunk(request_id=RequestId("nobody"), attempt=3, position=0, token_ids=(1,))
        rig.workers["spare"].send(Address("gateway"), Tokens(chunks=(chunk,)))
        assert await rig.heard("spare") == Cancel(request_id=RequestId("nobody"), attempt=3)


async def test_stopping_lets_running_answers_end() -> None:
    async with asyncio.TaskGroup() as group:
        async with mesh() as rig:
            asked = group.create_task(read_all(rig, body(stream=True)))
            request = await rig.submitted()
            await rig.place(request)
            rig.say("prompt", request, 0, b"a")
            await heard_by_gateway(rig, request, "first_token")
            asyncio.get_running_loop().call_later(0.2, rig.say, "token", request, 1, b"b", Finish.LENGTH)
        assert (await asked)[-1] == "[DONE]"
