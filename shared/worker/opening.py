"""The engine of a worker process, opened in its thread, with this worker's share of the machine's cores."""

import asyncio
from dataclasses import dataclass

import structlog

from shared.engine.choose import computes_on_cores, open_engine
from shared.engine.memory import bound_products, keep_freed, share_arena
from shared.engine.openmp import find_team
from shared.engine.port import Engine
from shared.models.catalogue import resolve
from shared.runtime.config import Settings
from shared.runtime.core_board import CoreBoard
from shared.runtime.core_sets import chosen, usable_cores
from shared.worker.cores import Cores
from shared.worker.engine_thread import EngineThread, executor

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Share:
    """cores: ascending, empty if this worker is not tied to any. threads: as many on own cores; None: the engine
    chooses."""

    cores: tuple[int, ...]
    threads: int | None
    board: CoreBoard | None


def share_of(settings: Settings) -> Share:
    """Raises ConfigError for cores that cannot be had."""
    cores = chosen(settings.cores, usable_cores()) if settings.engine == "hf" and settings.device != "cuda" else ()
    board = CoreBoard(settings.core_board, cores) if cores and settings.core_board else None
    return Share(cores, settings.threads or len(cores) or None, board)


async def open_engine_thread(settings: Settings, share: Share) -> EngineThread:
    """Takes seconds. The thread is tied to its cores after loading only: OpenMP takes those of the thread that loads it
    for all that there are, and would not let a waiting thread spin."""
    share_arena()
    bound_products()
    thread = executor()
    engine = await asyncio.get_running_loop().run_in_executor(thread, _open, settings, share.threads)
    keep_freed()
    cores = _cores(settings, share)
    if cores is not None:
        # torch hands the number of threads to each thread at its first operation: let the event loop's copies of KV
        # have that of the own cores, not what is lent at the time.
        engine.export_kv(0, (0,), 0, 1)
    return EngineThread(engine, cores, thread)


def _open(settings: Settings, threads: int | None) -> Engine:
    files = resolve(settings.model) if settings.engine == "hf" else None
    return open_engine(
        settings.engine,
        files,
        device=settings.device,
        dtype=settings.dtype,
        threads=threads,
        max_model_len=settings.max_model_len,
        kv_bytes=settings.kv_memory,
        block_size=settings.block_size,
        paced_model=settings.paced_model,
        quantize=settings.quantize,
    )


def _cores(settings: Settings, share: Share) -> Cores | None:
    if not share.cores or share.threads is None or not computes_on_cores(settings.engine, settings.device):
        return None
    team = find_team()
    if team is None:
        log.warning("not tied to cores: no OpenMP library whose threads can be placed", cores=settings.cores)
        return None
    return Cores(share.cores, share.threads, share.board, team.place)
