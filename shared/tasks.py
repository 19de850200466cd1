"""The one way that adapters get a task: the caller hands in `spawn`. Only shared.runtime.supervise implements it."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Protocol


class Spawn(Protocol):
    """Start a task whose unexpected death takes the process down loudly."""

    def __call__(self, coroutine: Coroutine[Any, Any, None], *, name: str) -> "asyncio.Task[None]": ...
