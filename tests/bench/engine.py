"""The engine alone: time of a decode step over batch and context, of a prefill over length, beside what the hardware
allows.

    python -m tests.bench.engine [--threads 1] [--dtypes bfloat16,float32] [--quantize int8,int4] [--torch]

The floor of a decode step is its bytes (weights once, KV of all sequences) over the memory bandwidth, that of a prefill
its multiplications over the rate of a large matrix product, both measured in the same run. `--torch` adds the engine
without our kernels. Medians; KV pages hold noise, and the blocks of a sequence lie scattered.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from shared.engine.hf import HfEngine
from shared.engine.port import Draw, Row
from shared.models.catalogue import resolve

os.environ["HF_HUB_OFFLINE"] = "1"

GREEDY = Draw(temperature=0, top_k=0, top_p=1, seed=0, choice=0, position=0)
DECODES = ((1, 300), (4, 300), (16, 300), (16, 1000), (1, 4000))
PREFILLS = (32, 128, 512, 1024, 2048)
KV_BYTES = 768 << 20
REPEATS = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of this machine with so many threads: bytes/s of reading, multiply-add operations/s of a large product."""

    bytes_per_s: float
    flops: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One cell: `what` is decode or prefill, `size` the batch or the tokens, `context` tokens before these."""

    engine: str
    what: str
    size: int
    context: int
    ms: float
    floor_ms: float


def median_s(work: Callable[[], object], repeats: int = REPEATS) -> float:
    work()
    times = []
    for _ in range(repeats):
        before = time.perf_counter()
        work()
        times.append(time.perf_counter() - before)
    return statistics.median(times)


def limits(dtype: torch.dtype, device: torch.device) -> Limits:
    def synced(work: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: work().flatten()[0].item()

    numbers = torch.ones(128 << 20, device=device)
    read_s = median_s(synced(numbers.sum))
    rows, width = 1024, 2048
    left, right = (torch.ones(n, width, dtype=dtype, device=device) for n in (rows, width))
    product_s = median_s(synced(lambda: torch.nn.functional.linear(left, right)))
    return Limits(bytes_per_s=numbers.nbytes / read_s, flops=2 * rows * width * width / product_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Parameters that every token is multiplied with in the layers, those of the output layer, and query widths."""

    layer_weights: int
    head_weights: int
    query_width: int

    @classmethod
    def of(cls, path: Path) -> "Shape":
        config = json.loads((path / "config.json").read_text())
        hidden, heads = config["hidden_size"], config["num_attention_heads"]
        head_dim = config.get("head_dim") or hidden // heads
        kv_width = head_dim * config.get("num_key_value_heads", heads)
        attention = 2 * hidden * head_dim * heads + 2 * hidden * kv_width
        layer = attention + 3 * hidden * config["intermediate_size"]
        return cls(
            layer_weights=layer * config["num_hidden_layers"],
            head_weights=hidden * config["vocab_size"],
            query_width=heads * head_dim * config["num_hidden_layers"],
        )


def decode_floor_s(engine: HfEngine, shape: Shape, limits: Limits, bits: int, batch: int, context: int) -> float:
    kv_bytes = batch * context * engine.facts.kv_bytes_per_token * engine.facts.layers
    return ((shape.layer_weights + shape.head_weights) * bits / 8 + kv_bytes) / limits.bytes_per_s


def prefill_floor_s(shape: Shape, limits: Limits, tokens: int) -> float:
    attention = 2 * tokens * tokens * shape.query_width
    return (2 * tokens * shape.layer_weights + 2 * shape.head_weights + attention) / limits.flops


def figures(name: str, engine: HfEngine, shape: Shape, limits: Limits, bits: int) -> Iterator[Figure]:
    for layer in range(engine.facts.layers):
        for pages in engine._pages.of_layer(layer):
            pages.normal_()
    for batch, context in DECODES:
        tables = scattered(engine, batch, context)
        rows = [Row(token_ids=[5], start=context - 1, blocks=table, draw=GREEDY) for table in tables]
        floor_s = decode_floor_s(engine, shape, limits, bits, batch, context)
        yield _figure(name, "decode", batch, context, median_s(lambda r=rows: engine.step(r)), floor_s)  # type: ignore[misc]
    for tokens in PREFILLS:
        (table,) = scattered(engine, 1, tokens)
        row = Row(token_ids=list(range(100, 100 + tokens)), start=0, blocks=table, draw=GREEDY)
        seconds = median_s(lambda r=row: engine.step([r]), 5)  # type: ignore[misc]
        yield _figure(name, "prefill", tokens, 0, seconds, prefill_floor_s(shape, limits, tokens))


def _figure(name: str, what: str, size: int, context: int, seconds: float, floor_s: float) -> Figure:
    return Figure(engine=name, what=what, size=size, context=context, ms=seconds * 1e3, floor_ms=floor_s * 1e3)


def scattered(engine: HfEngine, sequences: int, tokens: int) -> list[list[int]]:
    free = iter(random.Random(1).sample(range(engine.facts.kv_blocks), engine.facts.kv_blocks))
    return [list(itertools.islice(free, -(-tokens // engine.facts.block_size))) for _ in range(sequences)]


def show(found: Sequence[Figure], of_engine: dict[str, Limits]) -> None:
    console = Console(width=120)
    for what in ("decode", "prefill"):
        table = Table(title=f"{what}: ms (share of what the hardware allows)")
        table.add_column("batch × context" if what == "decode" else "tokens")
        for name in of_engine:
            table.add_column(name, justify="right")
        rows: dict[str, dict[str, Figure]] = {}
        for figure in (f for f in found if f.what == what):
            size = f"{figure.size} × {figure.context}" if what == "decode" else str(figure.size)
            rows.setdefault(size, {})[figure.engine] = figure
        for size, cells in rows.items():
            table.add_row(size, *(f"{c.ms:.1f} ({c.floor_ms / c.ms:.0%})" for c in (cells[n] for n in of_engine)))
        console.print(table)
    for name, limit in of_engine.items():
        console.print(f"{name}: {limit.bytes_per_s / 1e9:.1f} GB/s, {limit.flops / 1e9:.0f} GFLOP/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--quantize", default="int8,int4", help="with bfloat16; empty for none")
    parser.add_argument("--torch", action="store_true", help="also without our kernels")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.device == "cpu":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])
    torch.set_num_threads(args.threads)
    files = resolve(args.model)
    variants = [
        (dtype, None, native)
        for dtype in args.dtypes.split(",")
        for native in ((True, False) if args.torch else (True,))
    ]
    variants += [("bfloat16", kind, True) for kind in filter(None, args.quantize.split(","))]
    found: list[Figure] = []
    of_engine: dict[str, Limits] = {}
    for dtype, quantize, native in track(variants, description="engines"):
        name = (quantize or dtype) + ("" if native else ", torch")
        of_engine[name] = limits(getattr(torch, dtype), torch.device(args.device))
        engine = HfEngine(
            name=files.name, path=files.path, device=args.device, dtype=dtype, threads=args.threads,
            kv_bytes=KV_BYTES, native=native, quantize=quantize,
        )  # fmt: skip
        bits = {"int8": 8, "int4": 5}.get(quantize or "", 8 * getattr(torch, dtype).itemsize)  # with scales of groups
        found += figures(name, engine, Shape.of(files.path), of_engine[name], bits)
        engine.close()
    show(found, of_engine)
    if args.json:
        limits_of = {name: asdict(limit) for name, limit in of_engine.items()}
        args.json.write_text(json.dumps({"limits": limits_of, "figures": [asdict(figure) for figure in found]}))


if __name__ == "__main__":
    main()
