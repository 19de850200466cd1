"""How a service process comes to life: options, log, broker, work; every `__main__` is one call of `launch`."""

import asyncio
import secrets
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import structlog

from shared.broker.port import Broker
from shared.broker.redis_streams import RedisBroker
from shared.errors import ConfigError, Transient
from shared.ids import ServiceId, WorkerId
from shared.runtime import logging
from shared.runtime.config import Settings, parse
from shared.runtime.probe import answer_probes
from shared.runtime.supervise import Supervisor, run

DEFAULT_SECRET = "splitmesh-default-secret"  # what compose.yaml and examples say when nothing else is said

log = structlog.get_logger()

Work = Callable[[Settings, Supervisor, Broker], Awaitable[None]]


def launch(service: str, work: Work, *, check: Callable[[Settings], None] = lambda settings: None) -> int:
    """Run `work` as this process, with a broker that answers; the exit code. `check` may raise ConfigError before the
    broker is waited for."""

    async def start(supervisor: Supervisor) -> None:
        settings = parse(service, sys.argv[1:])
        logging.configure(level=settings.log_level, form=settings.log_format, service=settings.name or service)
        if settings.redis_url is None:
            raise ConfigError("--redis-url is missing (`splitmesh up` starts a server of its own)", param="redis_url")
        check(settings)
        async with _probed(settings, supervisor):
            broker = await _connect(settings.redis_url, supervisor)
            if broker is None:
                return
            try:
                await work(settings, supervisor, broker)
            finally:
                await broker.close()

    return run(start)


@asynccontextmanager
async def _probed(settings: Settings, supervisor: Supervisor) -> AsyncIterator[None]:
    if settings.probe_port is None:
        yield
        return
    server = await answer_probes(settings.probe_port, lambda: supervisor.serving and not supervisor.stopping.is_set())
    async with server:
        yield


async def _connect(url: str, supervisor: Supervisor) -> Broker | None:
    """Services start in any order, so a broker that is not there yet is waited for; None when told to stop."""
    said = False
    while not supervisor.stopping.is_set():
        try:
            return await RedisBroker.connect(url)
        except Transient as error:
            if not said:
                log.warning("waiting for the broker", reason=str(error))
            said = True
            await asyncio.sleep(0.3)
    return None


def secret_of(settings: Settings) -> bytes:
    """The secret that authenticates links and KV transports."""
    if settings.mesh_secret is None:
        raise ConfigError("--mesh-secret is missing: every process of a mesh needs the same one", param="mesh_secret")
    return settings.mesh_secret.encode()


def service_id(settings: Settings, service: str) -> ServiceId:
    """Name of this process; unique, because a restarted process must not be taken for the old one."""
    return ServiceId(f"{settings.name or service.replace('_', '-')}.{secrets.token_hex(3)}")


def worker_id(settings: Settings, service: str) -> WorkerId:
    return WorkerId(service_id(settings, service))
