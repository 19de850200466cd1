"""Linear layers with weights in oneDNN's own layout: where that is faster on this processor, and only there.

Decode multiplies few rows by large weights, and the plain layout is read badly then (up to half of a decode step).
Small weights in float32 are faster as they are, so every shape is tried both ways on a few rows at load.
"""

import time
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

_ROWS = (1, 4, 16)  # sizes of decode batches
_SAMPLES = 8  # weights of one shape that are timed one after the other, so that they do not stay in the cache
_REPEATS = 5
_GAIN = 0.95  # share of the plain time that a packed weight must beat


class PackedLinear(nn.Module):
    """x @ weight.T + bias. The dense weight is dropped: packed tensors are opaque and cannot be saved."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")
        return result


def prepack(model: nn.Module) -> int:
    """Swap the linear layers of a CPU model where that pays; returns how many. Call without gradients."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return 0
    places: dict[tuple[int, int, torch.dtype], list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for name, child in parent.named_children():
            if type(child) is nn.Linear and child.weight.dtype in (torch.float32, torch.bfloat16):
                places[child.out_features, child.in_features, child.weight.dtype].append((parent, name))
    swapped = 0
    for found in places.values():
        linears = [getattr(parent, name) for parent, name in found[:_SAMPLES]]
        if _pays(linears):
            for parent, name in found:
                setattr(parent, name, PackedLinear(getattr(parent, name)))
            swapped += len(found)
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
