"""What the gateway says to requests that it cannot serve."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shared.wire.terms import Role, State
from tests.support.gateway import CONTEXT, body, error_of, eventually, is_status, mesh, status_and_error

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
    (body(priority=11), "priority"),
    (body(priority=-11), "priority"),
    (body(priority="high"), "priority"),
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


async def test_refused_requests_are_counted_once() -> None:
    async with mesh() as rig:
        await status_and_error(rig, {"max_tokens": 0})
        await status_and_error(rig, {"model": "nobody"})
        async with rig.http.get(rig.url + "/metrics") as response:
            assert 'splitmesh_requests_total{outcome="rejected"} 2.0' in await response.text()
