"""What long prompts do to running streams: disaggregated against colocated, with equal cores.

    python -m tests.bench.interference [--rounds 3] [--seconds 20] [--json FILE]

Two meshes stand side by side, one prompt and one token worker with a core each against one mixed worker with all
cores; rounds alternate between them. Four streams decode while a prompt of 1,024 tokens arrives every 4 s. Prediction:
colocated streams stand still for a whole prefill (P99 of the gaps near its length), disaggregated ones do not notice
it; the prompt itself takes about twice as long on half the cores.
"""

import argparse
import asyncio
import itertools
import json
import os
import statistics
import time
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.table import Table

from tests.support.client import Answer, stream
from tests.support.running import RunningMesh

STREAMS = 4
PROMPT_TOKENS = 1024
EVERY_S = 4.0


async def round_of(mesh: RunningMesh, seconds: float, number: int) -> dict[str, list[float]]:
    """Gaps of the running streams and TTFT of the long prompts, in ms."""
    timeout = aiohttp.ClientTimeout(total=seconds * 6)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        prompts = [[2000 + s * 17 + i for i in range(32)] for s in range(STREAMS)]
        answers = [Answer(str(number)) for number in range(STREAMS)]
        running = [
            asyncio.create_task(stream(session, mesh.url, prompt, 4000, into=answer, model=mesh.model))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        await asyncio.sleep(3.0)
        began = time.monotonic()
        ttft = []
        while time.monotonic() < began + seconds:
            sent = time.monotonic()
            ids = [1000 + (number * 131 + len(ttft) * 37 + i * 7) % 20_000 for i in range(PROMPT_TOKENS)]
            prompt = await stream(session, mesh.url, ids, 1, model=mesh.model)
            ttft.append((prompt.arrivals[0] - sent) * 1e3)
            await asyncio.sleep(max(0.0, sent + EVERY_S - time.monotonic()))
        ended = time.monotonic()
        assert not any(task.done() for task in running), "the streams should outlast the round"
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        gaps = [gap for answer in answers for gap in gaps_ms(answer, began, ended)]
    mesh.settle()
    return {"gap": gaps, "ttft": ttft, "tokens_per_s": [len(gaps) / (ended - began)]}


def gaps_ms(answer: Answer, began: float, ended: float) -> list[float]:
    """Between the tokens that came in the window."""
    inside = [at for at in answer.arrivals if began <= at <= ended]
    return [(b - a) * 1e3 for a, b in itertools.pairwise(inside)]


async def run(rounds: int, seconds: float) -> dict[str, list[dict[str, list[float]]]]:
    cores = str(len(os.sched_getaffinity(0)))
    colocated = ("--prompt-workers", "0", "--token-workers", "0", "--mixed-workers", "1", "--threads", cores)
    results: dict[str, list[dict[str, list[float]]]] = {"disaggregated": [], "colocated": []}
    with RunningMesh("--pools", "fixed") as split, RunningMesh(*colocated) as mixed:
        for number in range(rounds):
            for name, mesh in (("disaggregated", split), ("colocated", mixed)):
                results[name].append(await round_of(mesh, seconds, number))
    return results


def show(results: dict[str, list[dict[str, list[float]]]]) -> None:
    table = Table(title=f"{STREAMS} streams, one {PROMPT_TOKENS}-token prompt every {EVERY_S:.0f} s (median of rounds)")
    for column in ("mesh", "TBT P50 ms", "TBT P99 ms", "max ms", "decode tok/s", "TTFT of the prompts ms"):
        table.add_column(column, justify="right")
    for name, rounds in results.items():
        gaps = [sorted(r["gap"]) for r in rounds]
        figures = [
            statistics.median(g[len(g) // 2] for g in gaps),
            statistics.median(g[int(0.99 * (len(g) - 1))] for g in gaps),
            statistics.median(g[-1] for g in gaps),
            statistics.median(r["tokens_per_s"][0] for r in rounds),
            statistics.median(t for r in rounds for t in r["ttft"]),
        ]
        table.add_row(name, *(f"{figure:.1f}" for figure in figures))
    Console(width=110).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = asyncio.run(run(args.rounds, args.seconds))
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results))


if __name__ == "__main__":
    main()
