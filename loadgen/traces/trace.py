"""A trace: which requests arrive when, how long their prompts and answers are, and what they share.

Everything that sends or simulates load takes a Trace; readers, generators and scaling make one from another. Traces are
values: the same file, options and seed give the same trace, and `sha256` names it.
"""

import hashlib
import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One request. Times are seconds, lengths are tokens.

    Open loop: it is due `at_s` seconds after the start, whatever became of the others. With `after`, it is one user's
    next request: it is due `think_s` after the end of request number `after` of the trace, but not before `at_s`.

    `blocks` name shared pieces of the prompt's beginning: equal ids stand for equal tokens, `block_tokens` each; what
    the blocks do not cover is the request's own. `carries`: the prompt begins with the prompt and answer of `after`.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    block_tokens: int = 0
    after: int | None = None
    think_s: float = 0.0
    carries: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Requests in order of `at_s`; `after` always points backwards. `notes`: what was done to them, one line each."""

    name: str
    requests: tuple[Request, ...]
    notes: tuple[str, ...] = ()

    @property
    def span_s(self) -> float:
        """Seconds from the start to the last request; users who wait may make it longer."""
        return max((request.at_s for request in self.requests), default=0.0)

    @property
    def open_loop(self) -> bool:
        return all(request.after is None for request in self.requests)

    @property
    def sha256(self) -> str:
        """Of everything that decides what is sent when; equal on every machine."""
        digest = hashlib.sha256()
        for r in self.requests:
            after = -1 if r.after is None else r.after
            fixed = struct.pack(
                "<dqqqdq?q", r.at_s, r.prompt_tokens, r.output_tokens, after, r.think_s, r.block_tokens, r.carries,
                len(r.blocks),
            )  # fmt: skip
            digest.update(fixed + struct.pack(f"<{len(r.blocks)}q", *r.blocks))
        return digest.hexdigest()

    def check(self) -> None:
        """Raises AssertionError for a trace that breaks the rules above."""
        previous_s = 0.0
        for number, r in enumerate(self.requests):
            assert r.at_s >= previous_s, f"request {number}: at_s {r.at_s} goes back behind {previous_s}"
            assert r.prompt_tokens >= 1 and r.output_tokens >= 1, f"request {number}: lengths must be at least 1"
            assert r.after is None or 0 <= r.after < number, f"request {number}: after {r.after} is not before it"
            assert r.after is not None or not r.carries, f"request {number}: it carries nobody's prompt"
            assert not r.blocks or r.block_tokens >= 1, f"request {number}: blocks without block_tokens"
            assert r.think_s >= 0, f"request {number}: think_s {r.think_s}"
            previous_s = r.at_s
