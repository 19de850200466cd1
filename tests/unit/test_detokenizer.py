"""Streaming text: the pieces joined are decode(all), no piece ends inside a character, stop strings never leak."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from shared.models.detokenizer import StopStrings, TextStream, detokenizer
from shared.models.tokenizer import ByteTokenizer, JsonTokenizer
from shared.models.tokenizer import Tokenizer as AnyTokenizer

BYTES = ByteTokenizer()


def save_byte_level(directory: Path) -> Path:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {character: i for i, character in enumerate(alphabet)} | {"<|end|>": 256}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    backend.add_tokens(["plain — text"])
    backend.save(str(directory / "tokenizer.json"))
    return directory


def save_byte_fallback(directory: Path) -> Path:
    pieces = ["<unk>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "▁你"]
    backend = Tokenizer(models.BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "</s>"])
    backend.save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(save_byte_level(tmp_path_factory.mktemp("byte_level")))


@pytest.fixture(scope="module")
def byte_fallback(tmp_path_factory: pytest.TempPathFactory) -> JsonTokenizer:
    return JsonTokenizer(save_byte_fallback(tmp_path_factory.mktemp("byte_fallback")))


def pieces_of(tokenizer: AnyTokenizer, ids: list[int], cuts: list[int]) -> list[str]:
    stream, pieces, start = detokenizer(tokenizer), [], 0
    for cut in [*sorted({c % (len(ids) + 1) for c in cuts}), len(ids)]:
        pieces.append(stream.push(ids[start:cut]))
        start = max(start, cut)
    return [*pieces, stream.flush()]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 257), max_size=60), st.lists(st.integers(0, 60), max_size=60))
def test_pieces_joined_are_the_text_for_any_ids(byte_level: JsonTokenizer, ids: list[int], cuts: list[int]) -> None:
    assert "".join(pieces_of(byte_level, ids, cuts)) == byte_level.decode(ids)
    below = [i for i in ids if i <= 256]
    assert "".join(pieces_of(BYTES, below, cuts)) == BYTES.decode(below)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet="ab 你好😀é\n", max_size=40), st.lists(st.integers(0, 200), max_size=60))
def test_no_piece_breaks_a_character(
    byte_level: JsonTokenizer, byte_fallback: JsonTokenizer, text: str, cuts: list[int]
) -> None:
    for tokenizer in (byte_level, byte_fallback, BYTES):
        ids = tokenizer.encode(text)
        pieces = pieces_of(tokenizer, ids, cuts)
        assert "".join(pieces) == tokenizer.decode(ids)
        assert not any("�" in piece for piece in pieces)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(2 + 0x80, 286), max_size=40))
def test_window_keeps_whole_characters_among_broken_ones(byte_fallback: JsonTokenizer, ids: list[int]) -> None:
    joined = "".join(pieces_of(byte_fallback, ids, list(range(len(ids)))))
    assert joined.replace("�", "").count("a") == byte_fallback.decode(ids).count("a")


def test_special_tokens_leave_no_trace_in_the_window(byte_fallback: JsonTokenizer) -> None:
    """A run of end tokens (ignore_eos) neither costs quadratic time nor swallows the next word's space."""
    a = byte_fallback.encode("b a")
    ids = [a[0], *[1] * 5000, *a[1:]]
    assert "".join(pieces_of(byte_fallback, ids, list(range(0, 5000, 1)))) == byte_fallback.decode(ids)


def test_broken_bytes_appear_only_at_the_end() -> None:
    stream = detokenizer(BYTES)
    assert stream.push(list("é😀".encode())[:-1]) == "é"
    assert stream.push([]) == ""
    assert stream.flush() == "�"


def test_stop_string_over_several_pieces() -> None:
    stops = StopStrings(["STOP", "END"])
    assert stops.push("abc S") == ("abc ", False)
    assert stops.push("TO") == ("", False)
    assert stops.push("X ST") == ("STOX ", False)
    assert stops.push("OP and more") == ("", True)


def test_earliest_stop_string_wins_and_the_rest_is_returned_at_the_end() -> None:
    assert StopStrings(["b", "abc"]).push("xabcd") == ("x", True)
    stops = StopStrings(["long stop"])
    assert stops.push("a long sto") == ("a ", False)
    assert stops.flush() == "long sto"


@settings(max_examples=200, deadline=None)
@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(1, 4), min_size=1, max_size=30),
)
def test_stop_strings_cut_where_the_whole_text_would_be_cut(text: str, stops: list[str], sizes: list[int]) -> None:
    ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
    matcher, out, met, at = StopStrings(stops), "", False, 0
    while at < len(text) and not met:
        piece, met = matcher.push(text[at : at + sizes[at % len(sizes)]])
        out, at = out + piece, at + sizes[at % len(sizes)]
    out += "" if met else matcher.flush()
    assert met == bool(ends)
    assert text.startswith(out)
    if not met:
        assert out == text


def test_text_stream_counts_tokens_up_to_the_stop() -> None:
    stream = TextStream(BYTES, stops=["\n"])
    assert stream.push(list(b"ab\ncd")) == ("ab", True)
    assert stream.used_tokens == 3


def test_text_stream_ignores_stop_strings_before_min_tokens() -> None:
    stream = TextStream(BYTES, stops=["a"], min_tokens=2)
    assert stream.push(list(b"aaba")) == ("aab", True)


def test_text_stream_flush_returns_held_text() -> None:
    stream = TextStream(BYTES, stops=["xyz"])
    assert stream.push(list(b"1xy")) == ("1", False)
    assert stream.flush() == "xy"
