"""Try a loaded model before it serves.

Every layer must come by once, in order, with standard K and V, and the logits of a mixed step must be those of
transformers' own attention. Whatever fails is refused in one line.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from shared.engine import attention
from shared.engine.native.kernels import Kernels
from shared.engine.packed import PackedStep
from shared.engine.pages import KvPages
from shared.engine.port import Draw, Row
from shared.engine.refusal import refusal

_LONG, _SHORT = 24, 9  # tokens of the two probe sequences
_BLOCK_SIZE = 4
# Root mean square of the difference to the stock logits, as a share of their standard deviation. Right models differ by
# rounding (1e-5 in float32, 2e-2 in bfloat16), wrong ones by 0.3 and more.
_TOLERANCE = {torch.float32: 2e-3, torch.float64: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
_HARMLESS = {"dropout", "position_ids", "use_cache", "is_causal"}
_ANY = Draw(temperature=0, top_k=0, top_p=1, seed=0, choice=0, position=0)


# Logits [rows that want a token, vocabulary] of one step.
Forward = Callable[[PackedStep], Tensor]


@dataclass(frozen=True, slots=True)
class KvShape:
    """Of the KV cache; and what each layer's attention is told: a factor on the scores, None for the usual one, and how
    many tokens back it sees, None for all."""

    layers: int
    kv_heads: int
    head_dim: int
    scale: float | None
    windows: tuple[int | None, ...]


def forward(model: PreTrainedModel, step: PackedStep) -> Tensor:
    """A Forward, by transformers' own modules."""
    inputs = {
        "input_ids": step.input_ids[None], "position_ids": step.positions[None], "use_cache": False, "splitmesh": step
    }  # fmt: skip
    if not len(step.drawn):
        model.base_model(**inputs)
        return torch.empty(0, 0)
    logits: Tensor = model(**inputs, logits_to_keep=step.drawn).logits[0]
    return logits


def probe(name: str, model: PreTrainedModel) -> KvShape:
    """What `model` hands to attention. Raises Rejected if that cannot be served from pages."""
    if not model._supports_attention_backend or model.config._attn_implementation != attention.NAME:
        raise refusal(name, "its attention cannot be replaced")
    if any(getattr(module, "is_causal", True) is False for module in model.modules()):
        raise refusal(name, "its attention is not causal")
    with torch.inference_mode(), _trial(name):
        return _seen(name, model)


def check(name: str, model: PreTrainedModel, forward: Forward, shape: KvShape, kernels: Kernels | None) -> None:
    """Raises Rejected if `forward` over pages does not say what the model says with stock attention."""
    with torch.inference_mode(), _trial(name):
        difference = _difference(model, forward, shape, kernels)
    if not difference <= _TOLERANCE[model.dtype]:
        raise refusal(name, f"paged attention changes its logits (by {difference:.2g} of their spread)")


@contextlib.contextmanager
def _trial(name: str) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError, RuntimeError, AttributeError, KeyError, IndexError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise refusal(name, f"a trial run with paged attention failed ({reason[:200]})") from error


@dataclass(slots=True)
class _Recorder:
    """Attends plainly, and notes what each layer handed over."""

    layers: list[int] = field(default_factory=list)
    shapes: set[tuple[int, int, int]] = field(default_factory=set)
    windows: list[int | None] = field(default_factory=list)
    scales: set[float | None] = field(default_factory=set)
    extras: set[str] = field(default_factory=set)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None,
        mask: Tensor | None, **others: Any,
    ) -> Tensor:  # fmt: skip
        self.layers.append(layer)
        self.shapes.add((key.shape[1], key.shape[2], value.shape[2]))
        self.windows.append(window)
        self.scales.add(scale)
        self.extras |= {what for what, value in others.items() if value is not None and value is not False} - _HARMLESS
        if mask is not None:
            self.extras.add("attention_mask")
        return attention.whole(query, key, value, scale, window)


def _seen(name: str, model: PreTrainedModel) -> KvShape:
    recorder, config = _Recorder(), model.config.get_text_config()
    ids = _tokens(model, _LONG)[None]
    model(
        input_ids=ids, position_ids=torch.arange(_LONG, device=model.device)[None], use_cache=False, splitmesh=recorder
    )
    layers = config.num_hidden_layers
    if recorder.layers != list(range(layers)):
        raise refusal(
            name, f"{len(set(recorder.layers))} of its {layers} layers have attention with a standard KV cache"
        )
    if len(recorder.shapes) > 1:
        raise refusal(name, "the KV shapes of its layers differ")
    kv_heads, key_dim, value_dim = next(iter(recorder.shapes))
    if key_dim != value_dim:
        raise refusal(name, "its keys and values differ in size")
    if len(recorder.scales) > 1:
        raise refusal(name, "the scales of its layers' attention differ")
    if recorder.extras:
        raise refusal(name, f"its attention needs {', '.join(sorted(recorder.extras))}")
    for kind, window in zip(getattr(config, "layer_types", None) or (), recorder.windows, strict=False):
        if kind == "sliding_attention" and window is None:
            raise refusal(name, "its sliding window is not handed to the attention function")
    return KvShape(layers, kv_heads, key_dim, next(iter(recorder.scales)), tuple(recorder.windows))


def _difference(model: PreTrainedModel, forward: Forward, shape: KvShape, kernels: Kernels | None) -> float:
    """One sequence whole beside another in three pieces, in shuffled pages, against each alone with stock attention."""
    pages = KvPages(
        layers=shape.layers, blocks=16, block_size=_BLOCK_SIZE, kv_heads=shape.kv_heads, head_dim=shape.head_dim,
        dtype=model.dtype, device=model.device, kernels=kernels,
    )  # fmt: skip
    long, short = _tokens(model, _LONG), _tokens(model, _SHORT)
    ids = short.tolist()
    blocks = (7, 3, 12)
    forward(PackedStep([Row(token_ids=ids[:4], start=0, blocks=blocks, draw=None)], pages, None))
    middle = Row(token_ids=ids[4:8], start=4, blocks=blocks, draw=None)
    whole = Row(token_ids=long.tolist(), start=0, blocks=(5, 1, 8, 2, 9, 4), draw=_ANY)
    of_long = forward(PackedStep([middle, whole], pages, None))
    of_short = forward(PackedStep([Row(token_ids=ids[8:], start=8, blocks=blocks, draw=_ANY)], pages, None))
    model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    try:
        stock = torch.cat(
            [model(input_ids=each[None], use_cache=False).logits[:, -1] for each in (long, short)]
        ).float()
    finally:
        model.set_attn_implementation(attention.NAME)
    return float((torch.cat([of_long, of_short]).float() - stock).square().mean().sqrt() / stock.std())


def _tokens(model: PreTrainedModel, count: int) -> Tensor:
    """Different ids from all over the vocabulary."""
    vocab_size = model.config.get_text_config().vocab_size
    ids: Tensor = (torch.arange(1, count + 1, device=model.device) * 7919 + count) % vocab_size
    return ids
