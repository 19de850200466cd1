"""load_tokenizer gives the ids and texts that transformers' AutoTokenizer gives, without importing it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from shared.errors import ConfigError, Rejected
from shared.models.tokenizer import ByteTokenizer, JsonTokenizer, load_tokenizer

CHATML = """
{%- for message in messages %}
    {%- if loop.first and message.role != 'system' %}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
    {%- endif %}
    {%- if message.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' }}
    {% generation %}{{- message.content | trim }}{% endgeneration %}
{{- '<|im_end|>' }}
    {% if message.name is defined %}{{ {'name': message.name, 'html': '<b>'} | tojson }}{% continue %}{% endif %}

{%- endfor %}
{%- if tools is none and add_generation_prompt %}
{{- bos_token + '<|im_start|>assistant\\n' }}
{%- endif %}
"""
CORPUS = ["Hello world, this is a text about tokens. Grüße, 你好 😀!", "def f(x):\n    return x + 1\n"] * 20


def byte_level_directory(directory: Path, **config: Any) -> Path:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, special_tokens=specials, show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("naïve…", normalized=False)])
    backend.save(str(directory / "tokenizer.json"))
    write_config(directory, {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "chat_template": CHATML} | config)
    return directory


def llama_directory(directory: Path) -> Path:
    """Like Llama 2: spaces as U+2581, unknown characters as byte tokens, one leading space stripped, BOS in front."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz你!."]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    vocab |= {"▁h": len(vocab), "▁he": len(vocab) + 1, "ll": len(vocab) + 2}
    merges = [("▁", "h"), ("▁h", "e"), ("l", "l")]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))
    write_config(directory, {"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"}})
    return directory


def write_config(directory: Path, config: dict[str, Any]) -> None:
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


TEXTS = ["", "Hello world", "  two spaces", "Grüße 你好 😀\n", "<|im_end|>naïve… <|im_start|>", "a\x00b", "hello he!"]
CHATS = [
    [{"role": "user", "content": " hi  "}],
    [{"role": "system", "content": "Be <b>brief</b>."}, {"role": "user", "content": "你好", "name": "Zoë"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
]


@pytest.mark.parametrize(
    "config", [{}, {"add_bos_token": True}, {"add_bos_token": False, "add_eos_token": True}], ids=str
)
def test_ids_and_texts_equal_those_of_transformers(tmp_path: Path, config: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(byte_level_directory(tmp_path, **config))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids, skip_special_tokens=False) == theirs.decode(ids)
    for chat in CHATS:
        for prompted in (True, False):
            expected = theirs.apply_chat_template(chat, add_generation_prompt=prompted, return_dict=False)
            assert ours.apply_chat_template(chat, add_generation_prompt=prompted) == expected
    assert ours.eos_token_ids == {theirs.eos_token_id}


def test_sentencepiece_style_equals_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    ours = load_tokenizer(llama_directory(tmp_path))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text), skip_special_tokens=True)
    assert ours.token_bytes() is None


def test_template_file_wins_and_sees_extra_variables(tmp_path: Path) -> None:
    byte_level_directory(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}{{ thinking }}")
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "x"}], thinking="y")) == "xy"


def test_template_refusal_is_the_callers_fault(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level_directory(tmp_path))
    with pytest.raises(Rejected, match="no tools here") as caught:
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}])
    assert caught.value.param == "messages"


def test_template_cannot_leave_the_sandbox(tmp_path: Path) -> None:
    byte_level_directory(tmp_path, chat_template="{{ messages.__class__.__mro__ }}{{ messages.append(1) }}")
    with pytest.raises(Rejected):
        load_tokenizer(tmp_path).apply_chat_template([{"role": "user", "content": "x"}])


def test_named_templates_and_none(tmp_path: Path) -> None:
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    byte_level_directory(tmp_path, chat_template=named)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "user"}])) == "yes"
    byte_level_directory(tmp_path, chat_template=None)
    with pytest.raises(Rejected, match="no chat template"):
        load_tokenizer(tmp_path).apply_chat_template([{"role": "user"}])


def test_eos_ids_of_generation_config_count_too(tmp_path: Path) -> None:
    (byte_level_directory(tmp_path) / "generation_config.json").write_text('{"eos_token_id": [0, 2]}')
    assert load_tokenizer(tmp_path).eos_token_ids == {0, 2}


def test_byte_table_spells_every_token(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(byte_level_directory(tmp_path))
    table = tokenizer.token_bytes()
    assert table is not None and len(table) == tokenizer.vocab_size
    for token_id, spelled in enumerate(table):
        assert spelled.decode(errors="replace") == tokenizer.decode([token_id], skip_special_tokens=False)


def test_missing_and_broken_files_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no readable tokenizer\.json"):
        JsonTokenizer(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ConfigError, match="tokenizer_config"):
        JsonTokenizer(tmp_path)


def test_byte_tokenizer() -> None:
    tokenizer = load_tokenizer("bytes")
    assert isinstance(tokenizer, ByteTokenizer)
    ids = tokenizer.encode("é😀")
    assert len(ids) == 6 and tokenizer.decode([*ids, 256, 9999]) == "é😀"
    assert tokenizer.decode([104, 256], skip_special_tokens=False) == "h<eos>"
    assert tokenizer.decode(tokenizer.apply_chat_template([{"role": "user", "content": "hi"}])) == (
        "user: hi\nassistant: "
    )


def test_the_gateway_starts_without_torch() -> None:
    script = "import sys, services.gateway.__main__; print({'torch', 'transformers', 'numpy'} & sys.modules.keys())"
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60, cwd=root
    )
    assert done.stdout.strip() == "set()"
