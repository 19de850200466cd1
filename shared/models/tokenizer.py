"""Text to token ids and back, as transformers' AutoTokenizer does it, but without torch or transformers.

`load_tokenizer(directory)` reads tokenizer.json, tokenizer_config.json, generation_config.json and chat_template.jinja;
`load_tokenizer("bytes")` needs no files. Both give the same ids for a text wherever they run, from any thread.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tokenizers import AddedToken, decoders
from tokenizers import Tokenizer as BackendTokenizer

from shared.errors import ConfigError, Rejected
from shared.models.chat_template import ChatTemplate

Message = Mapping[str, Any]
BYTES = "bytes"


class Tokenizer(Protocol):
    @property
    def vocab_size(self) -> int:
        """Ids from 0 up to this are known."""
        ...

    @property
    def eos_token_ids(self) -> frozenset[int]: ...

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that have no text of their own in an answer."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]: ...

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str: ...

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        """Raises Rejected if there is no template, or if the template refuses the messages."""
        ...

    def token_bytes(self) -> Sequence[bytes] | None:
        """What each id adds to the UTF-8 output; None where that depends on the neighbours."""
        ...


def load_tokenizer(path: Path | str) -> Tokenizer:
    """Raises ConfigError for a directory without a readable tokenizer."""
    return ByteTokenizer() if str(path) == BYTES else JsonTokenizer(Path(path))


class ByteTokenizer:
    """Ids 0..255 are the bytes of UTF-8, 256 ends the sequence: the tokenizer of models that need no files."""

    eos_id = 256
    vocab_size = 257
    eos_token_ids = frozenset({eos_id})
    special_ids = frozenset({eos_id})

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        table = self.token_bytes()
        kept = (i for i in token_ids if not (skip_special_tokens and i == self.eos_id))
        return b"".join(table[i] for i in kept if 0 <= i < len(table)).decode(errors="replace")

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        text = "".join(f"{message['role']}: {message.get('content') or ''}\n" for message in messages)
        return self.encode(text + ("assistant: " if add_generation_prompt else ""))

    def token_bytes(self) -> Sequence[bytes]:
        return _BYTES_OF_BYTE_TOKENS


_BYTES_OF_BYTE_TOKENS = (*(bytes([i]) for i in range(256)), b"<eos>")


class JsonTokenizer:
    """tokenizer.json of the `tokenizers` library with the settings that transformers reads beside it. Whether BOS and
    EOS are added to a text is said by its post-processor alone: transformers ignores add_bos_token beside that file."""

    def __init__(self, directory: Path) -> None:
        config = _json_object(directory / "tokenizer_config.json")
        try:
            self._backend = BackendTokenizer.from_file(str(directory / "tokenizer.json"))
        except Exception as error:  # the library raises bare Exception for a missing or malformed file
            raise ConfigError(f"{directory}: no readable tokenizer.json ({error})") from error
        self._backend.no_truncation()
        self._backend.no_padding()
        named = _special_tokens(config)
        self._backend.add_special_tokens(list(named.values()))
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self.eos_token_ids = self._eos_ids(directory, named)
        self.vocab_size = max(self._backend.get_vocab(with_added_tokens=True).values()) + 1
        self._template = ChatTemplate.of(directory, config, {name: token.content for name, token in named.items()})
        self._bytes = self._byte_level_table()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        # The batch call is the one that releases the interpreter lock: long prompts must not stall the event loop.
        ids: list[int] = self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        return ids

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        known = [i for i in token_ids if 0 <= i < self.vocab_size]
        return self._backend.decode(known, skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self, messages: Sequence[Message], *, add_generation_prompt: bool = True, **variables: Any
    ) -> list[int]:
        if self._template is None:
            raise Rejected("this model has no chat template; use /v1/completions", code="no_chat_template")
        text = self._template.render(messages, add_generation_prompt=add_generation_prompt, **variables)
        return self.encode(text, add_special_tokens=False)

    def token_bytes(self) -> Sequence[bytes] | None:
        return self._bytes

    def _eos_ids(self, directory: Path, named: Mapping[str, AddedToken]) -> frozenset[int]:
        ids = _json_object(directory / "generation_config.json").get("eos_token_id")
        found = {ids} if isinstance(ids, int) else set(ids or ())
        if "eos_token" in named:
            found.add(self._backend.token_to_id(named["eos_token"].content))
        return frozenset(found)

    def _byte_level_table(self) -> tuple[bytes, ...] | None:
        """Where the decoder is GPT-2's byte-level one, every token stands for fixed bytes."""
        if not isinstance(self._backend.decoder, decoders.ByteLevel):
            return None
        byte_of = _byte_of_character()
        table = [b""] * self.vocab_size
        for token, token_id in self._backend.get_vocab(with_added_tokens=True).items():
            spelled = [byte_of.get(character) for character in token]
            table[token_id] = token.encode() if None in spelled else bytes(b for b in spelled if b is not None)
        return tuple(table)


def _byte_of_character() -> dict[str, int]:
    """The byte-level alphabet: printable Latin-1 bytes stand for themselves, the others for U+0100 and up, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def _special_tokens(config: Mapping[str, Any]) -> dict[str, AddedToken]:
    """The named special tokens ("bos_token", "eos_token" ...) and the extra ones, as transformers registers them."""
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or ()
    extra = extra if isinstance(extra, dict) else {f"extra_{i}": token for i, token in enumerate(extra)}
    named = {name: value for name, value in config.items() if name.endswith("_token")} | extra
    tokens = {}
    for name, value in named.items():
        if isinstance(value, str):
            tokens[name] = AddedToken(value, special=True, normalized=False)
        elif isinstance(value, dict) and "content" in value:
            flags = {key: bool(value[key]) for key in ("single_word", "lstrip", "rstrip", "normalized") if key in value}
            tokens[name] = AddedToken(value["content"], special=True, **flags)
    return tokens


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return content if isinstance(content, dict) else {}
