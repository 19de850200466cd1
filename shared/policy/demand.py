"""How long answers get: what KV memory a sequence is expected to need, when only an upper bound is known.

Some clients ask for exactly the tokens they get; most give a bound that few answers reach. Where nearly all bounds are
used up, the bound is what to expect; else the mean of the latest answers, if it is less.
"""

FIRST_EXPECTED_TOKENS = 256.0
REMEMBERED = 50  # answers over which the means are smoothed
USED_UP = 0.9  # share of the bounds


def expected_tokens(bound: int, mean_tokens: float, bounds_used: float) -> int:
    """Of one answer; `bounds_used` is the mean share of their bounds that answers reach."""
    return bound if bounds_used >= USED_UP else min(bound, int(mean_tokens))


class AnswerLength:
    """Of the answers that ended here; of their mean length the first guess counts as one. bounds_used is 0 before."""

    def __init__(self) -> None:
        self.mean_tokens = FIRST_EXPECTED_TOKENS
        self.bounds_used = 0.0
        self._answers = 0

    def ended(self, tokens: int, bound: int) -> None:
        self._answers = min(self._answers + 1, REMEMBERED)
        self.mean_tokens += (tokens - self.mean_tokens) / (self._answers + 1)
        self.bounds_used += (tokens / bound - self.bounds_used) / self._answers

    def tokens_at_end(self, prompt_tokens: int, sampled: int, tokens_left: int) -> int:
        """Tokens of prompt and answer when a request ends that has `sampled` of its at most `tokens_left` now."""
        expected = expected_tokens(tokens_left, self.mean_tokens, self.bounds_used)
        return prompt_tokens + min(tokens_left, max(sampled + 1, expected))
