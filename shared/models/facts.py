"""What config.json says of a model, read without loading it: enough to size the KV cache and to know when text ends."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigFacts:
    """`dtype` is the one that the weights are stored in."""

    layers: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_position_embeddings: int
    dtype: str
    eos_token_ids: tuple[int, ...]

    def kv_bytes_per_token(self, itemsize_bytes: int) -> int:
        """K and V of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * itemsize_bytes


def facts_of(path: Path) -> ConfigFacts:
    """Facts of the model in directory `path`. Raises ConfigError if its config.json does not tell them."""
    whole = _json(path / "config.json")
    config: Mapping[str, Any] = {**whole, **whole.get("text_config", {})}
    heads = _first(path, config, "num_attention_heads", "n_head", "n_heads")
    generation = _json(path / "generation_config.json") if (path / "generation_config.json").is_file() else {}
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return ConfigFacts(
        layers=_first(path, config, "num_hidden_layers", "n_layer", "n_layers"),
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or _first(path, config, "hidden_size", "n_embd") // heads,
        vocab_size=_first(path, config, "vocab_size"),
        max_position_embeddings=_first(path, config, "max_position_embeddings", "n_positions", "max_seq_len"),
        dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        eos_token_ids=tuple(eos if isinstance(eos, list) else [] if eos is None else [eos]),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", param="model") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is not a JSON object", param="model")
    return content


def _first(path: Path, config: Mapping[str, Any], *names: str) -> int:
    for name in names:
        if isinstance(value := config.get(name), int):
            return value
    raise ConfigError(f"{path}/config.json tells no {names[0]}: not a decoder-only language model?", param="model")
