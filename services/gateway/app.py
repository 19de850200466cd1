"""The HTTP surface: routes, keys, request ids. What a request does lies in `generate`, what it may ask in `openai`."""

import hmac
import json
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from services.gateway.errors import Handler, error_response, quiet_malformed, shape_errors
from services.gateway.events import Outcome
from services.gateway.generate import Generator
from services.gateway.mesh import Mesh, version
from services.gateway.metrics import Metrics
from services.gateway.openai import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read,
)
from services.gateway.operate import Operations
from services.gateway.timeline import Timelines
from shared.clock import Clock
from shared.errors import Overloaded, Rejected
from shared.ids import RequestId
from shared.wire.reports import ServiceReport

MAX_BODY_BYTES = 8 << 20
_OPEN_PATHS = ("/health", "/ready", "/metrics", "/version", "/mesh")
_REQUEST_ID = web.RequestKey("splitmesh_request_id", str)
_GIVEN_ID = web.RequestKey("splitmesh_given_id", str)


class Surface:
    """Handlers of all routes. `own` is this gateway's line in /mesh."""

    def __init__(
        self, *, generator: Generator, mesh: Mesh, metrics: Metrics, timelines: Timelines, clock: Clock,
        operations: Operations, own: Callable[[], ServiceReport], api_keys: Sequence[str],
    ) -> None:  # fmt: skip
        self._generator = generator
        self._mesh = mesh
        self._metrics = metrics
        self._timelines = timelines
        self._clock = clock
        self._operations = operations
        self._own = own
        self._keys = [key.encode() for key in api_keys]
        self._started = int(datetime.now(UTC).timestamp())

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[shape_errors, self._admit])
        app.on_response_prepare.append(_echo_request_id)
        quiet_malformed()
        app.add_routes(
            [
                web.post("/v1/completions", self.completions),
                web.post("/v1/chat/completions", self.chat),
                web.get("/v1/models", self.models),
                web.get("/v1/models/{model:.+}", self.model),
                web.post("/tokenize", self.tokenize),
                web.post("/detokenize", self.detokenize),
                web.get("/health", self.health),
                web.get("/ready", self.ready),
                web.get("/metrics", self.metrics),
                web.get("/version", self.version),
                web.get("/mesh", self.mesh),
                web.get("/mesh/requests/{request_id}", self.timeline),
                *self._operations.routes(),
            ]
        )
        return app

    @web.middleware
    async def _admit(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        request_id = uuid.uuid4().hex
        given = re.sub(r"[^\w.:-]", "", request.headers.get("x-request-id", ""), flags=re.ASCII)[:128]
        request[_REQUEST_ID] = request_id
        request[_GIVEN_ID] = given or request_id
        if self._keys and request.path not in _OPEN_PATHS and not self._knows(request):
            return error_response(401, "a valid API key is needed", code="invalid_api_key")
        return await handler(request)

    def _knows(self, request: web.Request) -> bool:
        """Every key is compared, in constant time: neither how much matches nor which one shows in the answer time."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        given = token.strip().encode("utf-8", "surrogateescape")
        matches = [hmac.compare_digest(given, key) for key in self._keys]
        return scheme.lower() == "bearer" and any(matches)

    async def completions(self, request: web.Request) -> web.StreamResponse:
        with self._counting_rejections():
            body = read(CompletionRequest, await request.read())
            self._check_model(body.model)
            return await self._generator.completion(request, self._named(request), body)

    async def chat(self, request: web.Request) -> web.StreamResponse:
        with self._counting_rejections():
            body = read(ChatRequest, await request.read())
            self._check_model(body.model)
            return await self._generator.chat(request, self._named(request), body)

    @contextmanager
    def _counting_rejections(self) -> Iterator[None]:
        """A request that is refused before it was opened ends here, and nowhere else."""
        try:
            yield
        except (Rejected, Overloaded):
            self._metrics.requests.labels(outcome=Outcome.REJECTED.value).inc()
            raise

    async def models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._model_card()]})

    async def model(self, request: web.Request) -> web.Response:
        self._check_model(request.match_info["model"])
        return web.json_response(self._model_card())

    async def tokenize(self, request: web.Request) -> web.Response:
        body = read(TokenizeRequest, await request.read())
        self._check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise Rejected("give either prompt or messages", param="prompt", code="invalid_value")
        if body.messages is not None:
            chat = ChatRequest(messages=body.messages, add_generation_prompt=body.add_generation_prompt)
            tokens = await self._generator.render(chat)
        else:
            special = body.add_special_tokens is not False
            tokens = await self._generator.encode(body.prompt or "", add_special_tokens=special)
        limit = self._mesh.max_model_len(self._clock.now())
        return web.json_response({"count": len(tokens), "max_model_len": limit, "tokens": tokens, "token_strs": None})

    async def detokenize(self, request: web.Request) -> web.Response:
        body = read(DetokenizeRequest, await request.read())
        self._check_model(body.model)
        tokenizer = self._generator.tokenizer
        if any(token >= tokenizer.vocab_size for token in body.tokens):
            message = f"tokens: ids must be below {tokenizer.vocab_size}"
            raise Rejected(message, param="tokens", code="invalid_value")
        return web.json_response({"prompt": tokenizer.decode(body.tokens, skip_special_tokens=False)})

    async def health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def ready(self, request: web.Request) -> web.Response:
        reasons = self._mesh.unready(self._clock.now())
        if reasons:
            return error_response(503, f"not ready: {'; '.join(reasons)}", code="not_ready", retry_after_s=1.0)
        return web.json_response({"status": "ready"})

    async def metrics(self, request: web.Request) -> web.Response:
        headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=self._metrics.text(), headers=headers)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": version()})

    async def mesh(self, request: web.Request) -> web.Response:
        return web.json_response(self._mesh.picture(self._clock.now(), self._own()))

    async def timeline(self, request: web.Request) -> web.Response:
        asked = request.match_info["request_id"]
        timeline = self._timelines.find(asked)
        if timeline is None:
            raise Rejected(f"request {asked} is not known here", code="request_not_found", status=404)
        return web.Response(text=json.dumps(timeline.as_json()), content_type="application/json")

    def _named(self, request: web.Request) -> RequestId:
        """Our id of this request, from now on also known under the one that its client gave."""
        request_id = RequestId(request[_REQUEST_ID])
        if request[_GIVEN_ID] != request_id:
            self._timelines.name(request[_GIVEN_ID], request_id)
        return request_id

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self._mesh.model:
            message = f"the model {name} does not exist; this mesh serves {self._mesh.model}"
            raise Rejected(message, param="model", code="model_not_found", status=404)

    def _model_card(self) -> dict[str, Any]:
        return {
            "id": self._mesh.model, "object": "model", "created": self._started, "owned_by": "splitmesh",
            "root": self._mesh.model, "parent": None, "max_model_len": self._mesh.max_model_len(self._clock.now()),
        }  # fmt: skip


async def _echo_request_id(request: web.Request, response: web.StreamResponse) -> None:
    if given := request.get(_GIVEN_ID):
        response.headers["x-request-id"] = given
