"""One request through the mesh: prompt to token ids, tokens to text, as one JSON object or as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from services.gateway.answers import DONE, Answer, Usage, event
from services.gateway.errors import ended_response, error_body
from services.gateway.events import End, Identity, Opened, Outcome
from services.gateway.mesh import Mesh
from services.gateway.openai import ChatRequest, CompletionRequest
from services.gateway.switchboard import Mailbox, Switchboard
from shared.clock import Clock
from shared.errors import Overloaded, Rejected
from shared.ids import RequestId
from shared.models.detokenizer import TextStream
from shared.models.tokenizer import Tokenizer
from shared.policy.admission import Admission, Refused
from shared.wire.terms import Finish, Sampling

DEFAULT_COMPLETION_TOKENS = 16
STALLED_READER_S = 30.0
_INLINE_CHARACTERS = 4096  # tokenized on the event loop: a thread would take longer
_EVENT_STREAM = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """New text of an answer and the tokens it came with; `finish` says that it is the last piece."""

    text: str
    token_ids: list[int]
    finish: str | None


class Ended(Exception):
    """The answer ends with an error."""

    def __init__(self, end: End) -> None:
        super().__init__(end.message)
        self.end = end


@dataclass(slots=True, kw_only=True)
class Generator:
    identity: Identity
    switchboard: Switchboard
    admission: Admission
    mesh: Mesh
    tokenizer: Tokenizer
    clock: Clock
    draw_seed: Callable[[], int]
    time_limit_s: float

    async def completion(self, http: web.Request, request_id: RequestId, body: CompletionRequest) -> web.StreamResponse:
        prompt = body.one_prompt()
        if isinstance(prompt, str):
            prompt = await self.encode(prompt, add_special_tokens=body.add_special_tokens is not False)
        elif any(not 0 <= token < self.tokenizer.vocab_size for token in prompt):
            limit = self.tokenizer.vocab_size
            raise Rejected(f"prompt: token ids must be below {limit}", param="prompt", code="invalid_value")
        return await self._answer(http, request_id, body, prompt, chat=False)

    async def chat(self, http: web.Request, request_id: RequestId, body: ChatRequest) -> web.StreamResponse:
        prompt = await self.render(body)
        return await self._answer(http, request_id, body, prompt, chat=True)

    async def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        if len(text) <= _INLINE_CHARACTERS:
            return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(self.tokenizer.encode, text, add_special_tokens=add_special_tokens)

    async def render(self, body: ChatRequest) -> list[int]:
        messages, options = body.plain_messages, body.template_options
        if sum(len(message["content"] or "") for message in messages) <= _INLINE_CHARACTERS:
            return self.tokenizer.apply_chat_template(messages, **options)
        return await asyncio.to_thread(self.tokenizer.apply_chat_template, messages, **options)

    async def _answer(
        self,
        http: web.Request,
        request_id: RequestId,
        body: CompletionRequest | ChatRequest,
        prompt: list[int],
        *,
        chat: bool,
    ) -> web.StreamResponse:
        sampling = self._sampling(body, len(prompt), chat=chat)
        answer = Answer(
            answer_id=f"{'chatcmpl' if chat else 'cmpl'}-{request_id}",
            created=int(datetime.now(UTC).timestamp()),
            model=self.mesh.model,
            chat=chat,
            include_usage=body.include_usage,
            prompt_token_ids=prompt if body.return_token_ids else None,
        )
        opened = Opened(
            request_id=request_id,
            prompt=tuple(prompt),
            sampling=sampling,
            time_left_s=self.time_limit_s,
            model=self.mesh.model,
            priority=body.priority or 0,
        )
        text = TextStream(self.tokenizer, stops=body.stops, min_tokens=sampling.min_tokens)
        usage = Usage(prompt_tokens=len(prompt))
        with self._admitted(opened):
            mailbox = self.switchboard.open(opened)
            async with contextlib.aclosing(self._pieces(mailbox, text, sampling, usage)) as pieces:
                return await (_streamed(http, answer, pieces, usage) if body.stream else _whole(answer, pieces, usage))

    @contextlib.contextmanager
    def _admitted(self, opened: Opened) -> Iterator[None]:
        """Raises Overloaded for what would come too late. What is let in counts at once."""
        verdict = self.admission.ask(opened.first_attempt(self.identity), self.clock.now())
        if isinstance(verdict, Refused):
            raise Overloaded(
                verdict.reason, retry_after_s=verdict.retry_after_s, status=429, code=verdict.promise.value
            )
        try:
            yield
        finally:
            self.admission.settle(opened.request_id)

    async def _pieces(
        self, mailbox: Mailbox, text: TextStream, sampling: Sampling, usage: Usage
    ) -> AsyncGenerator[Piece, None]:
        """Ends with a piece that has a finish, or raises Ended. Leaving early cancels the request."""
        outcome = Outcome.CANCELLED
        silent = self.tokenizer.eos_token_ids | set(sampling.stop_token_ids)
        try:
            while True:
                token_ids, end = await mailbox.fetch()
                usage.completion_tokens += len(token_ids)
                if isinstance(end, End):
                    raise Ended(end)
                spoken = token_ids
                if end is Finish.STOP and token_ids and token_ids[-1] in silent:
                    spoken = token_ids[:-1]  # what stopped the answer is no part of its text
                new, stopped = text.push(spoken)
                if stopped:
                    usage.completion_tokens = text.used_tokens
                    outcome = Outcome.COMPLETED
                    yield Piece(text=new, token_ids=token_ids, finish="stop")
                    return
                if end is not None:
                    yield Piece(text=new + text.flush(), token_ids=token_ids, finish=end.value)
                    return
                if token_ids:  # also without text: each step shows, as it does in vLLM
                    yield Piece(text=new, token_ids=token_ids, finish=None)
        finally:
            self.switchboard.leave(mailbox, outcome)

    def _sampling(self, body: CompletionRequest | ChatRequest, prompt_tokens: int, *, chat: bool) -> Sampling:
        """Raises Rejected if prompt and output cannot fit, Overloaded if nobody could serve them."""
        if self.mesh.draining:
            raise Overloaded("this gateway is shutting down", retry_after_s=1.0)
        limit = self.mesh.max_model_len(self.clock.now())
        if limit is None:
            raise Overloaded("no worker is ready", retry_after_s=2.0)
        param = "messages" if chat else "prompt"
        if not 1 <= prompt_tokens < limit:
            message = f"{param}: {prompt_tokens} tokens; it must have 1 to {limit - 1} (context of {limit} tokens)"
            raise Rejected(message, param=param, code="context_length_exceeded" if prompt_tokens else "invalid_value")
        room = limit - prompt_tokens
        wanted = body.wanted_tokens or (room if chat else min(DEFAULT_COMPLETION_TOKENS, room))
        if wanted > room:
            message = f"max_tokens: {wanted} with a prompt of {prompt_tokens} tokens exceeds the context of {limit}"
            raise Rejected(message, param="max_tokens", code="context_length_exceeded")
        if (body.min_tokens or 0) > wanted:
            raise Rejected(f"min_tokens: at most max_tokens ({wanted})", param="min_tokens", code="invalid_value")
        return body.sampling(wanted, self.draw_seed)


async def _whole(answer: Answer, pieces: AsyncIterator[Piece], usage: Usage) -> web.StreamResponse:
    texts: list[str] = []
    token_ids: list[int] = []
    finish = "stop"
    try:
        async for piece in pieces:
            texts.append(piece.text)
            token_ids += piece.token_ids
            finish = piece.finish or finish
    except Ended as error:
        return ended_response(error.end)
    return web.json_response(answer.whole("".join(texts), token_ids, finish, usage))


async def _streamed(
    http: web.Request, answer: Answer, pieces: AsyncIterator[Piece], usage: Usage
) -> web.StreamResponse:
    """Headers are sent with the first token, so that an error before it still has its status."""
    response = web.StreamResponse(headers=_EVENT_STREAM)
    try:
        async for piece in pieces:
            if not response.prepared:
                await response.prepare(http)
                if opening := answer.opening():
                    await _write(response, opening)
            await _write(response, answer.piece(piece.text, piece.token_ids, piece.finish))
    except Ended as error:
        if not response.prepared:
            return ended_response(error.end)
        await _write(response, event(error_body(error.end.status, error.end.message, code=error.end.code)))
        return response
    if closing := answer.closing(usage):
        await _write(response, closing)
    await _write(response, DONE)
    return response


async def _write(response: web.StreamResponse, frame: bytes) -> None:
    """A reader that takes nothing for long is cut off: its answer must not pile up here."""
    try:
        async with asyncio.timeout(STALLED_READER_S):
            await response.write(frame)
    except TimeoutError as error:
        raise ConnectionResetError("the client does not read") from error
