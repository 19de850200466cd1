"""Engines that stop where a test wants them to, so that a phase can be looked at from outside."""

import threading
from collections.abc import Sequence

from shared.engine.fake import FakeEngine
from shared.engine.port import OnLayer, Row


class GatedEngine(FakeEngine):
    """Waits before layer `stop_at` of a prefill of `rows` prompts until `release`; `reached` is set when it waits."""

    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__()
        self._released = threading.Event()
        self.reached = threading.Event()
        self.stop(stop_at)

    def stop(self, layer: int | None, rows: int = 1) -> None:
        self._stop_at = (layer, rows)
        self.reached.clear()
        self._released.clear()

    def release(self, then_stop_at: int | None = None, rows: int = 1) -> None:
        """Let the step that waits go on; stop the next one of so many rows."""
        self._stop_at = (then_stop_at, rows)
        self.reached.clear()
        self._released.set()

    def step(self, rows: Sequence[Row], on_layer: OnLayer | None = None) -> list[int | None]:
        prompts = sum(len(row.token_ids) > 1 for row in rows)

        def gated(layer: int) -> None:
            if (layer, prompts) == self._stop_at:
                self._released.clear()
                self.reached.set()
                self._released.wait(10.0)
            if on_layer is not None:
                on_layer(layer)

        return super().step(rows, gated)
