"""Chats such as ShareGPT's: a JSON list of {"id", "conversations": [{"from", "value"}]}. Only their lengths are used.

A token is taken for 4 characters, since the lengths must not depend on the model at hand. Each chat becomes one user's
chain of requests: a prompt is all that was said before and the new question. The file holds no times: chats start as a
Poisson process, and users think for exponentially distributed times.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from loadgen.traces.draws import gamma_gaps, generator, thinking_times
from loadgen.traces.readers.lines import shown
from loadgen.traces.trace import Request, Trace
from loadgen.traces.wanted import Wanted
from shared.errors import ConfigError

CHARACTERS_PER_TOKEN = 4
RATE_RPS = 1.0
THINK_S = 5.0
_ASKS = ("human", "user", "system")
_ANSWERS = ("gpt", "assistant", "chatgpt", "bing", "bard", "model")
TAKES = frozenset({"rate_rps", "burstiness", "requests", "turns", "think_s"})

Turns = list[tuple[int, int]]  # tokens of each question and of its answer


def read(path: Path, *, seed: int, wanted: Wanted, limit: int | None = None) -> Trace:
    chats = [turns[: wanted.turns] for turns in _chats(path)]
    usable = [turns for turns in chats if turns]
    if not usable:
        raise ConfigError(f"{path}: no conversation has a question with an answer")
    rng = generator(seed)
    rate_rps = wanted.rate_rps or RATE_RPS
    think_s = THINK_S if wanted.think_s is None else wanted.think_s
    gaps = gamma_gaps(rng, wanted.burstiness or 1.0, len(usable))
    starts_s = np.cumsum(gaps) * (len(usable) / rate_rps / max(gaps.sum(), 1e-300))
    requests: list[Request] = []
    for start_s, turns in zip(np.round(starts_s, 6).tolist(), usable, strict=True):
        requests += _chain(start_s, turns, thinking_times(rng, len(turns), think_s), len(requests))
        if limit is not None and len(requests) >= limit:
            break
    notes = [f"lengths are estimates: {CHARACTERS_PER_TOKEN} characters a token"]
    notes.append(f"chats start at random, {rate_rps:g} a second, seed {seed}; users think {think_s:g} s on average")
    if len(usable) < len(chats):
        notes.append(f"conversations without a question and its answer, skipped: {len(chats) - len(usable):,}")
    return Trace(name=path.stem, requests=tuple(requests[:limit]), notes=tuple(notes))


def _chain(start_s: float, turns: Turns, thinks_s: list[float], first: int) -> Iterator[Request]:
    said_tokens = 0
    for number, (question, answer) in enumerate(turns):
        request = Request(at_s=start_s, prompt_tokens=said_tokens + question, output_tokens=answer)
        if number:
            request = dataclasses.replace(request, after=first + number - 1, think_s=thinks_s[number], carries=True)
        yield request
        said_tokens += question + answer


def _chats(path: Path) -> Iterator[Turns]:
    try:
        chats = orjson.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path}: not JSON: {error}") from error
    if not isinstance(chats, list):
        raise ConfigError(f"{path}: not a list of conversations")
    for number, chat in enumerate(chats):
        yield _turns(f"{path}, conversation {number}", chat)


def _turns(where: str, chat: Any) -> Turns:
    """Messages of one side in a row count as one; an answer before any question is left out."""
    messages = chat.get("conversations") if isinstance(chat, dict) else None
    if not isinstance(messages, list):
        raise ConfigError(f"{where}: conversations is missing or no list")
    turns: Turns = []
    asked = answered = 0
    for message in messages:
        side, characters = _message(where, message)
        if side in _ASKS:
            if asked and answered:
                turns.append((_tokens(asked), _tokens(answered)))
                asked = answered = 0
            asked += characters
        elif asked:
            answered += characters
    return [*turns, (_tokens(asked), _tokens(answered))] if asked and answered else turns


def _message(where: str, message: Any) -> tuple[str, int]:
    if not isinstance(message, dict) or not isinstance(message.get("value"), str):
        raise ConfigError(f"{where}: a message without the text of value")
    side = message.get("from")
    if side not in _ASKS and side not in _ANSWERS:
        raise ConfigError(f"{where}: from is {shown(side)}, none of {', '.join(_ASKS + _ANSWERS)}")
    return side, len(message["value"])


def _tokens(characters: int) -> int:
    return max(1, math.ceil(characters / CHARACTERS_PER_TOKEN))
