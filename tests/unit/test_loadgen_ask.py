"""One streamed answer, stamp by stamp, on a clock that the test moves: every figure is exact."""

import json
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

import aiohttp
import pytest

from loadgen.client.ask import Asked, ask
from loadgen.client.server import COMPLETIONS, Form, Server
from loadgen.record import Outcome, Record
from shared.clock import ManualClock

SERVER = Server(base_url="http://server", endpoint=COMPLETIONS, model="m", form=Form.IDS, symbols=(0, 9))

Chunk = tuple[float, bytes | Exception]  # seconds after the one before, and what comes then


class ScriptedAnswer:
    """Stands where aiohttp's session, response and content stand: chunks come when the clock says so."""

    def __init__(self, clock: ManualClock, chunks: list[Chunk], status: int = 200) -> None:
        self._clock, self._chunks, self.status = clock, chunks, status
        self.headers = {"x-request-id": "r-1"}
        self.content = self

    def post(self, url: str, **more: Any) -> "ScriptedAnswer":
        return self

    async def __aenter__(self) -> "ScriptedAnswer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    async def text(self, errors: str) -> str:
        return self._chunks[0][1].decode()  # type: ignore[union-attr]

    async def read(self) -> bytes:
        return b""

    async def iter_any(self) -> AsyncIterator[bytes]:
        for after_s, chunk in self._chunks:
            self._clock.advance(after_s)
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def token(text: str = " a", ids: list[int] | None = None, finish: str | None = None) -> bytes:
    given = {} if ids is None else {"token_ids": ids}
    return event(choices=[{"index": 0, "text": text, **given, "finish_reason": finish}])


DONE = b"data: [DONE]\n\n"


async def record_of(chunks: list[Chunk], *, status: int = 200, due_s: float = 0.0) -> Record:
    clock = ManualClock(0.25)
    record = Record(index=0, prompt_tokens=8, output_tokens=3, due_s=due_s)
    session: Any = ScriptedAnswer(clock, chunks, status)
    await ask(session, SERVER, b"{}", Asked(record=record), now=clock.now, deadline_s=60.0)
    return record


async def test_every_event_with_tokens_has_the_moment_of_its_chunk() -> None:
    record = await record_of([(1.0, token()), (0.5, token()), (0.25, token(finish="length")), (0.125, DONE)])
    assert record.outcome is Outcome.COMPLETED
    assert (record.sent_s, record.done_s) == (0.25, 2.125)
    assert record.event_s == [1.25, 1.75, 2.0]
    assert (record.finish, record.request_id, record.status) == ("length", "r-1", 200)


async def test_events_that_come_together_have_one_moment() -> None:
    record = await record_of([(1.0, token() + token()), (1.0, token(finish="length") + DONE)])
    assert record.event_s == [1.25, 1.25, 2.25]


@pytest.mark.parametrize("cut", range(1, 60, 7))
async def test_an_event_counts_when_its_last_byte_is_here(cut: int) -> None:
    whole = token()
    record = await record_of([(1.0, whole[:cut]), (1.0, whole[cut:]), (1.0, token(finish="length") + DONE)])
    assert record.event_s == [2.25, 3.25]


async def test_an_event_without_text_is_no_first_token() -> None:
    role = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    word = event(choices=[{"index": 0, "delta": {"content": "hi"}, "finish_reason": "length"}])
    record = await record_of([(0.5, role), (0.5, word), (0.0, DONE)])
    assert record.event_s == [1.25]


async def test_tokens_are_counted_by_their_ids_where_there_are_any() -> None:
    events = token(ids=[4, 5]), token(text="", ids=[6]), token(text="x", ids=[]), DONE
    record = await record_of([(0.5, event) for event in events])
    assert (record.event_tokens, record.tokens) == ([2, 1], 3)


async def test_usage_is_kept_as_the_server_said_it() -> None:
    usage = event(choices=[], usage={"prompt_tokens": 8, "completion_tokens": 3, "total_tokens": 11})
    record = await record_of([(0.5, token(finish="length")), (0.5, usage), (0.0, DONE)])
    assert (record.usage_prompt_tokens, record.usage_output_tokens) == (8, 3)


async def test_carriage_returns_comments_and_missing_spaces_are_read_too() -> None:
    raw = token(finish="length").replace(b"data: ", b": a comment\r\ndata:").replace(b"\n\n", b"\r\n\r\n")
    record = await record_of([(0.5, raw), (0.5, b"data:[DONE]\r\n\r\n")])
    assert (record.event_s, record.outcome) == ([0.75], Outcome.COMPLETED)


async def test_a_server_that_says_no_done_has_ended_with_its_stream() -> None:
    record = await record_of([(0.5, token(finish="length")), (0.5, b"")])
    assert (record.outcome, record.done_s) == (Outcome.COMPLETED, 1.25)


@pytest.mark.parametrize(
    ("chunks", "error"),
    [
        ([(0.5, token())], "the stream broke off after 1 tokens"),
        ([(0.5, token()), (0.1, event(error={"message": "out of memory"}))], "in the stream: out of memory"),
        ([(0.5, token()), (0.1, b"data: {no json\n\n")], "an event that cannot be read"),
        ([(0.5, token()), (0.1, event(choices=3))], "an event that cannot be read"),
        ([(0.5, token()), (0.1, aiohttp.ClientPayloadError("cut"))], "ClientPayloadError: cut"),
        ([(0.5, token()), (0.1, ConnectionResetError())], "ConnectionResetError"),
        ([(0.5, token()), (0.1, TimeoutError())], "no end within the deadline of 60 s"),
    ],
)  # fmt: skip
async def test_what_breaks_is_failed_and_says_why(chunks: list[Chunk], error: str) -> None:
    record = await record_of(chunks)
    assert record.outcome is Outcome.FAILED
    assert record.error is not None and error in record.error
    assert (record.event_s, record.done_s) == ([0.75], None)


@pytest.mark.parametrize(
    ("status", "outcome"),
    [(400, "rejected"), (429, "rejected"), (503, "rejected"), (500, "failed"), (502, "failed")],
)
async def test_refusals_and_failures_are_told_apart(status: int, outcome: str) -> None:
    record = await record_of([(0.0, b'{"error": {"message": "no room"}}')], status=status)
    assert (record.outcome.value, record.error) == (outcome, f"HTTP {status}: no room")


async def test_a_break_after_the_end_of_the_answer_harms_nobody() -> None:
    record = await record_of([(0.5, token(finish="length") + DONE), (0.1, ConnectionResetError())])
    assert (record.outcome, record.done_s) == (Outcome.COMPLETED, 0.75)


async def test_a_connection_that_stays_open_holds_nothing_up() -> None:
    """The answer is complete with `[DONE]`; whether the body ends then is nobody's business."""
    record = await record_of([(0.5, token(finish="length") + DONE), (5.0, b": still here\n\n")])
    assert (record.outcome, record.done_s) == (Outcome.COMPLETED, 0.75)


async def test_a_connection_that_cannot_be_made_is_no_deadline() -> None:
    record = await record_of([(0.5, aiohttp.ConnectionTimeoutError("connecting took 30 s"))])
    assert record.error == "ConnectionTimeoutError: connecting took 30 s"
