"""Overload of real processes at a known speed: who is let in is served in time, who is not is told the truth."""

import asyncio
import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
import pytest

from shared.policy.admission import GUESSED_STEPS
from tests.support.client import Answer, assert_all_right, stream
from tests.support.running import RunningMesh

pytestmark = pytest.mark.system

TTFT_TARGET_S = 1.5
TOLERANCE_S = (
    0.7  # a prompt shares its step with those that come after it: a quarter of a second; the rest is the machine
)
PROMPT = "x" * 200  # 0.2 s on one worker
LONG_PROMPT = "y" * 700
TOKENS = 3
BURST = 40
PACED = (
    "--model", "bytes", "--engine", "paced", "--paced-model", "prefill_ms=2,1,0 decode_ms=2,0,0.1",
    "--prompt-workers", "0", "--token-workers", "0", "--mixed-workers", "2",
)  # fmt: skip


@contextmanager
def measured(*options: str) -> Iterator[RunningMesh]:
    """A mesh whose workers know their speed."""
    with RunningMesh(*PACED, *options) as mesh:
        give_up_at = time.monotonic() + 15
        while any(w["cost_model"]["prefill_steps"] < GUESSED_STEPS for w in mesh.workers()):
            assert time.monotonic() < give_up_at, json.dumps(mesh.workers())
            asyncio.run(ask_together(mesh, *["warm up, please"] * 4))
        mesh.settle()
        yield mesh


async def ask_together(mesh: RunningMesh, *prompts: str) -> list[tuple[Answer, float]]:
    """The answers, and how long each took to its first token or its refusal."""

    async def one(session: aiohttp.ClientSession, prompt: str) -> tuple[Answer, float]:
        asked_at = time.monotonic()
        answer = await stream(session, mesh.url, prompt, TOKENS)
        return answer, (answer.arrivals[0] if answer.arrivals else time.monotonic()) - asked_at

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        return await asyncio.gather(*(one(session, prompt) for prompt in prompts))


async def overload(mesh: RunningMesh) -> tuple[list[tuple[Answer, float]], Answer, Answer]:
    """A burst, one long prompt in the middle of it, and the same again when it was told to come."""
    burst = asyncio.ensure_future(ask_together(mesh, *[PROMPT] * BURST))
    await asyncio.sleep(0.3)
    ((long, _),) = await ask_together(mesh, LONG_PROMPT)
    await asyncio.sleep(long.retry_after_s or 0)
    ((again, _),) = await ask_together(mesh, LONG_PROMPT)
    return await burst, long, again


def test_under_overload_promises_are_kept_and_refusals_are_true() -> None:
    with measured("--ttft-target-s", str(TTFT_TARGET_S)) as mesh:
        burst, long, again = asyncio.run(overload(mesh))
        served = [(answer, ttft_s) for answer, ttft_s in burst if answer.status == 200]
        refused = [answer for answer, _ in burst if answer.status != 200]
        assert_all_right([answer for answer, _ in served], TOKENS)
        assert max(ttft_s for _, ttft_s in served) <= TTFT_TARGET_S + TOLERANCE_S
        assert 8 <= len(served) <= 20, "about 1.5 s of prompts of 0.2 s on each of two workers"
        for answer in refused:
            assert answer.status == 429 and answer.retry_after_s is not None and answer.retry_after_s >= 1
            error = json.loads(answer.error or "")["error"]
            assert (error["type"], error["code"]) == ("rate_limit_error", "ttft_unattainable")
        assert long.status == 429 and long.retry_after_s is not None
        assert_all_right([again], TOKENS)
        with urllib.request.urlopen(mesh.url + "/metrics", timeout=5) as metrics:
            assert f'splitmesh_requests_total{{outcome="rejected"}} {len(refused) + 1}.0' in metrics.read().decode()
        mesh.settle()


def test_without_a_target_nobody_is_refused() -> None:
    with measured() as mesh:
        assert_all_right([answer for answer, _ in asyncio.run(ask_together(mesh, *[PROMPT] * BURST))], TOKENS)
