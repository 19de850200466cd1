"""What is measured: meshes of this repository and other servers, each a command that takes its port from {port}.

    standing(contestant): started → answers → probed → … paused and continued … → stopped, and nothing of it is left

Pausing stops every process of a server (SIGSTOP), so that one that takes minutes to start can stand while others are
measured. A mesh must not be paused: its members would take one another for dead.
"""

import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil
import uvloop

from loadgen.client.probe import probe, wait_until_served
from loadgen.client.server import COMPLETIONS, Server
from loadgen.targets import Serving, Target, serving
from shared.clock import SystemClock
from shared.errors import ConfigError

STILL_WITHIN_S = 5.0
GONE_WITHIN_S = 5.0
LOOK_S = 10.0  # what a server may take to tell about itself
MB = 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    name: str
    target: Target
    is_mesh: bool

    @classmethod
    def peer(cls, text: str) -> "Contestant":
        """NAME='COMMAND with {port}'. Raises ConfigError."""
        target = Target.parse(text)
        if target.url is not None:
            raise ConfigError(f"--peer {text}: expected a command, not the URL of a server that runs already")
        return cls(name=target.name, target=target, is_mesh=False)

    @classmethod
    def mesh(cls, text: str) -> "Contestant":
        """NAME='options of splitmesh up', which may be none. Raises ConfigError."""
        name, _, options = text.partition("=")
        with_own_settings = [word for name in _settings() for word in ("-u", name)]
        up = (sys.executable, "-m", "services.local", "up", "--port", "{port}")
        try:
            command = ("env", *with_own_settings, "HF_HUB_OFFLINE=1", *up, *shlex.split(options))
        except ValueError as error:
            raise ConfigError(f"--mesh {text}: {error}") from error
        return cls(name=name, target=Target(name=name, command=command), is_mesh=True)


def _settings() -> list[str]:
    """Options in our environment would change what is measured."""
    return [name for name in os.environ if name.startswith("SPLITMESH_") and name != "SPLITMESH_CACHE"]


@dataclass(slots=True, kw_only=True)
class Standing:
    """A server that was started, answers, and was asked what it takes. Seconds count from exec: `ready_s` to its first
    sign of readiness, `answered_s` to the end of the first few short requests."""

    contestant: Contestant
    process: psutil.Process
    serving: Serving
    server: Server
    ready_s: float
    answered_s: float
    known: dict[int, psutil.Process] = field(default_factory=dict)  # all processes it was ever seen with

    def family(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            found = [self.process, *self.process.children(recursive=True)]
            self.known.update((process.pid, process) for process in found)
            return found
        return []

    def pause(self) -> None:
        """Returns when all stand still: one in the midst of a system call takes a moment."""
        family = self.family()
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGSTOP)
        end_s = time.monotonic() + STILL_WITHIN_S
        while not all(map(_stands_still, family)) and time.monotonic() < end_s:
            time.sleep(0.01)

    def go_on(self) -> None:
        for process in reversed(self.family()):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    def memory_mb(self) -> float | None:
        """Proportional set size of all its processes; None where the system does not tell."""
        parts = [pss_mb(process) for process in self.family()]
        known = [part for part in parts if part is not None]
        return sum(known) if known else None


def _stands_still(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE)
    return True


def pss_mb(process: psutil.Process) -> float | None:
    try:
        return float(process.memory_full_info().pss) / MB
    except (psutil.Error, AttributeError):
        return None


@contextmanager
def standing(contestant: Contestant, *, start_timeout_s: float) -> Iterator[Standing]:
    """Raises ConfigError, which says in one line why it does not start. Afterwards none of its processes is left."""
    before = {child.pid for child in psutil.Process().children()}
    started_s = time.monotonic()
    found: list[Standing] = []
    with _ended(found), serving(contestant.target) as running:
        process = next(child for child in psutil.Process().children() if child.pid not in before)
        ready_s, server = uvloop.run(_connected(running, started_s, start_timeout_s))
        one = Standing(
            contestant=contestant, process=process, serving=running, server=server, ready_s=ready_s,
            answered_s=time.monotonic() - started_s,
        )  # fmt: skip
        found.append(one)
        try:
            yield one
        finally:
            one.go_on()  # also notes who is there, for _ended


@contextmanager
def _ended(found: list[Standing]) -> Iterator[None]:
    """Around what stops a server: ends every process that it was seen with and that did not end with it."""
    try:
        yield
    finally:
        left = [process for one in found for process in one.known.values() if process.is_running()]
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=GONE_WITHIN_S)


async def _connected(running: Serving, started_s: float, patience_s: float) -> tuple[float, Server]:
    clock = SystemClock()
    async with fresh_connections() as session:
        await wait_until_served(session, running.url, patience_s=patience_s, clock=clock, check=running.check)
        ready_s = clock.now() - started_s
        server = await probe(
            session, running.url, endpoint=COMPLETIONS, model=None, clock=clock, headers={}, extra_body={}
        )
    running.check()
    return ready_s, server


def fresh_connections() -> aiohttp.ClientSession:
    """A connection for every request: some servers end one after an answer without saying so before."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None, sock_connect=30.0), connector=connector)


# ---- what servers tell about themselves ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """`kv_tokens`: tokens that fit in its KV cache. `workers_mb`: of a mesh, by worker."""

    kv_tokens: int | None = None
    workers_mb: Mapping[str, float] = field(default_factory=dict)


async def told(session: aiohttp.ClientSession, url: str, *, is_mesh: bool) -> Told:
    """Nothing where it says nothing that we can read."""
    if is_mesh:
        return of_mesh(await _json(session, url + "/mesh"))
    tokens = of_props(await _json(session, url + "/props")) or of_metrics(await _text(session, url + "/metrics"))
    return Told(kv_tokens=tokens)


def of_mesh(mesh: Any) -> Told:
    workers = mesh.get("workers", []) if isinstance(mesh, dict) else []
    memory: dict[str, float] = {}
    for worker in workers:
        with suppress(psutil.Error):
            if (pss := pss_mb(psutil.Process(worker["pid"]))) is not None:
                memory[worker["id"].split(".")[0]] = pss
    tokens = sum(worker["kv_blocks_total"] * worker["block_size"] for worker in workers)
    return Told(kv_tokens=tokens or None, workers_mb=memory)


def of_props(props: Any) -> int | None:
    """Of llama-server: the context of a slot, times the slots."""
    try:
        return int(props["default_generation_settings"]["n_ctx"]) * int(props["total_slots"])
    except (LookupError, TypeError, ValueError):
        return None


def of_metrics(metrics: str) -> int | None:
    """Of vLLM: blocks and their size are labels of a metric."""
    line = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
    labels = dict(part.split("=", 1) for part in line.partition("{")[2].rpartition("}")[0].split(",") if "=" in part)
    try:
        return int(labels["block_size"].strip('"')) * int(labels["num_gpu_blocks"].strip('"'))
    except (LookupError, ValueError):
        return None


async def _json(session: aiohttp.ClientSession, url: str) -> Any:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=LOOK_S)) as response:
            return await response.json(content_type=None) if response.status == 200 else None
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
        return None


async def _text(session: aiohttp.ClientSession, url: str) -> str:
    try:
        async with session.get(url, timeout=aiohttp.ClientTimeout(total=LOOK_S)) as response:
            return await response.text(errors="replace") if response.status == 200 else ""
    except (aiohttp.ClientError, OSError, TimeoutError):
        return ""
