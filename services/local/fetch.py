"""The model is made ready in a process of its own: it can be stopped at any moment, and leaves no torch in `up`.

The child writes one JSON object per line: progress, then name and size of the model. An error is one other line, and
exit code 2.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from services.local.children import Command, exit_of, launch, output_lines
from shared.errors import ConfigError, MeshError
from shared.models.catalogue import resolve
from shared.models.progress import Progress
from shared.tasks import Spawn

STOP_WITHIN_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    name: str
    weights_bytes: int


async def fetched(model: str, progress: Progress, *, spawn: Spawn, environment: Mapping[str, str]) -> Fetched:
    """The model's files. Raises ConfigError; being cancelled stops the fetch, which removes what is half done."""
    argv = (sys.executable, "-m", "services.local.fetch", model)
    process = launch(Command(name="model", kind="model", argv=argv, environment=environment))
    answers: list[Fetched] = []
    others: list[str] = []

    async def read() -> None:
        async for line in output_lines(process):
            match _parsed(line):
                case {"stage": str(stage), "done": int(done), "total": int(total)}:
                    progress(stage, done, total)
                case {"name": str(name), "weights_bytes": int(weights_bytes)}:
                    answers.append(Fetched(name=name, weights_bytes=weights_bytes))
                case _:
                    others.append(line)

    reading = spawn(read(), name="model progress")
    try:
        await exit_of(process)
        await asyncio.wait({reading})
    finally:
        await _stop(process)
    if not answers:
        reason = others[-1].removeprefix("splitmesh: ") if others else f"it ended with code {process.returncode}"
        raise ConfigError(reason if process.returncode == 2 else f"cannot prepare the model: {reason}", param="model")
    return answers[0]


async def _stop(process: "subprocess.Popen[bytes]") -> None:
    """Interrupt what still runs, so that it can clean up; then make sure."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        try:
            async with asyncio.timeout(STOP_WITHIN_S):
                await exit_of(process)
        except TimeoutError:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except ValueError:
        return None


def main(model: str) -> int:
    """The child."""

    def tell(stage: str, done: int, total: int) -> None:
        print(json.dumps({"stage": stage, "done": done, "total": total}), flush=True)

    try:
        files = resolve(model, progress=tell)
    except MeshError as error:
        print(f"splitmesh: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    weights_bytes = sum(file.stat().st_size for kind in ("*.safetensors", "*.bin") for file in files.path.glob(kind))
    print(json.dumps({"name": files.name, "weights_bytes": weights_bytes}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
