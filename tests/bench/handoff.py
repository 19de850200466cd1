"""Layer-wise against serialized KV hand-off, on real processes, the real model, the real transport.

    python -m tests.bench.handoff [--lengths 128,256,512,1024,2048] [--rounds 5] [--json FILE]

Two meshes (1 prompt + 1 token worker each) that differ in `--push` alone stand side by side; requests alternate between
them, one at a time, so noise of the machine hits both alike. Medians. Prediction: serialized exposes the whole
transfer, so its exposed time grows with the prompt; layer-wise exposes about the last layer's share, so it stays flat
near a few milliseconds, and the second token comes earlier by the difference.
"""

import argparse
import asyncio
import json
import statistics
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tests.support.client import stream
from tests.support.running import RunningMesh

MODES = ("layerwise", "serialized")
TOKENS = 6


async def measure(mesh: RunningMesh, session: aiohttp.ClientSession, length: int, number: int) -> dict[str, float]:
    """One request; milliseconds as the workers measured them, and the gap between token 0 and token 1 at the client."""
    prompt: Any = [1000 + (number * 131 + i * 7) % 20_000 for i in range(length)]
    answer = await stream(session, mesh.url, prompt, TOKENS, model=mesh.model)
    assert answer.finish == "length", f"{answer.status} {answer.error}"
    stages = mesh.get(f"/mesh/requests/{answer.request_id}")["stages"]
    prefill = next(s for s in stages if s["stage"] == "measured")
    handed_off = next(s for s in stages if s["stage"] == "handed_off")
    return {
        "prefill": prefill["prefill_s"] * 1e3,
        "transfer": handed_off["transfer_s"] * 1e3,
        "exposed": handed_off["exposed_s"] * 1e3,
        "second_token": (answer.arrivals[1] - answer.arrivals[0]) * 1e3,
        "kv_mb": handed_off["kv_bytes"] / 1e6,
    }


async def run(lengths: list[int], rounds: int) -> dict[str, dict[int, list[dict[str, float]]]]:
    results: dict[str, dict[int, list[dict[str, float]]]] = {mode: {n: [] for n in lengths} for mode in MODES}
    fixed = ("--pools", "fixed")
    with RunningMesh("--push", MODES[0], *fixed) as first, RunningMesh("--push", MODES[1], *fixed) as second:
        timeout = aiohttp.ClientTimeout(total=120)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            for mesh in (first, second):
                await measure(mesh, session, 64, 0)
            plan = [(n, r) for n in lengths for r in range(rounds)]
            for length, number in track(plan, description="alternating", console=Console(stderr=True)):
                for mode, mesh in zip(MODES, (first, second), strict=True):
                    results[mode][length].append(await measure(mesh, session, length, number))
    return results


def median(samples: list[dict[str, float]], key: str) -> float:
    return statistics.median(s[key] for s in samples)


def show(results: dict[str, dict[int, list[dict[str, float]]]]) -> None:
    table = Table(title="KV hand-off, medians in ms (layer-wise | serialized)")
    for column in ("prompt", "KV MB", "prefill", "transfer", "exposed", "exposed / prefill", "second token"):
        table.add_column(column, justify="right")
    for length in results[MODES[0]]:
        layerwise, serialized = (results[mode][length] for mode in MODES)

        def both(key: str, a: Any = layerwise, b: Any = serialized) -> str:
            return f"{median(a, key):.1f} | {median(b, key):.1f}"

        share = " | ".join(f"{median(s, 'exposed') / median(s, 'prefill'):.1%}" for s in (layerwise, serialized))
        size = f"{median(layerwise, 'kv_mb'):.1f}"
        table.add_row(
            str(length), size, both("prefill"), both("transfer"), both("exposed"), share, both("second_token")
        )
    Console(width=130).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--lengths", default="128,256,512,1024,2048")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = asyncio.run(run([int(n) for n in args.lengths.split(",")], args.rounds))
    show(results)
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
