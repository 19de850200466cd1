"""The real model loses workers in the middle of its streams: greedy and seeded text is what it would have been."""

import asyncio
import signal
from collections.abc import Iterator

import aiohttp
import pytest

from tests.support.client import Answer, stream
from tests.support.running import RunningMesh

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(180)]

PROMPTS = (
    "The history of the lighthouse begins",
    "def fibonacci(n):",
    "Dear editor, I am writing to",
    "In the year 2050",
)
SAMPLING: tuple[dict[str, float | int], ...] = (
    {"temperature": 0},
    {"temperature": 0.9, "seed": 11},
    {"temperature": 0.7, "seed": 12, "top_p": 0.9},
    {"temperature": 1.1, "seed": 13, "top_k": 40},
)
TOKENS = 160


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    with RunningMesh("--token-workers", "2", "--dtype", "float32") as running:
        yield running


async def streams(mesh: RunningMesh) -> list[Answer]:
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        tasks = [
            stream(session, mesh.url, prompt, TOKENS, model=mesh.model, return_token_ids=True, **sampling)
            for prompt, sampling in zip(PROMPTS, SAMPLING, strict=True)
        ]
        return await asyncio.gather(*tasks)


def decoding(mesh: RunningMesh) -> str:
    """Plain name of a token worker that has something to do, as soon as its report says so."""
    found: list[str] = []

    def busy() -> bool:
        found.extend(str(w["id"]) for w in mesh.ready_workers() if w["role"] == "token" and w["running"])
        return bool(found)

    mesh.wait_for(busy, 10.0, "somebody to decode")
    return found[0].split(".")[0]


@pytest.mark.parametrize("pool", ["token", "prompt"])
async def test_text_is_the_same_although_a_worker_is_killed(mesh: RunningMesh, pool: str) -> None:
    wanted = await streams(mesh)
    assert all(len(a.token_ids) == TOKENS and not a.error for a in wanted)
    running = asyncio.create_task(streams(mesh))
    await asyncio.sleep(0.05)
    victim = await asyncio.to_thread(decoding, mesh) if pool == "token" else "prompt-0"
    await asyncio.to_thread(mesh.signal, victim, signal.SIGKILL)
    survived = await running
    assert [a.error for a in survived] == [None] * len(PROMPTS)
    assert [a.token_ids for a in survived] == [a.token_ids for a in wanted]
    await asyncio.to_thread(mesh.wait_for, lambda: len(mesh.ready_workers()) == 3, 60.0, "three ready workers")
    await asyncio.to_thread(mesh.settle)
