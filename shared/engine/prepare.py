"""From loaded weights to what computes a step: tried against stock attention, packed, and quantized if asked for."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from shared.engine import perplexity
from shared.engine.lean import LeanModel
from shared.engine.native.kernels import Kernels
from shared.engine.packed import PackedStep
from shared.engine.pages import KvPages
from shared.engine.port import Row
from shared.engine.prepack import prepack
from shared.engine.probe import Forward, KvShape, check, forward

_BLOCK_SIZE = 16
_FEW = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """`kernels`: for the pages that `forward` is given."""

    forward: Forward
    kernels: Kernels | None


def prepare(
    name: str, model: PreTrainedModel, shape: KvShape, *, native: bool, positions: int, quantize: str | None, path: Path
) -> Prepared:
    """`native`: use our kernels where they can be had. `positions`: the longest sequence, in tokens. `path`: where the
    tokenizer lies, for the text that quantized weights are tried on. Takes the weights out of `model`, which is of no
    use afterwards. Raises Rejected for a model that cannot be served, ConfigError for one that quantizing spoils."""
    on_cpu = model.device.type == "cpu"
    kernels = Kernels.find(model.dtype, head_dim=shape.head_dim) if native and on_cpu else None
    lean = LeanModel.of(model, shape, kernels, positions)
    prepared = Prepared(lean or partial(forward, model), kernels)
    check(name, model, prepared.forward, shape, kernels)
    if lean is not None:
        model.base_model.layers = nn.ModuleList()
    if on_cpu:
        with torch.inference_mode():
            _pack(lean or model, quantize, _Quality(model, prepared, shape, path))
    return prepared


def _pack(model: nn.Module, quantize: str | None, quality: "_Quality") -> None:
    ids = quality.sample() if quantize else None
    before = quality.perplexity(ids) if ids else 0.0
    prepack(model, quantize)
    if ids and quantize:
        perplexity.check(before, quality.perplexity(ids), quantize)


class _Quality:
    """What a prepared model thinks of the sample text."""

    def __init__(self, model: PreTrainedModel, prepared: Prepared, shape: KvShape, path: Path) -> None:
        self._prepared, self._path = prepared, path
        self._vocab_size = model.config.get_text_config().vocab_size
        self._new_pages = partial(
            KvPages, layers=shape.layers, block_size=_BLOCK_SIZE, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
            dtype=model.dtype, device=model.device, kernels=prepared.kernels,
        )  # fmt: skip

    def sample(self) -> list[int] | None:
        return perplexity.sample_ids(self._path, self._vocab_size)

    def perplexity(self, ids: list[int]) -> float:
        return perplexity.perplexity(self._logits_of, ids)

    def _logits_of(self, ids: list[int]) -> Tensor:
        """A few tokens at a time: quantized weights are multiplied by few rows in another way than by many."""
        blocks = range(-(-len(ids) // _BLOCK_SIZE))
        pages, logits = self._new_pages(blocks=len(blocks)), []
        for start in range(0, len(ids), _FEW):
            row = Row(token_ids=ids[start : start + _FEW], start=start, blocks=blocks, draw=None)
            step = PackedStep([row], pages, None)
            step.drawn = torch.arange(len(row.token_ids))
            logits.append(self._prepared.forward(step))
        return torch.cat(logits)
