"""The engine runs in one thread of its own, so that the event loop keeps moving KV and tokens while it computes."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from shared.engine.memory import give_back
from shared.engine.port import Engine, Row
from shared.errors import MeshError
from shared.runtime.core_sets import text_of
from shared.worker.cores import Cores

T = TypeVar("T")


class StepAborted(MeshError):
    """Nobody wants any row of this step any more; it ended between two layers."""


def executor() -> ThreadPoolExecutor:
    """One thread: that which loads an engine should compute with it, because libraries keep helper threads for each."""
    return ThreadPoolExecutor(1, thread_name_prefix="engine")


class EngineThread:
    """reinforced: the most threads that computed a part of the last step, in multiples of the own ones; 1.0 if no core
    was lent."""

    def __init__(self, engine: Engine, cores: Cores | None = None, thread: ThreadPoolExecutor | None = None) -> None:
        """Without `cores`, wherever the system lets it. `thread` is from `executor`."""
        self.engine = engine
        self.reinforced = 1.0
        self._cores = cores
        self._executor = thread or executor()

    @property
    def cores(self) -> str:
        """Those that it is tied to, as text; empty if to none."""
        return text_of(self._cores.own) if self._cores is not None else ""

    async def step(
        self, rows: Sequence[Row], *, on_layer: Callable[[int], None] | None, wanted: Callable[[], bool]
    ) -> list[int | None]:
        """One engine step. `on_layer`, if any, is called on the event loop, in order, before this returns; `wanted` is
        asked in the engine thread between layers, and a step that is not wanted ends with StepAborted."""
        loop = asyncio.get_running_loop()

        def layer_done(layer: int) -> None:
            if not wanted():
                raise StepAborted("cancelled")
            self._adjust()
            if on_layer is not None:
                loop.call_soon_threadsafe(on_layer, layer)

        return await loop.run_in_executor(self._executor, self._step, rows, layer_done)

    async def on_own_cores(self, work: Callable[[Engine], T]) -> T:
        """Something else than a step, in the engine thread, before anything is lent."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._on_own_cores, work)

    def rest(self) -> None:
        """No step runs, and there is nothing to compute: neighbours may have the cores."""
        if self._cores is not None:
            self._cores.rest()

    async def give_back_memory(self) -> None:
        """What steps have freed; for a time without any."""
        await asyncio.get_running_loop().run_in_executor(self._executor, give_back)

    def close(self) -> None:
        self._executor.shutdown(wait=True)
        if self._cores is not None:
            self._cores.close()
        self.engine.close()

    # ---- in the engine thread ---------------------------------------------------------------------------------------

    def _step(self, rows: Sequence[Row], layer_done: Callable[[int], None]) -> list[int | None]:
        self.reinforced = 1.0
        self._adjust()
        return self.engine.step(rows, layer_done)

    def _adjust(self) -> None:
        if self._cores is not None:
            self.reinforced = max(self.reinforced, self._cores.adjust(self.engine.use_threads))

    def _on_own_cores(self, work: Callable[[Engine], T]) -> T:
        if self._cores is not None:
            self._cores.adjust(self.engine.use_threads, lent=False)
        return work(self.engine)
