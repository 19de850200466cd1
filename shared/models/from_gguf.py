"""Turn a GGUF file of a Llama model into a directory that transformers loads, without loss and without torch.

The weights are dequantized to float32 exactly as the format defines it, the names and the rotary layout of Q and K
become those of transformers, and the tokenizer splits text as the `tokenizer.ggml.pre` field demands.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from numpy.typing import NDArray
from safetensors.numpy import save_file

from shared.errors import ConfigError
from shared.models.gguf_tokenizer import write_tokenizer
from shared.models.progress import Progress

_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf: Path, directory: Path, progress: Progress) -> None:
    """Write config.json, generation_config.json, model.safetensors and the tokenizer files into `directory`."""
    reader = GGUFReader(gguf)
    fields: dict[str, Any] = {name: field.contents() for name, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ConfigError(f"{gguf.name}: architecture {fields['general.architecture']} cannot be converted")
    heads = {"attn_q": fields["llama.attention.head_count"], "attn_k": fields["llama.attention.head_count_kv"]}
    weights = dict(_weights(reader, heads, progress))
    progress("writing weights", 0, 0)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    _write_configs(fields, directory, tied="lm_head.weight" not in weights)
    write_tokenizer(fields, directory)


def _weights(
    reader: GGUFReader, heads: dict[str, int], progress: Progress
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for index, tensor in enumerate(reader.tensors):
        progress("preparing weights", index, len(reader.tensors))
        *layer, part, kind = tensor.name.split(".")  # blk.7.attn_q.weight
        prefix = f"model.layers.{layer[1]}." if layer else ""
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        if part in heads:
            weight = _split_halves(weight, heads[part])
        yield f"{prefix}{_NAMES[part]}.{kind}", np.ascontiguousarray(weight)


def _split_halves(weight: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """GGUF pairs rotary dimensions as (0, 1), (2, 3), ...; transformers pairs (0, d/2), (1, d/2 + 1), ..."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _write_configs(fields: dict[str, Any], directory: Path, *, tied: bool) -> None:
    special = {
        "bos_token_id": fields["tokenizer.ggml.bos_token_id"],
        "eos_token_id": fields["tokenizer.ggml.eos_token_id"],
        "pad_token_id": fields.get("tokenizer.ggml.padding_token_id"),
    }
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "hidden_act": "silu",
        "hidden_size": fields["llama.embedding_length"],
        "intermediate_size": fields["llama.feed_forward_length"],
        "num_hidden_layers": fields["llama.block_count"],
        "num_attention_heads": fields["llama.attention.head_count"],
        "num_key_value_heads": fields["llama.attention.head_count_kv"],
        "head_dim": fields["llama.rope.dimension_count"],
        "max_position_embeddings": fields["llama.context_length"],
        "rms_norm_eps": fields["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": fields["llama.rope.freq_base"]},
        "vocab_size": len(fields["tokenizer.ggml.tokens"]),
        "tie_word_embeddings": tied,
        **special,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps(special, indent=2))
