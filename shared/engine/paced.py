"""The fake engine at the speed of a real one: each step takes what a cost model says, and no processor time.

Scheduling policies can so be tried live, with many workers on few cores. The per-layer callbacks come spread over the
step, as they do while a prompt is computed.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from shared.clock import Clock, SystemClock
from shared.engine.fake import LAYERS, FakeEngine
from shared.engine.port import OnLayer, Row
from shared.errors import ConfigError
from shared.wire.costs import Costs

DEFAULT = Costs((10.0, 1.0, 0.0004), (35.0, 0.004, 2.0))  # about a model of 135 million parameters on one core


def parse(text: str | None) -> Costs:
    """ "prefill_ms=a,b,c decode_ms=a,b,c", either or both; None or "" means the defaults. Raises ConfigError."""
    given = {}
    for word in (text or "").split():
        name, _, numbers = word.partition("=")
        try:
            a, b, c = (float(number) for number in numbers.split(","))
            if name not in ("prefill_ms", "decode_ms") or not all(0 <= number < math.inf for number in (a, b, c)):
                raise ValueError(name)
        except ValueError as error:
            raise ConfigError(
                f"--paced-model: {word!r} is not prefill_ms=a,b,c or decode_ms=a,b,c with numbers from 0",
                param="paced_model",
            ) from error
        given[name] = (a, b, c)
    return replace(DEFAULT, **given)


def step_s(costs: Costs, rows: Sequence[Row]) -> float:
    """A row of one token after others is a decode, any other a piece of a prompt."""
    decodes = [row.start + 1 for row in rows if row.start > 0 and len(row.token_ids) == 1]
    pieces = [(row.start, row.start + len(row.token_ids)) for row in rows if row.start == 0 or len(row.token_ids) > 1]
    tokens = sum(end - start for start, end in pieces)
    squares = sum(end**2 - start**2 for start, end in pieces)
    return costs.step_s(tokens, squares, sum(decodes), len(decodes))


class PacedEngine:
    """An Engine."""

    def __init__(
        self, costs: Costs, *, name: str = "paced", max_model_len: int = 8192, block_size: int = 16,
        kv_blocks: int = 4096, clock: Clock | None = None, sleep: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self._fake = FakeEngine(name=name, max_model_len=max_model_len, block_size=block_size, kv_blocks=kv_blocks)
        self._costs, self._clock, self._sleep = costs, clock or SystemClock(), sleep
        self.facts = self._fake.facts
        self.use_threads = self._fake.use_threads
        self.export_kv = self._fake.export_kv
        self.import_kv = self._fake.import_kv
        self.receive_buffer = self._fake.receive_buffer
        self.close = self._fake.close

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        started_s, takes_s = self._clock.now(), step_s(self._costs, rows)

        def paced(layer: int) -> None:
            self._sleep_until(started_s + takes_s * layer / LAYERS)
            if on_layer is not None:
                on_layer(layer)

        tokens = self._fake.step(rows, paced)
        self._sleep_until(started_s + takes_s)
        return tokens

    def _sleep_until(self, when_s: float) -> None:
        if (left_s := when_s - self._clock.now()) > 0:
            self._sleep(left_s)
