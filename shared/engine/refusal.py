"""Models that paged attention would serve wrongly, known by their configuration: refused before weights are loaded."""

from collections.abc import Iterator
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from shared.errors import Rejected

_SERVED_LAYERS = {"full_attention", "sliding_attention"}
# Their frequencies follow the longest position in the batch: a request's text would depend on its neighbours.
_BATCH_DEPENDENT_ROPE = {"dynamic", "longrope"}


def refuse_config(name: str, config: PretrainedConfig) -> None:
    """Raise Rejected with the reason if a model of this configuration cannot be served."""
    if reason := next(_reasons(config), None):
        raise refusal(name, reason)


def refusal(name: str, reason: str) -> Rejected:
    return Rejected(f"model {name} cannot be served: {reason}", param="model", code="model_not_supported")


def _reasons(config: PretrainedConfig) -> Iterator[str]:
    if config.is_encoder_decoder:
        yield "it is an encoder-decoder, only decoder-only models are"
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        yield f"transformers knows no causal language model of type {config.model_type}"
    text = config.get_text_config()
    if not getattr(text, "num_attention_heads", None):
        yield "it has no attention layers, so no KV cache to hand over"
    if getattr(text, "kv_lora_rank", None):
        yield "its multi-head latent attention keeps no standard KV cache"
    if getattr(text, "attention_chunk_size", None):
        yield "chunked attention is not supported"
    if others := set(getattr(text, "layer_types", None) or ()) - _SERVED_LAYERS:
        yield f"layers of type {', '.join(sorted(others))} are not supported"
    if ropes := set(_rope_types(getattr(text, "rope_parameters", None))) & _BATCH_DEPENDENT_ROPE:
        yield f"RoPE of type {', '.join(sorted(ropes))} depends on other requests in the batch"


def _rope_types(parameters: Any) -> Iterator[str]:
    """`rope_parameters` is one mapping, or one for each type of layer."""
    if not isinstance(parameters, dict):
        return
    if isinstance(kind := parameters.get("rope_type"), str):
        yield kind
    for nested in parameters.values():
        yield from _rope_types(nested)
