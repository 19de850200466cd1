"""The engine runs in one thread of its own, so that the event loop keeps moving KV and tokens while it computes."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from shared.engine.port import Engine, Row
from shared.errors import MeshError


class StepAborted(MeshError):
    """Nobody wants any row of this step any more; it ended between two layers."""


class EngineThread:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="engine")

    async def step(
        self, rows: Sequence[Row], *, on_layer: Callable[[int], None] | None, wanted: Callable[[], bool]
    ) -> list[int | None]:
        """One engine step. `on_layer`, if any, is called on the event loop, in order, before this returns; `wanted` is
        asked in the engine thread between layers, and a step that is not wanted ends with StepAborted."""
        loop = asyncio.get_running_loop()

        def layer_done(layer: int) -> None:
            if not wanted():
                raise StepAborted("cancelled")
            if on_layer is not None:
                loop.call_soon_threadsafe(on_layer, layer)

        return await loop.run_in_executor(self._executor, self.engine.step, rows, layer_done)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        self.engine.close()
