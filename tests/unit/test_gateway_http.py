"""The gateway over real HTTP, with memory broker and links and a scripted router and workers behind it."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from services.gateway.service import gateway
from shared.broker.memory import MemoryBroker
from shared.clock import SystemClock
from shared.errors import Transient
from shared.ids import Address, EntryId, RequestId, ServiceId, StreamName, WorkerId
from shared.link.memory import MemoryLinks, MemoryNetwork
from shared.link.port import Received
from shared.models.tokenizer import ByteTokenizer
from shared.runtime.config import Settings
from shared.runtime.supervise import Supervisor
from shared.wire.messages import (
    Cancel,
    Chunk,
    Failed,
    HandedOff,
    LinkMessage,
    Placed,
    ServiceReport,
    StageTimes,
    StreamMessage,
    Submitted,
    Tokens,
    Unplaceable,
    WorkerReport,
)
from shared.wire.streams import PLACEMENTS, REPORTS, SUBMITTED
from shared.wire.terms import Finish, PushMode, Role, State

EOS = ByteTokenizer.eos_id
CONTEXT = 200


class FlakyBroker(MemoryBroker):
    """A broker that can be made silent."""

    silent = False

    async def publish(self, stream: StreamName, message: StreamMessage) -> EntryId:
        if self.silent:
            raise Transient("no answer")
        return await super().publish(stream, message)


class Rig:
    """The neighbours of a gateway, played by hand: `submitted` holds what it asked for, `say` answers."""

    def __init__(self, port: int, broker: FlakyBroker, network: MemoryNetwork, http: aiohttp.ClientSession) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.broker = broker
        self.network = network
        self.http = http
        self.workers = {name: network.links(name) for name in ("prompt", "token", "spare")}
        self._seen = EntryId("0-0")

    async def submitted(self) -> Submitted:
        (entry, *_) = await self.broker.tail({SUBMITTED: self._seen}, wait_s=5.0, limit=1)
        self._seen = entry.entry_id
        assert isinstance(entry.message, Submitted)
        return entry.message

    async def place(self, request: Submitted, prompt: str = "prompt", token: str = "token") -> None:
        message = Placed(
            request_id=request.request_id, attempt=request.attempt, prompt_worker=WorkerId(f"{prompt}.1"),
            token_worker=WorkerId(f"{token}.1"), prompt_address=Address(prompt), token_address=Address(token),
            prompt_tokens=request.prompt_tokens, output_tokens=request.tokens_left, gateway_id=request.gateway_id,
            time_left_s=request.time_left_s,
        )  # fmt: skip
        await self.broker.publish(PLACEMENTS, message)

    def say(
        self, who: str, request: Submitted, position: int, tokens: bytes | list[int], finish: Finish | None = None
    ) -> None:
        stage = StageTimes(worker_id=WorkerId(f"{who}.1"), queue_s=0.01, prefill_s=0.02, decode_s=0.03)
        chunk = Chunk(
            request_id=request.request_id, attempt=request.attempt, position=position, token_ids=tuple(tokens),
            finish=finish, stage=stage if finish or not position else None,
        )  # fmt: skip
        self.send(who, request, Tokens(chunks=(chunk,)))

    def send(self, who: str, request: Submitted, message: LinkMessage) -> None:
        self.workers[who].send(request.reply_to, message)

    async def heard(self, who: str) -> LinkMessage:
        async with asyncio.timeout(5):
            event = await self.workers[who].receive()
        assert isinstance(event, Received)
        return event.message

    async def answer(self, output: bytes, finish: Finish = Finish.STOP) -> Submitted:
        """Serve the next request to its end: first token from the prompt worker, the rest from the token worker."""
        request = await self.submitted()
        await self.place(request)
        tokens = [*output, *([EOS] if finish is Finish.STOP else [])]
        for position, token in enumerate(tokens):
            last = finish if position == len(tokens) - 1 else None
            self.say("token" if position else "prompt", request, position, [token], last)
        return request

    async def report(self, role: Role, name: str, *, state: State = State.READY) -> None:
        await self.broker.publish(REPORTS, worker_report(role, name, state))

    def post(self, path: str, body: Any, **headers: str) -> Any:
        return self.http.post(self.url + path, json=body, headers=headers)


def worker_report(role: Role, name: str, state: State) -> WorkerReport:
    return WorkerReport(
        worker_id=WorkerId(f"{name}.1"), service=f"{role.value}_worker", pid=1, role=role, pool=role, state=state,
        model="bytes", max_model_len=CONTEXT, link_address=Address(name), covers=EntryId("0-0"), queue_tokens=0,
        demand_blocks=0, running=0, waiting=0, block_size=16, kv_blocks_total=64, kv_blocks_used=16,
        kv_blocks_cached=0, kv_blocks_leaked=0, prefill_tokens_per_s=1.0, decode_tokens_per_s=1.0, transport="memory",
        transport_bandwidth_gb_s=1.5, transport_latency_ms=0.1, loop_lag_p99_s=0.0,
    )  # fmt: skip


@asynccontextmanager
async def mesh(*, ready: bool = True, **options: Any) -> AsyncIterator[Rig]:
    broker, network = FlakyBroker(), MemoryNetwork()
    settings = Settings(port=0, **options)
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    async with Supervisor() as supervisor, aiohttp.ClientSession() as http:
        running = supervisor.spawn(
            gateway(
                settings, supervisor, gateway_id=ServiceId("gateway-0.aa"), model="bytes", broker=broker,
                links=network.links("gateway"), tokenizer=ByteTokenizer(), clock=SystemClock(),
                listening=port.set_result,
            ),
            name="gateway",
        )  # fmt: skip
        rig = Rig(await port, broker, network, http)
        if ready:
            router = ServiceReport(service_id=ServiceId("router-0.aa"), service="router", pid=1, state=State.READY)
            await broker.publish(REPORTS, router)
            await rig.report(Role.PROMPT, "prompt")
            await rig.report(Role.TOKEN, "token")
            await eventually(lambda: is_status(rig, "/ready", 200))
        yield rig
        supervisor.stopping.set()
        await running


async def is_status(rig: Rig, path: str, status: int) -> bool:
    async with rig.http.get(rig.url + path) as response:
        return response.status == status


async def eventually(holds: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(5):
        while not await holds():
            await asyncio.sleep(0.01)


async def events(response: aiohttp.ClientResponse) -> list[Any]:
    """The frames of a whole stream; JSON except for the last word."""
    raw = (await response.read()).decode()
    frames = raw.split("\n\n")
    assert frames[-1] == "" and all(frame.startswith("data: ") for frame in frames[:-1])
    return [f if f == "[DONE]" else json.loads(f) for f in (frame.removeprefix("data: ") for frame in frames[:-1])]


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "bytes", "prompt": "hi", "max_tokens": 50, "temperature": 0, **fields}


def error_of(content: Any) -> dict[str, Any]:
    error: dict[str, Any] = content["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


# ---- answers --------------------------------------------------------------------------------------------------------


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


async def read_all(rig: Rig, fields: dict[str, Any]) -> list[Any]:
    async with rig.post("/v1/completions", fields) as response:
        return await events(response)


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


async def heard_by_gateway(rig: Rig, request: Submitted, stage: str) -> None:
    async def holds() -> bool:
        async with rig.http.get(f"{rig.url}/mesh/requests/{request.request_id}") as response:
            return stage in [one["stage"] for one in (await response.json())["stages"]]

    await eventually(holds)


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


async def status_and_error(rig: Rig, fields: Any, path: str = "/v1/completions") -> tuple[int, dict[str, Any]]:
    async with rig.post(path, fields) as response:
        return response.status, error_of(await response.json())


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


# ---- bad input ------------------------------------------------------------------------------------------------------

BAD = [
    (body(n=2), "n"),
    (body(best_of=3), "best_of"),
    (body(logprobs=1), "logprobs"),
    (body(echo=True), "echo"),
    (body(frequency_penalty=0.1), "frequency_penalty"),
    (body(logit_bias={"1": 1}), "logit_bias"),
    (body(max_tokens=0), "max_tokens"),
    (body(max_tokens="10"), "max_tokens"),
    (body(max_tokens=True), "max_tokens"),
    (body(max_tokens=CONTEXT), "max_tokens"),
    (body(min_tokens=51), "min_tokens"),
    (body(temperature=-1), "temperature"),
    (body(top_p=0), "top_p"),
    (body(stop=[""]), "stop"),
    (body(stop=["x"] * 17), "stop"),
    (body(stop=5), "stop"),
    (body(stream="yes"), "stream"),
    (body(seed=2**70), "seed"),
    (body(prompt=None), "prompt"),
    (body(prompt=""), "prompt"),
    (body(prompt=5), "prompt"),
    (body(prompt=["a", "b"]), "prompt"),
    (body(prompt=[1.5]), "prompt"),
    (body(prompt=[-1]), "prompt"),
    (body(prompt=[257]), "prompt"),
    (body(prompt="x" * CONTEXT), "prompt"),
    (body(prompt="x" * 100_000), "prompt"),
]


async def test_bad_requests_name_the_field() -> None:
    async with mesh() as rig:
        for fields, param in BAD:
            status, error = await status_and_error(rig, fields)
            assert (status, error["param"], error["type"]) == (400, param, "invalid_request_error"), fields
        chat = {"messages": [{"role": "user", "content": "x"}]}
        image: dict[str, Any] = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}
        bad_chats = [
            ({"messages": []}, "messages"), (image, "messages"), ({**chat, "tools": [1]}, "tools"),
            ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
            ({"messages": [{"role": "user"}]}, "messages"),
        ]  # fmt: skip
        for bad, param in bad_chats:
            status, error = await status_and_error(rig, bad, "/v1/chat/completions")
            assert (status, error["param"]) == (400, param)


MALFORMED = (
    b"", b"{", b"[]", b"5", b"{} {}", b'{"temperature": NaN}', b'{"seed": 1e999}', b"\xff", b'{"prompt": "\\ud800"}',
    b"[" * 100_000, b'{"seed": ' + b"9" * 5000 + b"}",
)  # fmt: skip


@pytest.mark.parametrize("raw", MALFORMED, ids=lambda raw: repr(raw[:20]))
async def test_malformed_bodies_are_400(raw: bytes) -> None:
    async with mesh() as rig, rig.http.post(rig.url + "/v1/completions", data=raw) as response:
        assert response.status == 400
        assert error_of(await response.json())["type"] == "invalid_request_error"


NO_HTTP = (
    b"GARBAGE\r\n\r\n",
    b"GET /health HTTP/1.1\r\nHost: x\r\nX-Big: " + b"a" * 20_000 + b"\r\n\r\n",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
)


@pytest.mark.parametrize("raw", NO_HTTP, ids=lambda raw: repr(raw[:20]))
async def test_what_is_no_http_is_400_and_leaves_no_traceback(raw: bytes, caplog: pytest.LogCaptureFixture) -> None:
    async with mesh() as rig:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(rig.url.rpartition(":")[2]))
        writer.write(raw)
        async with asyncio.timeout(5):
            answer = await reader.read()
        writer.close()
        assert b" 400 " in answer.partition(b"\r\n")[0]
    assert "Traceback" not in caplog.text


async def test_a_request_is_found_under_the_id_that_its_client_gave() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        group.create_task(rig.answer(b"a"))
        async with rig.post("/v1/completions", body(), **{"x-request-id": "order-7"}) as response:
            answer = await response.json()
            assert response.headers["x-request-id"] == "order-7"
        for name in ("order-7", answer["id"], answer["id"].removeprefix("cmpl-")):
            async with rig.http.get(f"{rig.url}/mesh/requests/{name}") as response:
                assert (await response.json())["id"] == answer["id"].removeprefix("cmpl-")


async def test_errors_of_the_surface_are_openai_shaped() -> None:
    async with mesh() as rig:
        assert (await status_and_error(rig, body(model="other")))[0] == 404
        assert (await status_and_error(rig, {}, "/nowhere"))[0] == 404
        async with rig.http.get(rig.url + "/v1/completions") as response:
            assert response.status == 405 and response.headers["Allow"] == "POST"
            assert error_of(await response.json())["code"] == "method_not_allowed"
        async with rig.http.post(rig.url + "/v1/completions", data=io.BytesIO(b" " * (9 << 20))) as response:
            assert response.status == 413
            error_of(await response.json())
        async with rig.http.get(rig.url + "/mesh/requests/cmpl-unknown") as response:
            assert response.status == 404


async def test_api_keys() -> None:
    async with mesh(api_key=("secret", "other")) as rig:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
            async with rig.post("/v1/completions", body(), **headers) as response:
                assert response.status == 401
                assert error_of(await response.json())["code"] == "invalid_api_key"
        async with rig.http.get(rig.url + "/v1/models", headers={"Authorization": "Bearer other"}) as response:
            assert response.status == 200
        for path in ("/health", "/ready", "/metrics", "/version", "/mesh"):
            assert await is_status(rig, path, 200)


# ---- the mesh around ------------------------------------------------------------------------------------------------


async def test_ready_says_what_is_missing() -> None:
    async with mesh(ready=False) as rig:
        assert await is_status(rig, "/health", 200)
        await rig.report(Role.TOKEN, "token", state=State.STARTING)

        async def reason() -> str:
            async with rig.http.get(rig.url + "/ready") as response:
                assert response.status == 503
                return str(error_of(await response.json())["message"])

        await eventually(lambda: _says(reason, "not ready: no router; no worker is ready"))


async def _says(reason: Callable[[], Awaitable[str]], text: str) -> bool:
    return await reason() == text


async def test_no_worker_at_all_is_a_quick_503() -> None:
    async with mesh(ready=False) as rig, rig.post("/v1/completions", body()) as response:
        assert response.status == 503 and response.headers["Retry-After"]


async def test_models_tokenize_detokenize_version() -> None:
    async with mesh() as rig:
        async with rig.http.get(rig.url + "/v1/models") as response:
            (card,) = (await response.json())["data"]
            assert (card["id"], card["object"], card["max_model_len"]) == ("bytes", "model", CONTEXT)
        async with rig.post("/tokenize", {"prompt": "é"}) as response:
            content = await response.json()
            assert (content["tokens"], content["count"], content["max_model_len"]) == ([195, 169], 2, CONTEXT)
        async with rig.post("/tokenize", {"messages": [{"role": "user", "content": "x"}]}) as response:
            assert (await response.json())["count"] == len("user: x\nassistant: ")
        async with rig.post("/detokenize", {"tokens": [195, 169]}) as response:
            assert await response.json() == {"prompt": "é"}
        async with rig.post("/detokenize", {"tokens": [999]}) as response:
            assert response.status == 400
        async with rig.http.get(rig.url + "/version") as response:
            assert (await response.json())["version"]


async def test_mesh_timeline_and_metrics() -> None:
    async with mesh() as rig, asyncio.TaskGroup() as group:
        asked = group.create_task(read_all(rig, body(stream=True)))
        request = await rig.submitted()
        await rig.place(request)
        await heard_by_gateway(rig, request, "placed")
        rig.say("prompt", request, 0, b"a")
        handed_off = HandedOff(
            request_id=request.request_id, attempt=1, mode=PushMode.LAYERWISE, transport="memory", kv_bytes=4096,
            transfer_s=0.02, exposed_s=0.001, resent_slices=0,
        )  # fmt: skip
        rig.send("prompt", request, handed_off)
        await heard_by_gateway(rig, request, "handed_off")
        rig.say("token", request, 1, b"b", Finish.LENGTH)
        await asked
        async with rig.http.get(f"{rig.url}/mesh/requests/cmpl-{request.request_id}") as response:
            timeline = await response.json()
        stages = [one["stage"] for one in timeline["stages"]]
        assert stages[:3] == ["received", "submitted", "placed"] and stages[-1] == "ended"
        assert timeline["outcome"] == "completed" and {"first_token", "handed_off", "measured"} <= set(stages)
        async with rig.http.get(rig.url + "/mesh") as response:
            picture = await response.json()
        assert {worker["id"]: worker["state"] for worker in picture["workers"]} == {
            "prompt.1": "ready", "token.1": "ready",
        }  # fmt: skip
        assert {service["service"] for service in picture["services"]} == {"gateway", "router"}
        assert picture["models"] == ["bytes"] and picture["version"]
        async with rig.http.get(rig.url + "/metrics") as response:
            text = await response.text()
        for line in EXPECTED_METRICS:
            assert "splitmesh_" + line in text, line


EXPECTED_METRICS = (
    "time_to_first_token_seconds_count 1.0",
    "inter_token_latency_seconds_count 1.0",
    "e2e_request_latency_seconds_count 1.0",
    "request_queue_time_seconds_count 1.0",
    "request_prefill_time_seconds_count 1.0",
    "request_decode_time_seconds_count 1.0",
    'requests_total{outcome="completed"} 1.0',
    "prompt_tokens_total 2.0",
    "generation_tokens_total 2.0",
    "kv_transfer_seconds_count 1.0",
    "kv_transfer_exposed_seconds_count 1.0",
    "kv_transfer_bytes_total 4096.0",
    'kv_cache_usage_ratio{worker="token.1"} 0.25',
    'kv_blocks_total{worker="prompt.1"} 64.0',
    'kv_blocks_used{worker="prompt.1"} 16.0',
    'kv_blocks_leaked{worker="prompt.1"} 0.0',
    'num_requests_waiting{worker="prompt.1"} 0.0',
    'num_requests_running{worker="prompt.1"} 0.0',
    'kv_transport_info{bandwidth="1.50",transport="memory",worker="token.1"} 1.0',
    "role_changes_total",
    "event_loop_lag_seconds",
)
