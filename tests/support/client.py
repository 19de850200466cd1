"""A streaming client that remembers when what came, for tests that break things under it."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from shared.engine.fake import EOS, FakeEngine


@dataclass(slots=True)
class Answer:
    """`arrivals`: seconds on the monotonic clock of every event with text. `error`: how it ended if not well."""

    prompt: str
    text: str = ""
    finish: str | None = None
    status: int = 0
    error: str | None = None
    request_id: str = ""
    retry_after_s: int | None = None
    token_ids: list[int] = field(default_factory=list)  # if asked for with return_token_ids
    arrivals: list[float] = field(default_factory=list)

    @property
    def largest_gap_s(self) -> float:
        return max((b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)), default=0.0)


def expected_text(prompt: str, count: int) -> str:
    """What the fake and paced engines must answer to a raw prompt, greedily."""
    tokens = FakeEngine.expected(list(prompt.encode()), count)
    return bytes(token for token in tokens if token != EOS).decode()


async def stream(
    session: aiohttp.ClientSession,
    url: str,
    prompt: str | list[int],
    max_tokens: int,
    *,
    into: Answer | None = None,
    **more: Any,
) -> Answer:
    """`into` is filled while the answer comes, for callers that do not wait for its end."""
    answer = into or Answer(str(prompt))
    body = {
        "model": "bytes",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    } | more
    try:
        async with session.post(url + "/v1/completions", json=body) as response:
            answer.status = response.status
            answer.request_id = response.headers.get("x-request-id", "")
            answer.retry_after_s = int(response.headers["Retry-After"]) if "Retry-After" in response.headers else None
            if response.status != 200:
                answer.error = await response.text()
                return answer
            async for line in response.content:
                if line.startswith(b"data: {"):
                    _take(answer, json.loads(line[6:]))
    except (aiohttp.ClientError, TimeoutError) as error:
        answer.error = repr(error)
    return answer


def _take(answer: Answer, event: dict[str, Any]) -> None:
    if "error" in event:
        answer.error = event["error"]["message"]
        return
    choice = event["choices"][0]
    answer.text += choice["text"]
    answer.token_ids += choice.get("token_ids", [])
    answer.finish = choice["finish_reason"] or answer.finish
    if choice["text"]:
        answer.arrivals.append(time.monotonic())


async def load(url: str, count: int, *, max_tokens: int = 60, spread_s: float = 0.0) -> list[Answer]:
    """So many streams of mixed prompt lengths, started over `spread_s` seconds; all answers."""

    async def one(number: int, session: aiohttp.ClientSession) -> Answer:
        await asyncio.sleep(spread_s * number / max(1, count))
        prompt = f"request {number}: " + "lorem ipsum dolor " * (1 + 7 * number % 23)
        return await stream(session, url, prompt, max_tokens)

    timeout = aiohttp.ClientTimeout(total=90)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        return list(await asyncio.gather(*(one(n, session) for n in range(count))))


def assert_all_right(answers: list[Answer], max_tokens: int = 60) -> None:
    """Every request ended once, with exactly the text that it would have got without any fault."""
    broken = [f"{a.status} {a.error}" for a in answers if a.error or a.finish != "length"]
    assert not broken, f"{len(broken)} of {len(answers)} requests were lost: {broken[:3]}"
    for answer in answers:
        assert answer.text == expected_text(answer.prompt, max_tokens)
