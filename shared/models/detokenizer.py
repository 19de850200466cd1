"""Token ids to text as they arrive: the pieces joined are the text of all tokens, and none ends inside a character.

`TextStream` is the whole way of one answer: detokenizer, then the stop strings.
"""

import codecs
from collections.abc import Sequence
from typing import Protocol

from shared.models.tokenizer import Tokenizer

_REPLACEMENT = "�"
_LONGEST_WINDOW = 64


class Detokenizer(Protocol):
    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now; characters of which bytes are missing are held back."""
        ...

    def flush(self) -> str:
        """What was held back, when no more tokens come: broken characters as U+FFFD."""
        ...


def detokenizer(tokenizer: Tokenizer) -> Detokenizer:
    table = tokenizer.token_bytes()
    return _WindowDetokenizer(tokenizer) if table is None else _ByteDetokenizer(table, tokenizer.special_ids)


class _ByteDetokenizer:
    """For byte-level vocabularies: one table look-up per token, and Python's own incremental decoder."""

    def __init__(self, table: Sequence[bytes], skipped: frozenset[int]) -> None:
        self._table = table
        self._skipped = skipped
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_ids: Sequence[int]) -> str:
        known = len(self._table)
        return self._decoder.decode(
            b"".join(self._table[i] for i in token_ids if i not in self._skipped and 0 <= i < known)
        )

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _WindowDetokenizer:
    """For other vocabularies, where a token's text depends on its neighbours (leading spaces, byte fallback): decode
    a window of tokens with and without the new ones; what the longer text adds is the piece."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context = 0  # tokens at the front of the window whose text was returned before
        self._sent = 0  # characters of the window's text that were returned

    def push(self, token_ids: Sequence[int]) -> str:
        self._window += [i for i in token_ids if i not in self._tokenizer.special_ids]
        text = self._tokenizer.decode(self._window)
        held = len(text) - len(text.rstrip(_REPLACEMENT))
        end = len(text) - held
        piece, self._sent = text[self._sent : end], max(self._sent, end)
        if (piece and not held) or len(self._window) > _LONGEST_WINDOW:
            piece += text[self._sent :]  # only in a long run of broken bytes
            self._slide()
        return piece

    def flush(self) -> str:
        return self._tokenizer.decode(self._window)[self._sent :]

    def _slide(self) -> None:
        """Keep the newest tokens as context: they decide about a leading space."""
        self._window = self._window[self._context :]
        self._context = len(self._window)
        self._sent = len(self._tokenizer.decode(self._window))


class StopStrings:
    """Passes text through up to the first stop string; what could be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text to pass on, and whether a stop string was met (then the stream is over)."""
        if not self._stops:
            return text, False
        text = self._held + text
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = self._possible_beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _possible_beginning(self, text: str) -> int:
        """Length of the longest end of `text` that is the beginning of a stop string."""
        longest = max(map(len, self._stops)) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0


class TextStream:
    """Text of one answer. Stop strings count from token `min_tokens` on; `used_tokens` is how many tokens the answer
    took, up to the one that completed a stop string."""

    def __init__(self, tokenizer: Tokenizer, *, stops: Sequence[str] = (), min_tokens: int = 0) -> None:
        self._detokenizer = detokenizer(tokenizer)
        self._stops = StopStrings(stops)
        self._watched = bool(stops)
        self._min_tokens = min_tokens
        self.used_tokens = 0

    def push(self, token_ids: Sequence[int]) -> tuple[str, bool]:
        """The new text, and whether a stop string ended the answer."""
        if not self._watched:
            self.used_tokens += len(token_ids)
            return self._detokenizer.push(token_ids), False
        pieces = []
        for token_id in token_ids:
            piece = self._detokenizer.push((token_id,))
            self.used_tokens += 1
            if self.used_tokens <= self._min_tokens:
                pieces.append(piece)
                continue
            piece, met = self._stops.push(piece)
            pieces.append(piece)
            if met:
                return "".join(pieces), True
        return "".join(pieces), False

    def flush(self) -> str:
        """The rest of the text; a stop string may end inside it."""
        rest = self._detokenizer.flush()
        if not self._watched or self.used_tokens <= self._min_tokens:
            return rest
        text, met = self._stops.push(rest)
        return text if met else text + self._stops.flush()
