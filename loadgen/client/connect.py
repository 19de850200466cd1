"""From a URL to a server that can be measured: it answers, and it was asked what it can.

Runs in the command's own process: one request at a time does not need another.
"""

import argparse
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import uvloop

from loadgen.client import options
from loadgen.client.ask import Asked, ask
from loadgen.client.probe import probe, wait_until_served
from loadgen.client.process import open_session
from loadgen.client.prompts import Prompts
from loadgen.client.server import Server
from loadgen.record import Record
from loadgen.traces.trace import Request
from shared.clock import Clock, SystemClock
from shared.errors import ConfigError

_WARM_SEED = 2**31  # other prompts than any that are measured


def connect(
    base_url: str, given: argparse.Namespace, *, patience_s: float, check: Callable[[], None] = lambda: None
) -> Server:
    """Raises ConfigError when nothing answers there within `patience_s`, or what `check` raises meanwhile."""
    url = cleaned(base_url)
    clock, headers, extra_body = SystemClock(), options.headers(given), options.extra_body(given)

    async def find() -> Server:
        async with open_session() as session:
            await wait_until_served(session, url, patience_s=patience_s, clock=clock, check=check)
            return await probe(
                session, url, endpoint=given.endpoint, model=given.model, clock=clock, headers=headers,
                extra_body=extra_body,
            )  # fmt: skip

    return uvloop.run(find())


def cleaned(base_url: str) -> str:
    """Without a trailing slash and without /v1, which the endpoint brings."""
    url = base_url.rstrip("/").removesuffix("/v1")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"--base-url {base_url!r}: expected http://HOST:PORT", param="base_url")
    return url


def ask_alone(
    server: Server, requests: Sequence[Request], *, deadline_s: float, on_done: Callable[[int], None]
) -> list[Record]:
    """One after the other, each when the one before has ended; to warm a server, or to learn how fast it is idle."""
    clock = SystemClock()
    prompts = Prompts(server, _WARM_SEED)

    async def run() -> list[Record]:
        records = []
        async with open_session() as session:
            for number, request in enumerate(requests):
                body = prompts.body(prompts.symbols(number, request), request.output_tokens)
                record = Record(
                    index=number, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens, due_s=0.0
                )
                asked = Asked(record=record)
                await ask(session, server, body, asked, now=since_now(clock), deadline_s=deadline_s)
                records.append(record)
                on_done(number + 1)
        return records

    return uvloop.run(run())


def since_now(clock: Clock) -> Callable[[], float]:
    """Seconds from now on."""
    start_s = clock.now()
    return lambda: clock.now() - start_s
