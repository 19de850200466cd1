"""Ask a server what it can do before anything is measured.

    wait until it answers → its model → one short request for each way of asking, best first, until one works
    → how many tokens it adds to a prompt

Best is: token ids as prompt, lengths forced, token ids in the answer. What a server refuses is left out and said.
"""

import asyncio
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import orjson

from loadgen.client.ask import Asked, ask
from loadgen.client.prompts import WORDS, Prompts
from loadgen.client.server import Form, Server
from loadgen.record import Record
from loadgen.traces.trace import Request
from shared.clock import Clock
from shared.errors import ConfigError

PROMPT_TOKENS, OUTPUT_TOKENS = 24, 4
MOST_OVERHEAD_TOKENS = 512
REQUEST_S = 60.0
_CLOSED = (401, 403, 404)
_REFUSED = (400, 413, 415, 422)
_NOT_SO = (*_REFUSED, 500, 501)  # some answer with a bug of theirs to what they do not know
_GATEWAY = (502, 503, 504)  # somebody answers for a server that does not yet
RETRY_S = 0.2

# Token ids that mean plain text in every vocabulary of this size; the second is for models of bytes.
_WAYS = (
    (Form.IDS, (1_000, 20_000)),
    (Form.IDS, (33, 127)),
    (Form.TEXT, (0, len(WORDS))),
)
_EXTRAS = (("ignore_eos", "min_tokens", "return_token_ids"), ("ignore_eos", "min_tokens"), ("ignore_eos",), ())


async def probe(
    session: aiohttp.ClientSession, base_url: str, *, endpoint: str, model: str | None, clock: Clock,
    headers: Mapping[str, str], extra_body: Mapping[str, Any],
) -> Server:  # fmt: skip
    """Raises ConfigError when the server lets nobody in, or refuses every way of asking. One that fails otherwise is
    asked the best way: its failures are for the run to measure."""
    named, max_model_len = await _model(session, base_url, headers, model)
    server = Server(
        base_url=base_url, endpoint=endpoint, model=model or named or "default", max_model_len=max_model_len,
        form=Form.TEXT, symbols=(0, len(WORDS)), extra_body=extra_body, headers=headers,
    )  # fmt: skip
    ways = [
        dataclasses.replace(server, form=form, symbols=symbols, extras=extras)
        for form, symbols in _WAYS
        if form is Form.TEXT or not server.chat
        for extras in _EXTRAS
    ]
    first: Record | None = None
    for way in ways:
        asked = await _try(session, way, clock)
        if asked.record.status == 0:  # a connection that broke says nothing about the way of asking
            asked = await _try(session, way, clock)
        record = asked.record
        if record.status == 200:
            return await _measured(session, way, asked)
        if record.status in _CLOSED:
            raise ConfigError(f"{way.url} refuses: {record.error}", param="base_url")
        first = first or record
        if record.status not in _NOT_SO:
            break
    assert first is not None
    if first.status in _REFUSED:
        raise ConfigError(f"{server.url} refuses every way of asking; the first it refused with {first.error}")
    return dataclasses.replace(ways[0], remarks=(f"the server failed when it was asked what it can: {first.error}",))


async def wait_until_served(
    session: aiohttp.ClientSession, base_url: str, *, patience_s: float, clock: Clock, check: Callable[[], None]
) -> None:
    """Until /v1/models answers and /ready, if there is one, is not 503. `check` raises when waiting is in
    vain. Raises ConfigError after `patience_s`."""
    end_s = clock.now() + patience_s
    while True:
        check()
        why = await _not_served(session, base_url)
        if why is None:
            return
        if clock.now() >= end_s:
            raise ConfigError(f"no server answers at {base_url}: {why}; is it running?", param="base_url")
        await asyncio.sleep(RETRY_S)


async def _not_served(session: aiohttp.ClientSession, base_url: str) -> str | None:
    try:
        async with asyncio.timeout(5.0):
            async with session.get(base_url + "/v1/models") as response:
                if response.status in _GATEWAY:
                    return f"HTTP {response.status}"
            async with session.get(base_url + "/ready") as response:
                return "it is not ready yet" if response.status == 503 else None
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return str(error) or type(error).__name__


async def _model(
    session: aiohttp.ClientSession, base_url: str, headers: Mapping[str, str], wanted: str | None
) -> tuple[str | None, int | None]:
    """Name and context length of the model that is wanted, or the first; None for what the server does not tell."""
    try:
        async with session.get(base_url + "/v1/models", headers=headers) as response:
            cards = (await response.json(content_type=None))["data"]
            card = next((card for card in cards if card["id"] == wanted), None) if wanted else cards[0]
            limit = card.get("max_model_len") if card else None
            return (str(card["id"]) if card else None), limit if isinstance(limit, int) else None
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None, None


async def _try(session: aiohttp.ClientSession, server: Server, clock: Clock) -> Asked:
    request = Request(at_s=0.0, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS)
    prompts, start_s = Prompts(server, seed=0), clock.now()
    body = prompts.body(prompts.symbols(0, request), OUTPUT_TOKENS)
    asked = Asked(record=Record(index=0, prompt_tokens=PROMPT_TOKENS, output_tokens=OUTPUT_TOKENS, due_s=0.0))
    await ask(session, server, body, asked, now=lambda: clock.now() - start_s, deadline_s=REQUEST_S)
    return asked


async def _measured(session: aiohttp.ClientSession, server: Server, first: Asked) -> Server:
    """The server with what it adds to each prompt, by its own count. Two lengths show whether the rest is a token a
    symbol."""
    remarks = []
    if not first.gave_ids:
        remarks.append("the server gives no token ids: every event with text counts as one token")
    for name, lack in (("ignore_eos", "answers may end early"), ("min_tokens", "answers may be shorter than asked")):
        if name not in server.extras:
            remarks.append(f"the server refuses {name}: {lack}")
    server = dataclasses.replace(server, remarks=tuple(remarks))
    short, long = [await _counted(session, server, length) for length in (PROMPT_TOKENS, 2 * PROMPT_TOKENS)]
    if short is None or long is None:
        return server
    overhead = short - PROMPT_TOKENS
    if long - short == PROMPT_TOKENS and 0 <= overhead <= MOST_OVERHEAD_TOKENS:
        return dataclasses.replace(server, overhead_tokens=overhead)
    odd = (
        f"the server counts {short} and {long} tokens for {PROMPT_TOKENS} and {2 * PROMPT_TOKENS} "
        f"{'token ids' if server.form is Form.IDS else 'common words'}: prompts have no exact length"
    )
    return dataclasses.replace(server, remarks=(*server.remarks, odd))


async def _counted(session: aiohttp.ClientSession, server: Server, symbols: int) -> int | None:
    """The prompt tokens that the server reports for so many symbols. Asked without streaming: some report usage only
    then."""
    request = Request(at_s=0.0, prompt_tokens=symbols, output_tokens=1)
    prompts = Prompts(server, seed=symbols)
    body = orjson.loads(prompts.body(prompts.symbols(0, request), 1))
    del body["stream"], body["stream_options"]
    try:
        async with asyncio.timeout(REQUEST_S), session.post(server.url, json=body, headers=server.headers) as response:
            count = (await response.json(content_type=None))["usage"]["prompt_tokens"]
            return count if isinstance(count, int) else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError, LookupError, TypeError):
        return None
