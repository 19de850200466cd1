"""What dtypes and quantized weights cost in quality: perplexity of a text, in windows of 256 tokens.

    python -m tests.bench.perplexity [--model NAME] [--text FILE] [--threads 1] [--rows 8] [--only int8,int4]

The model is transformers' own, its linear layers swapped as a worker swaps them: this measures weights, not the engine.
"""

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from shared.engine.perplexity import perplexity
from shared.engine.prepack import prepack
from shared.engine.sample_text import SAMPLE
from shared.models.catalogue import resolve
from shared.models.tokenizer import load_tokenizer

VARIANTS = {
    "float32": (torch.float32, None),
    "bfloat16": (torch.bfloat16, None),
    "int8": (torch.bfloat16, "int8"),
    "int4": (torch.bfloat16, "int4"),
    "float32-int8": (torch.float32, "int8"),
    "float32-int4": (torch.float32, "int4"),
}


def logits_of(model: Any, rows: int | None, ids: list[int]) -> Tensor:
    """`rows`: tokens computed together, None for all; a few take the way that decode steps take."""
    cache = transformers.DynamicCache()
    pieces = torch.split(torch.tensor(ids), rows or len(ids))
    return torch.cat([model(input_ids=piece[None], past_key_values=cache).logits[0] for piece in pieces])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--text", type=Path, help="default: the text on which a worker checks --quantize")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rows", type=int, help="tokens computed together (default: the whole window)")
    parser.add_argument("--only", default=",".join(VARIANTS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    files = resolve(args.model)
    ids = load_tokenizer(files.path).encode(args.text.read_text() if args.text else SAMPLE)
    table = Table(title=f"{files.name}, {len(ids)} tokens")
    for column in ("weights", "perplexity", "of the first", "prepared in", "computed in"):
        table.add_column(column, justify="left" if column == "weights" else "right")
    first = None
    for name in args.only.split(","):
        dtype, quantize = VARIANTS[name]
        loader: Any = transformers.AutoModelForCausalLM  # its methods have no types
        model = loader.from_pretrained(files.path, dtype=dtype, local_files_only=True).train(False)
        with torch.inference_mode():
            started_at = time.perf_counter()
            prepack(model.requires_grad_(False), quantize)
            prepared_at = time.perf_counter()
            value = perplexity(partial(logits_of, model, args.rows), ids)
            ended_at = time.perf_counter()
        first = first or value
        table.add_row(
            name, f"{value:.3f}", f"{value / first - 1:+.2%}", f"{prepared_at - started_at:.2f} s",
            f"{ended_at - prepared_at:.1f} s",
        )  # fmt: skip
    Console().print(table)


if __name__ == "__main__":
    main()
