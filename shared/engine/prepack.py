"""Linear layers with weights in oneDNN's own layout, where that is faster on this processor, or quantized if asked for.

Decode multiplies few rows by large weights, and the plain layout is read badly then (up to half of a decode step).
Small weights in float32 are faster as they are, so every shape is tried both ways on a few rows at load.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

import structlog
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from shared.engine.native.kernels import FewRows
from shared.engine.quantized import Int4Linear, Int8Linear, Scratch
from shared.errors import ConfigError

_KINDS: dict[str, type[Int8Linear] | type[Int4Linear]] = {"int8": Int8Linear, "int4": Int4Linear}
_ROWS = (1, 4, 16)  # sizes of decode batches
_SAMPLES = 8  # weights of one shape that are timed one after the other, so that they do not stay in the cache
_REPEATS = 5
_FEW = 32  # rows up to which our kernel is faster
_GAIN = 0.95  # share of the plain time that a packed weight must beat


class PackedLinear(nn.Module):
    """x @ weight.T + bias. In bfloat16 our kernel multiplies few rows, if it can be had, oneDNN all else.

    The dense weight is dropped (packed tensors are opaque and cannot be saved), or kept for many rows: where these are
    rare and others have it too, as that of an output layer tied to the embedding table.
    """

    def __init__(self, linear: nn.Linear, *, keep: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.weight.detach()
        self.bias: Tensor | None = linear.bias
        pairs = weight.dtype == torch.bfloat16
        self._few = FewRows.find(16, inputs=self.in_features, outputs=self.out_features) if pairs else None
        self._dense = weight if keep and self._few is not None else None
        if self._few is not None:
            tiles = weight.view(-1, FewRows.OUTPUTS, self.in_features // 2, 2)
            self._tiles = tiles.transpose(1, 2).contiguous()
        if self._dense is None:
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, None)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor
        if self._few is not None and x.numel() <= _FEW * self.in_features:
            rows = x.reshape(-1, self.in_features).contiguous()
            result = self._few.multiply(rows, self._tiles, None, self.out_features, 16)
            result = result.view(*x.shape[:-1], self.out_features)
            return result if self.bias is None else result.add_(self.bias)
        if self._dense is not None:
            return linear(x, self._dense, self.bias)
        result = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return result


def prepack(model: nn.Module, quantize: str | None = None) -> int:
    """Swap linear layers: packed where that pays or, with `quantize` (int8, int4), every one that can be quantized.

    Returns how many were swapped. `model` is on the CPU and has no gradients. The embedding table stays as it is, also
    where lm_head shares its weights. With int4, linear layers directly in `model` have 8 bits: these make the logits,
    and cost more in quality than all others together. Raises ConfigError for an unknown kind or weights elsewhere.
    """
    if quantize is not None:
        return _quantize(model, quantize)
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    places: dict[tuple[int, int, torch.dtype], list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent, name, layer in _linears(model):
        places[layer.out_features, layer.in_features, layer.weight.dtype].append((parent, name))
    swapped = 0
    for found in places.values():
        linears = [getattr(parent, name) for parent, name in found[:_SAMPLES]]
        if _pays(linears):
            for parent, name in found:
                setattr(parent, name, PackedLinear(getattr(parent, name), keep=parent is model))
            swapped += len(found)
    return swapped


def _linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16)
    ]


def _quantize(model: nn.Module, quantize: str) -> int:
    kind = _KINDS.get(quantize)
    if kind is None:
        raise ConfigError(f"--quantize {quantize}: give one of {', '.join(_KINDS)}", param="quantize")
    if any(parameter.device.type != "cpu" for parameter in model.parameters()):
        raise ConfigError(f"--quantize {quantize} is for --device cpu only", param="quantize")
    started, scratch, left, swapped = time.perf_counter(), Scratch(), 0, 0
    for parent, name, layer in _linears(model):
        chosen = Int8Linear if parent is model else kind
        if chosen.fits(layer):
            setattr(parent, name, chosen(layer, scratch))
            swapped += 1
        else:
            left += 1
    structlog.get_logger().info(
        "weights quantized", kind=quantize, layers=swapped, left_as_they_are=left,
        seconds=round(time.perf_counter() - started, 2),
    )  # fmt: skip
    return swapped


def _pays(linears: Sequence[nn.Linear]) -> bool:
    packed = [PackedLinear(linear) for linear in linears]
    plain_s = packed_s = 0.0
    for rows in _ROWS:
        x = torch.ones(1, rows, linears[0].in_features, dtype=linears[0].weight.dtype)
        # In turn, and the quickest of each: what other processes take then weighs on neither.
        times_s = [(_time_s(linears, x), _time_s(packed, x)) for _ in range(_REPEATS)]
        plain_s += min(plain for plain, _ in times_s)
        packed_s += min(packed for _, packed in times_s)
    return packed_s < plain_s * _GAIN


def _time_s(layers: Sequence[nn.Module], x: Tensor) -> float:
    started = time.perf_counter()
    for layer in layers:
        layer(x)
    return time.perf_counter() - started
