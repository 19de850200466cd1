"""One streaming request: send it, stamp what comes back, and say in its record how it ended.

Each chunk is stamped when the event loop hands it over, before anything is parsed.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson

from loadgen.client.server import Server
from loadgen.record import Outcome, Record

_JSON = {"Content-Type": "application/json"}
ERROR_CHARACTERS = 200
REST_S = 0.1


@dataclass(slots=True, kw_only=True)
class Asked:
    """A record while it is being filled. `token_ids`: of the answer, where the server gives them."""

    record: Record
    token_ids: list[int] = field(default_factory=list)
    gave_ids: bool = False


async def ask(
    session: aiohttp.ClientSession, server: Server, body: bytes, asked: Asked, *, now: Callable[[], float],
    deadline_s: float,
) -> None:  # fmt: skip
    """Fills the record. `now` gives seconds since the start of the run; `deadline_s` counts from when it was due.

    Returns when the request has ended in whatever way; only being cancelled gets out as an exception.
    """
    record = asked.record
    record.sent_s, record.error = now(), None
    try:
        async with asyncio.timeout(record.due_s + deadline_s - record.sent_s):
            async with session.post(server.url, data=body, headers={**_JSON, **server.headers}) as response:
                record.status = response.status
                record.request_id = response.headers.get("x-request-id", "")
                if response.status != 200:
                    _refused(record, await response.text(errors="replace"))
                    return
                await _read(response, asked, now)
                await _rest(response)
    except aiohttp.ServerTimeoutError as error:  # a TimeoutError too, but not ours
        _broke(record, error)
    except TimeoutError:
        if record.outcome is not Outcome.COMPLETED:
            record.error = f"no end within the deadline of {deadline_s:g} s"
    except (aiohttp.ClientError, OSError) as error:
        _broke(record, error)


def _broke(record: Record, error: Exception) -> None:
    """The connection, that is; after the end of the answer it harms nobody."""
    if record.outcome is not Outcome.COMPLETED:
        record.error = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _refused(record: Record, answer: str) -> None:
    """HTTP 4xx and 503 mean: not this request, or not now; everything else is the server's failure."""
    refused = 400 <= record.status < 500 or record.status == 503
    record.outcome = Outcome.REJECTED if refused else Outcome.FAILED
    try:
        message = orjson.loads(answer)["error"]["message"]
    except (ValueError, LookupError, TypeError):
        message = " ".join(answer.split())
    record.error = f"HTTP {record.status}: {message}"[:ERROR_CHARACTERS]


async def _read(response: aiohttp.ClientResponse, asked: Asked, now: Callable[[], float]) -> None:
    """Server-sent events until `[DONE]`, an error, or the end of the stream."""
    record, rest = asked.record, b""
    async for chunk in response.content.iter_any():
        at_s = now()
        *events, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            data = _data(event)
            if data == b"[DONE]":
                record.done_s, record.outcome = at_s, Outcome.COMPLETED
                return
            if data:
                _take_raw(data, asked, at_s)
            if record.error is not None:
                return
    if record.finish is not None:
        record.done_s, record.outcome = now(), Outcome.COMPLETED
    else:
        record.error = f"the stream broke off after {record.tokens} tokens"


async def _rest(response: aiohttp.ClientResponse) -> None:
    """Read to the end of the body, which is about here, so that the connection can be used again."""
    with suppress(TimeoutError, aiohttp.ClientError, OSError):
        async with asyncio.timeout(REST_S):
            await response.content.read()


def _take_raw(data: bytes, asked: Asked, at_s: float) -> None:
    try:
        take(orjson.loads(data), asked, at_s)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        asked.record.error = f"an event that cannot be read: {type(error).__name__}: {error}"[:ERROR_CHARACTERS]


def _data(event: bytes) -> bytes:
    if event.startswith(b"data: ") and b"\n" not in event:  # as nearly all are
        return event[6:]
    return b"\n".join(line[5:].strip() for line in event.split(b"\n") if line.startswith(b"data:"))


def take(event: dict[str, Any], asked: Asked, at_s: float) -> None:
    """One event. Tokens are counted by their ids where they are given, else an event with text is one token."""
    record = asked.record
    if error := event.get("error"):
        record.error = f"in the stream: {error.get('message', error) if isinstance(error, dict) else error}"
        record.error = record.error[:ERROR_CHARACTERS]
        return
    if usage := event.get("usage"):
        record.usage_prompt_tokens = usage.get("prompt_tokens")
        record.usage_output_tokens = usage.get("completion_tokens")
    if not (choices := event.get("choices")):
        return
    choice = choices[0]
    ids = choice.get("token_ids")
    if ids:
        asked.gave_ids = True
        asked.token_ids += ids
        count = len(ids)
    else:
        text = choice.get("text") if "text" in choice else (choice.get("delta") or {}).get("content")
        count = 1 if text and not asked.gave_ids else 0
    if count:
        record.event_s.append(at_s)
        record.event_tokens.append(count)
    record.finish = choice.get("finish_reason") or record.finish
