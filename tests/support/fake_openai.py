"""An OpenAI-compatible server with known delays and known faults, which remembers when it wrote what.

    with FakeOpenAI(lambda number: Script(ttft_s=0.05, gap_s=0.01)) as server: ... server.url, server.written

As a process: python -m tests.support.fake_openai --port 8791 [--ttft-ms 10] [--gap-ms 5], until it is stopped.

It runs in a thread of its own with its own event loop; `written[n]` are the moments, on the monotonic clock that all
processes of the machine share, of the n-th request's arrival and of each of its token events.
"""

import argparse
import asyncio
import json
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import uvloop
from aiohttp import web

MODEL = "fake-model"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """What happens to one request. Token numbers count from 0; delays are in seconds."""

    ttft_s: float = 0.0
    gap_s: float = 0.0
    stall_at: int | None = None  # before this token it pauses for stall_s more
    stall_s: float = 0.0
    drop_at: int | None = None  # the connection breaks before this token
    error_at: int | None = None  # an error event comes in its place
    garbage_at: int | None = None  # an event that is no JSON
    hang_at: int | None = None  # nothing ever comes again
    status: int = 200
    tokens_per_event: int = 1
    stop_early_at: int | None = None  # fewer tokens than asked for, finish "stop"
    usage_off_by: int = 0  # added to the completion tokens that it reports
    prompt_off_by: int = 0
    usage: bool = True
    token_ids: bool = True
    role_first: bool = False  # an event without text, long before the first token


@dataclass(slots=True)
class Written:
    """Seconds on the monotonic clock."""

    body: dict[str, Any]
    arrived_s: float
    event_s: list[float] = field(default_factory=list)
    ended_s: float | None = None


class FakeOpenAI:
    """`accepts_ids`: refuses prompts of ids else. `refuses`: fields that are answered with 400. `overhead_tokens`:
    what it counts on top of each prompt. `has_models`: whether /v1/models answers. `counts_whole`: whether answers that
    are not streamed have usage."""

    def __init__(
        self, script: Callable[[int], Script] = lambda number: Script(), *, accepts_ids: bool = True,
        refuses: tuple[str, ...] = (), overhead_tokens: int = 0, has_models: bool = True,
        max_model_len: int | None = None, tokens_per_word: int = 1, counts_whole: bool = True, port: int = 0,
    ) -> None:  # fmt: skip
        self._script, self._accepts_ids, self._refuses = script, accepts_ids, refuses
        self._overhead, self._has_models, self._max_model_len = overhead_tokens, has_models, max_model_len
        self._tokens_per_word, self._counts_whole = tokens_per_word, counts_whole
        self._port = port
        self.written: list[Written] = []
        self.url = ""
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> "FakeOpenAI":
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join(10)

    def forget(self) -> None:
        """What came before (a probe, a warm-up) no longer counts: the next request has number 0."""
        self.written = []

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._run())

    async def _run(self) -> None:
        self._ending = asyncio.Event()
        app = web.Application(client_max_size=1 << 28)
        app.add_routes([
            web.post("/v1/completions", self._completions),
            web.post("/v1/chat/completions", self._completions),
            web.get("/v1/models", self._models),
            web.get("/metrics", self._metrics),
        ])  # fmt: skip
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._started.set()
        await self._ending.wait()
        await runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        if not self._has_models:
            raise web.HTTPNotFound
        limit = {} if self._max_model_len is None else {"max_model_len": self._max_model_len}
        return web.json_response({"object": "list", "data": [{"id": MODEL, **limit}]})

    async def _metrics(self, request: web.Request) -> web.Response:
        running = sum(written.ended_s is None for written in self.written)
        return web.Response(text=f'fake:num_requests_waiting{{model="x"}} 0\nfake:num_requests_running {running}\n')

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        written = Written(body, time.monotonic())
        number = len(self.written)
        if refused := [name for name in self._refuses if name in body]:
            return web.json_response({"error": {"message": f"{refused[0]} is not known"}}, status=400)
        prompt = body.get("prompt") or body["messages"][0]["content"]
        if isinstance(prompt, list) and not self._accepts_ids:
            return web.json_response({"error": {"message": "prompt: give a text"}}, status=422)
        script = self._script(number)
        if not body.get("stream"):
            usage = {"usage": self._usage(prompt, script, int(body["max_tokens"]))} if self._counts_whole else {}
            return web.json_response({"choices": [{"index": 0, "text": " a"}], **usage})
        self.written.append(written)
        if script.status != 200:
            return web.json_response({"error": {"message": "scripted"}}, status=script.status)
        try:
            return await self._answer(request, body, prompt, script, written)
        finally:
            written.ended_s = time.monotonic()

    async def _answer(
        self, request: web.Request, body: dict[str, Any], prompt: Any, script: Script, written: Written
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        chat = "messages" in body
        if script.role_first:
            await self._event(response, {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        wanted = int(body["max_tokens"])
        count = wanted if script.stop_early_at is None else script.stop_early_at
        due_s, token = written.arrived_s, 0
        while token < count:
            due_s += script.ttft_s if token == 0 else script.gap_s
            due_s += script.stall_s if token == script.stall_at else 0.0
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            if token == script.drop_at:
                assert request.transport is not None
                request.transport.abort()
                return response
            if token == script.hang_at:
                await asyncio.sleep(3600)
            if token == script.error_at:
                await self._event(response, {"error": {"message": "scripted error", "type": "server_error"}})
                return response
            if token == script.garbage_at:
                await response.write(b"data: {no json\n\n")
                return response
            here = min(script.tokens_per_event, count - token)
            token += here
            finish = None if token < count else ("length" if count == wanted else "stop")
            content = {"delta": {"content": " a" * here}} if chat else {"text": " a" * here}
            ids = {"token_ids": [7] * here} if script.token_ids and body.get("return_token_ids") else {}
            written.event_s.append(time.monotonic())
            await self._event(response, {"choices": [{"index": 0, **content, **ids, "finish_reason": finish}]})
        if script.usage:
            await self._event(response, {"choices": [], "usage": self._usage(prompt, script, count)})
        await response.write(b"data: [DONE]\n\n")
        return response

    def _usage(self, prompt: Any, script: Script, count: int) -> dict[str, int]:
        symbols = len(prompt) if isinstance(prompt, list) else len(prompt.split()) * self._tokens_per_word
        return {
            "prompt_tokens": symbols + self._overhead + script.prompt_off_by,
            "completion_tokens": count + script.usage_off_by,
        }

    async def _event(self, response: web.StreamResponse, content: dict[str, Any]) -> None:
        await response.write(b"data: " + json.dumps({"id": "x", "model": MODEL, **content}).encode() + b"\n\n")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ttft-ms", type=float, default=0.0)
    parser.add_argument("--gap-ms", type=float, default=0.0)
    given = parser.parse_args()
    script = Script(ttft_s=given.ttft_ms / 1000, gap_s=given.gap_ms / 1000)
    with FakeOpenAI(lambda number: script, port=given.port):
        signal.sigwait({signal.SIGINT, signal.SIGTERM})


if __name__ == "__main__":
    main()
