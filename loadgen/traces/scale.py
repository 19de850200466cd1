"""One trace from another: faster, longer, fewer, or cut to a model's context. Each leaves a note of what it did.

Time is compressed or stretched as a whole, so the pattern of arrivals stays; thinning or superposing would change it.
"""

import dataclasses
import math

from loadgen.traces.trace import Request, Trace
from shared.errors import ConfigError


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Divides every time, thinking included: 2 is twice the requests a second."""
    _check("--rate-scale", factor)
    if factor == 1.0:
        return trace
    requests = tuple(
        dataclasses.replace(r, at_s=r.at_s / factor, think_s=r.think_s / factor) for r in trace.requests
    )  # fmt: skip
    return _changed(trace, requests, f"rate x {factor:g}: time {'compressed' if factor > 1 else 'stretched'}")


def scale_lengths(trace: Trace, factor: float) -> Trace:
    """Multiplies every token count, at least 1 each; blocks shrink or grow alike, so what was shared still is."""
    _check("--length-scale", factor)
    if factor == 1.0:
        return trace
    requests: list[Request] = []
    for request in trace.requests:
        requests.append(_scaled(request, factor, requests))
    return _changed(trace, tuple(requests), f"lengths x {factor:g}: every count at least 1 token")


def limit(trace: Trace, count: int) -> Trace:
    """The first `count` requests."""
    if count < 1:
        raise ConfigError(f"--limit must be at least 1, not {count}")
    total = len(trace.requests)
    if count >= total:
        return trace
    return _changed(trace, trace.requests[:count], f"the first {count:,} of {total:,} requests")


def lengthen(trace: Trace, least: int) -> Trace:
    """Prompts have at least so many tokens: a server that adds tokens of its own can be sent nothing shorter."""
    short = sum(request.prompt_tokens < least for request in trace.requests)
    if not short:
        return trace
    requests = tuple(dataclasses.replace(r, prompt_tokens=max(r.prompt_tokens, least)) for r in trace.requests)
    return _changed(trace, requests, f"{short:,} prompts made {least:,} tokens long, the shortest that can be sent")


def fit(trace: Trace, max_model_len: int) -> Trace:
    """Cuts prompts so that prompt and answer fit the context; the answer is cut only where it alone is too long.

    A later turn that no longer fits cannot begin with all that came before: it keeps its place in the chat, but its
    prompt is its own.
    """
    if max_model_len < 2:
        raise ConfigError(f"a context of {max_model_len} tokens holds no prompt with an answer")
    requests = tuple(_fitted(request, max_model_len) for request in trace.requests)
    prompts = sum(a.prompt_tokens != b.prompt_tokens for a, b in zip(trace.requests, requests, strict=True))
    outputs = sum(a.output_tokens != b.output_tokens for a, b in zip(trace.requests, requests, strict=True))
    notes = [
        f"{count:,} {what}{'s' if count > 1 else ''} cut to the context of {max_model_len:,} tokens"
        for count, what in ((prompts, "prompt"), (outputs, "answer"))
        if count
    ]
    return dataclasses.replace(trace, requests=requests, notes=(*trace.notes, *notes)) if notes else trace


def _scaled(request: Request, factor: float, before: list[Request]) -> Request:
    prompt_tokens, block_tokens = _times(request.prompt_tokens, factor), request.block_tokens
    if request.carries and request.after is not None:  # rounding must leave room for what is carried and a new word
        carried = before[request.after]
        prompt_tokens = max(prompt_tokens, carried.prompt_tokens + carried.output_tokens + 1)
    if request.blocks:
        block_tokens = _times(block_tokens, factor)
    scaled = dataclasses.replace(
        request,
        prompt_tokens=prompt_tokens,
        output_tokens=_times(request.output_tokens, factor),
        block_tokens=block_tokens,
    )
    return _without_empty_blocks(scaled)


def _fitted(request: Request, max_model_len: int) -> Request:
    if request.prompt_tokens + request.output_tokens <= max_model_len:
        return request
    output_tokens = min(request.output_tokens, max_model_len - 1)
    cut = dataclasses.replace(
        request, prompt_tokens=max_model_len - output_tokens, output_tokens=output_tokens, carries=False
    )
    return _without_empty_blocks(cut)


def _without_empty_blocks(request: Request) -> Request:
    """Blocks that begin behind the prompt's end are none of it; the last one may be covered in part."""
    if not request.blocks:
        return request
    covered = math.ceil(request.prompt_tokens / request.block_tokens)
    return dataclasses.replace(request, blocks=request.blocks[:covered])


def _times(tokens: int, factor: float) -> int:
    return max(1, math.floor(tokens * factor + 0.5))


def _check(option: str, factor: float) -> None:
    if not 0.0 < factor < math.inf:
        raise ConfigError(f"{option} must be a finite number above 0, not {factor:g}")


def _changed(trace: Trace, requests: tuple[Request, ...], note: str) -> Trace:
    return dataclasses.replace(trace, requests=requests, notes=(*trace.notes, note))
