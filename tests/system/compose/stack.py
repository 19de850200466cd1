"""compose.yaml as a running project: containers by service, their state, and what happens to them."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
HEALTHY_WITHIN_S, COMMAND_WITHIN_S = 180.0, 180.0
LOOK_EVERY_S = 0.5


@dataclass(frozen=True, slots=True)
class Container:
    name: str
    service: str
    state: str
    health: str
    pid: int
    started: str
    exit_code: int
    addresses: Mapping[str, str]  # by network


class Stack:
    """`settings`: variables of compose.yaml."""

    def __init__(self, project: str, settings: Mapping[str, str]) -> None:
        self.project = project
        self._environment = {**os.environ, **settings, "COMPOSE_PROJECT_NAME": project}

    def take_down(self) -> None:
        """Nothing of it is left, however far it got."""
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "30", check=False)

    def compose(self, *arguments: str, check: bool = True) -> str:
        command = ("docker-compose", "-f", str(ROOT / "compose.yaml"), *arguments)
        done = subprocess.run(
            command, capture_output=True, text=True, env=self._environment, cwd=ROOT, timeout=COMMAND_WITHIN_S
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-2000:]}")
        return done.stdout + done.stderr

    def fetch_model(self, model: str) -> None:
        """Into the project's volume, over this machine's network; the project's own service then finds it there."""
        volume = f"{self.project}_models"
        label = (f"com.docker.compose.project={self.project}", "com.docker.compose.volume=models")
        _docker("volume", "create", *(word for text in label for word in ("--label", text)), volume)
        mount = f"{volume}:/var/lib/splitmesh"
        run = ("run", "--rm", "--network", "host", "-e", "HF_HUB_OFFLINE=0", "-v", mount, "splitmesh-worker")
        print(_docker(*run, "services.local", "models", "--fetch", model).strip())

    def containers(self, service: str | None = None) -> list[Container]:
        """All that exist, whatever their state."""
        label = f"label=com.docker.compose.project={self.project}"
        ids = _docker("ps", "--all", "--quiet", "--filter", label).split()
        found = map(_container, json.loads(_docker("inspect", *ids)) if ids else [])
        return sorted((c for c in found if service in (None, c.service)), key=lambda c: c.name)

    def until_healthy(self, within_s: float = HEALTHY_WITHIN_S) -> float:
        """Seconds until every container that should run is healthy."""
        started = time.monotonic()
        while True:
            waiting = [f"{c.name} {c.state} {c.health}" for c in self.containers() if not _well(c)]
            if not waiting:
                return time.monotonic() - started
            if time.monotonic() - started > within_s:
                raise TimeoutError(f"not healthy after {within_s:.0f} s: {'; '.join(waiting)}\n{self.logs()}")
            time.sleep(LOOK_EVERY_S)

    def kill(self, container: Container) -> None:
        """Its main process, from outside: the engine's restart policy applies, as after a crash."""
        os.kill(container.pid, signal.SIGKILL)

    def logs(self, *services: str) -> str:
        return self.compose("logs", "--no-color", "--tail", "40", *services, check=False)

    def left_over(self) -> list[str]:
        label = ("--filter", f"label=com.docker.compose.project={self.project}")
        kinds = {"container": ("ps", "--all", "--quiet"), "network": ("network", "ls", "--quiet"),
                 "volume": ("volume", "ls", "--quiet")}  # fmt: skip
        return [f"{kind} {one}" for kind, command in kinds.items() for one in _docker(*command, *label).split()]


def image_sizes(names: Sequence[str]) -> dict[str, float]:
    """MB of each image."""
    return {name: int(_docker("image", "inspect", "--format", "{{.Size}}", name)) / 1e6 for name in names}


def packages_of(image: str) -> set[str]:
    """Python packages in it, by name."""
    script = "import importlib.metadata as m; print(*{d.name.lower() for d in m.distributions()})"
    return set(_docker("run", "--rm", "--entrypoint", "python", image, "-c", script).split())


def compilers_in(image: str) -> str:
    script = "for name in cc gcc clang c++; do command -v $name; done; true"
    return _docker("run", "--rm", "--entrypoint", "sh", image, "-c", script).strip()


def engine_runs() -> bool:
    try:
        return subprocess.run(("docker", "info"), capture_output=True, timeout=20).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def _well(container: Container) -> bool:
    if container.service == "model":
        return container.state == "exited"
    return container.state == "running" and container.health == "healthy"


def _container(raw: dict[str, Any]) -> Container:
    state, labels = raw["State"], raw["Config"]["Labels"]
    networks = raw["NetworkSettings"]["Networks"]
    return Container(
        name=raw["Name"].lstrip("/"),
        service=labels["com.docker.compose.service"],
        state=state["Status"],
        health=state.get("Health", {}).get("Status", ""),
        pid=state["Pid"],
        started=state["StartedAt"],
        exit_code=state["ExitCode"],
        addresses={name.partition("_")[2]: network["IPAddress"] for name, network in networks.items()},
    )


def _docker(*arguments: str) -> str:
    done = subprocess.run(("docker", *arguments), capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"docker {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
    return done.stdout
