"""Calls to Redis that always end in time: an answer, or Transient.

- Nothing is retried here. redis-py would by itself, and one lost reply then makes two entries of one XADD.
- Short commands share a few connections; a blocking read has one to itself for as long as it lasts.
- A blocking read that fails rests for a moment before it raises, so that a caller who simply loops does not spin.
- An outage is logged once when it begins and once when it is over.
"""

import asyncio
import random
from collections.abc import Awaitable
from typing import Any

import structlog
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)

from shared.errors import ConfigError, Transient

SHORT_S = 1.0
GRACE_S = 1.0  # beyond its BLOCK time, before a blocking read is given up
REST_S = (0.05, 0.4)

_log = structlog.get_logger()


class NoGroup(Transient):
    """The consumer group is gone: Redis lost its data, or the stream was deleted."""


class RedisCalls:
    """`commands` and `reads` make the awaitables that `short` and `blocking` bound in time. Raises ConfigError for an
    address that can never work."""

    def __init__(self, url: str) -> None:
        # Every time limit is an asyncio.timeout of ours: one place decides for connecting, sending and waiting.
        options: dict[str, Any] = {
            "retry": Retry(NoBackoff(), 0), "protocol": 2, "socket_timeout": None, "socket_connect_timeout": None,
        }  # fmt: skip
        try:
            shared = BlockingConnectionPool.from_url(url, max_connections=16, timeout=SHORT_S, **options)
            exclusive = ConnectionPool.from_url(url, max_connections=1024, **options)
        except ValueError as error:
            raise ConfigError(f"--redis-url: {error}", param="redis_url") from error
        self.commands: Redis = Redis(connection_pool=shared)
        self.reads: Redis = Redis(connection_pool=exclusive)
        self._answered = False  # ever: a Redis that is still starting is no outage
        self._silent = False
        self._jitter = random.Random()

    async def short(self, reply: Awaitable[Any]) -> Any:
        return await self._bounded(reply, SHORT_S)

    async def blocking(self, reply: Awaitable[Any], *, wait_s: float) -> Any:
        try:
            return await self._bounded(reply, wait_s + GRACE_S)
        except NoGroup:
            raise
        except Transient:
            await asyncio.sleep(min(wait_s, self._jitter.uniform(*REST_S)))
            raise

    async def close(self) -> None:
        for client in (self.commands, self.reads):
            await client.aclose()
            await client.connection_pool.disconnect()

    async def _bounded(self, reply: Awaitable[Any], limit_s: float) -> Any:
        try:
            async with asyncio.timeout(limit_s):
                answer = await reply
        except (RedisError, OSError) as error:
            raise self._translated(error, limit_s) from error
        if self._silent:
            _log.info("broker answers again")
        self._answered, self._silent = True, False
        return answer

    def _translated(self, error: Exception, limit_s: float) -> Exception:
        """The MeshError that this is; the error itself where it is a bug of ours."""
        reason = str(error) or f"no answer within {limit_s:g} s"
        if isinstance(error, AuthenticationError) or isinstance(error.__cause__, AuthenticationError):
            return ConfigError(f"--redis-url: Redis refuses the password: {reason}", param="redis_url")
        if isinstance(error, ResponseError):
            if reason.startswith("NOGROUP"):
                return NoGroup(reason)
            if not _passes(error, reason):
                return error
        if self._answered and not self._silent:
            self._silent = True
            _log.warning("broker does not answer", reason=reason)
        return Transient(f"Redis: {reason}")


def _passes(error: ResponseError, reason: str) -> bool:
    """Whether the same command may succeed later: Redis is full, read-only, loading, or forgot a script just now."""
    return isinstance(error, OutOfMemoryError | ReadOnlyError | NoScriptError) or reason.startswith(
        ("MISCONF", "BUSY ", "NOREPLICAS", "UNBLOCKED")
    )
