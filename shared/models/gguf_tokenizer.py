"""The byte-level BPE tokenizer that a GGUF file describes, as the files that transformers reads."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from shared.errors import ConfigError

_CONTROL = 3  # tokenizer.ggml.token_type of a special token
_SMOLLM = "smollm"  # digits one by one, then the GPT-2 pattern


def write_tokenizer(fields: dict[str, Any], directory: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja from the metadata of a GGUF file."""
    kind = (fields["tokenizer.ggml.model"], fields["tokenizer.ggml.pre"])
    if kind != ("gpt2", _SMOLLM):
        raise ConfigError(f"a GGUF tokenizer of kind {kind[0]}/{kind[1]} cannot be converted")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    tokenizer = _byte_level_bpe(tokens, fields["tokenizer.ggml.merges"])
    special = [text for text, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == _CONTROL]
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in special])
    tokenizer.save(str(directory / "tokenizer.json"))
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    config = {
        **{f"{name}_token": tokens[fields[f"tokenizer.ggml.{field}_token_id"]] for name, field in names.items()},
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": fields["llama.context_length"],
        "chat_template": fields["tokenizer.chat_template"],
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))


def _byte_level_bpe(tokens: list[str], merges: list[str]) -> Tokenizer:
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={text: index for index, text in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
