"""From loaded weights to what computes a step: tried against stock attention, packed, and quantized if asked for."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedModel

from shared.engine.lean import LeanModel
from shared.engine.native.kernels import Kernels
from shared.engine.prepack import prepack
from shared.engine.probe import Forward, KvShape, check, forward


@dataclass(frozen=True, slots=True)
class Prepared:
    """`kernels`: for the pages that `forward` is given."""

    forward: Forward
    kernels: Kernels | None


def prepare(name: str, model: PreTrainedModel, shape: KvShape, *, native: bool, positions: int) -> Prepared:
    """`native`: use our kernels where they can be had. `positions`: the longest sequence, in tokens. Takes the weights
    out of `model`, which is of no use afterwards. Raises Rejected for a model that cannot be served."""
    on_cpu = model.device.type == "cpu"
    kernels = Kernels.find(model.dtype, head_dim=shape.head_dim) if native and on_cpu else None
    lean = LeanModel.of(model, shape, kernels, positions)
    prepared = Prepared(lean or partial(forward, model), kernels)
    check(name, model, prepared.forward, shape, kernels)
    if lean is not None:
        model.base_model.layers = nn.ModuleList()
    if on_cpu:
        with torch.inference_mode():
            prepack(lean or model)
    return prepared
