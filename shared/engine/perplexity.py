"""What quantized weights cost in quality: the perplexity of a fixed text before and after, and what follows from it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import structlog
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shared.engine.sample_text import SAMPLE
from shared.errors import ConfigError

WARN_ABOVE, REFUSE_ABOVE = 1.05, 2.0  # times the perplexity before
_WINDOW = 256  # tokens computed together
_ROWS = 64  # logits widened to float32 together

LogitsOf = Callable[[list[int]], Tensor]

log = structlog.get_logger()


def perplexity(logits_of: LogitsOf, ids: Sequence[int], window: int = _WINDOW) -> float:
    """exp of the mean negative log likelihood of every token but the first of a window, given those before it.

    `logits_of` computes a sequence of at most `window` tokens on its own: logits [tokens, vocabulary]. ids: at least 2.
    """
    if len(ids) < 2 or window < 2:
        raise ValueError("perplexity needs two tokens")
    total, count = 0.0, 0
    for start in range(0, len(ids), window):
        piece = list(ids[start : start + window])
        if len(piece) > 1:
            total += _surprise(logits_of(piece)[:-1], torch.tensor(piece[1:]))
            count += len(piece) - 1
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def sample_ids(path: Path, vocab_size: int) -> list[int] | None:
    """The sample text in the tokens of the model in `path`; None, and a line in the log, where it has none to use."""
    file = path / "tokenizer.json"
    if not file.is_file():
        log.info("perplexity not checked", why=f"{path} has no tokenizer.json")
        return None
    try:
        ids: list[int] = Tokenizer.from_file(str(file)).encode(SAMPLE).ids
    except Exception as error:  # the library raises bare Exception for a malformed file
        log.info("perplexity not checked", why=f"{file} cannot be read ({error})")
        return None
    if len(ids) < 2 or max(ids) >= vocab_size:
        log.info("perplexity not checked", why=f"{file} does not fit the model's {vocab_size} tokens")
        return None
    return ids


def check(before: float, after: float, quantize: str) -> None:
    """Log what quantizing did. Raises ConfigError where the model has become useless."""
    change = after / before
    log.info(
        "perplexity of the sample text", before=round(before, 3), after=round(after, 3), quantize=quantize,
        change=f"{change - 1:+.1%}",
    )  # fmt: skip
    if not change <= REFUSE_ABOVE:  # also where it is no number
        raise ConfigError(
            f"--quantize {quantize} spoils this model: perplexity {after:.3g} instead of {before:.3g}; "
            f"{'give --quantize int8 or leave it out' if quantize == 'int4' else 'leave --quantize out'}",
            param="quantize",
        )
    if change > WARN_ABOVE:
        log.warning("quantized weights are worse", quantize=quantize, perplexity=f"{change - 1:+.1%}")


def _surprise(logits: Tensor, targets: Tensor) -> float:
    """Sum of the negative log likelihoods of `targets` [tokens]."""
    total = 0.0
    for rows, wanted in zip(torch.split(logits, _ROWS), torch.split(targets.to(logits.device), _ROWS), strict=True):
        likely = rows.float().log_softmax(-1).gather(-1, wanted[:, None])
        total -= float(likely.double().sum())
    return total
