"""A decoder of the Llama family as one short loop: fused weights, our kernels between the matrix products.

It computes what transformers' modules of the same model compute, with a tenth of the Python and half of the memory
traffic; a trial run at load compares the two. Models of other families run as they come.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from transformers import PreTrainedModel

from shared.engine.native.kernels import Kernels, Rotation
from shared.engine.packed import PackedStep
from shared.engine.probe import KvShape

_FAMILY = {"llama", "mistral", "qwen2", "qwen3"}
_LANES = 16  # the gate kernel takes whole vectors


class LeanLayer(nn.Module):
    """Weights of one layer, taken out of transformers' module."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = _fused(attention.q_proj, attention.k_proj, attention.v_proj)
        self.out = attention.o_proj
        self.gate_up = _fused(mlp.gate_proj, mlp.up_proj)
        self.down = mlp.down_proj
        self.input_norm = layer.input_layernorm.weight
        self.mlp_norm = layer.post_attention_layernorm.weight
        query_norm, key_norm = getattr(attention, "q_norm", None), getattr(attention, "k_norm", None)
        self.norms = (query_norm.weight, key_norm.weight) if query_norm is not None and key_norm is not None else None


class LeanModel(nn.Module):
    """Logits [rows that want a token, vocabulary] of a PackedStep whose pages have kernels; see `of`."""

    def __init__(self, model: PreTrainedModel, shape: KvShape, kernels: Kernels, positions: int) -> None:
        super().__init__()
        whole: Any = model
        base, config = whole.base_model, whole.config
        self._kernels, self._shape = kernels, shape
        self._heads = config.num_attention_heads
        self._eps = config.rms_norm_eps
        self._table = base.embed_tokens.weight
        self._norm = base.norm.weight
        self._rope = _rotary(base.rotary_emb, positions)
        self.layers = nn.ModuleList(LeanLayer(layer) for layer in base.layers)
        self.head: nn.Module = whole.get_output_embeddings()

    @classmethod
    def of(cls, model: PreTrainedModel, shape: KvShape, kernels: Kernels | None, positions: int) -> "LeanModel | None":
        """None for a model that this loop does not compute. `positions`: the longest sequence, in tokens."""
        return cls(model, shape, kernels, positions) if kernels and _fits(model, shape) else None

    def forward(self, step: PackedStep) -> Tensor:
        kernels, eps = self._kernels, self._eps
        x = embedding(step.input_ids, self._table)
        add: Tensor | None = None
        rotation = self._rotation(step, None)
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, LeanLayer)
            qkv = layer.qkv(kernels.add_norm(x, add, layer.input_norm, eps))
            attended = self._attention(
                step, number, qkv, self._rotation(step, layer.norms) if layer.norms else rotation
            )
            if number == self._shape.layers - 1:  # what nobody draws from ends here
                attended, x = attended[step.drawn], x[step.drawn]
            normed = kernels.add_norm(x, layer.out(attended), layer.mlp_norm, eps)
            add = layer.down(kernels.gate(layer.gate_up(normed)))
        logits: Tensor = self.head(kernels.add_norm(x, add, self._norm, eps))
        return logits

    def _rotation(self, step: PackedStep, norms: tuple[Tensor, Tensor] | None) -> Rotation:
        cosines, sines = self._rope
        return Rotation(
            cosines=cosines, sines=sines, positions=step.positions, slots=step.slots, heads=self._heads,
            kv_heads=self._shape.kv_heads, head_dim=self._shape.head_dim, norms=norms, eps=self._eps,
        )  # fmt: skip

    def _attention(self, step: PackedStep, number: int, qkv: Tensor, rotation: Rotation) -> Tensor:
        shape, heads = self._shape, self._heads
        self._kernels.rotate(rotation, qkv, *step.pages.of_layer(number))
        query = qkv[:, : heads * shape.head_dim].view(len(qkv), heads, shape.head_dim)
        attended = step.attend_written(number, query, scale=shape.scale, window=shape.windows[number])
        return attended.view(len(qkv), -1)


def _fits(model: PreTrainedModel, shape: KvShape) -> bool:
    config = model.config
    if config.model_type not in _FAMILY or model.device.type != "cpu":
        return False
    base: Any = model.base_model
    rotates_all = base.rotary_emb(torch.zeros(1), torch.zeros(1, 1, dtype=torch.long))[0].shape[-1] == shape.head_dim
    silu = all(isinstance(layer.mlp.act_fn, nn.SiLU) or config.hidden_act == "silu" for layer in base.layers)
    return bool(rotates_all and silu and config.intermediate_size % _LANES == 0)


def _fused(*linears: nn.Linear) -> nn.Linear:
    """One linear layer whose output is that of all, side by side."""
    weight = torch.cat([linear.weight for linear in linears])
    fused = nn.Linear(weight.shape[1], weight.shape[0], bias=linears[0].bias is not None, device="meta")
    fused.weight = nn.Parameter(weight, requires_grad=False)
    if linears[0].bias is not None:
        fused.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]), requires_grad=False)
    return fused


def _rotary(rotary: Any, positions: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [positions, head_dim / 2], float32; both halves of transformers' are the same."""
    found = rotary(torch.zeros(1), torch.arange(positions)[None])
    cosines, sines = (table[0, :, : table.shape[-1] // 2].float().contiguous() for table in found)
    return cosines, sines
