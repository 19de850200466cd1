"""What this machine offers: cores, memory and free ports, limits of a container included."""

import socket
from pathlib import Path

from services.local.plan import Machine
from shared.errors import ConfigError
from shared.runtime.core_sets import usable_cores

CGROUP = Path("/sys/fs/cgroup")


def this_machine() -> Machine:
    core_ids = usable_cores()
    return Machine(cores=_cores(len(core_ids)), core_ids=core_ids, available_bytes=_available_bytes())


def free_port(host: str, port: int) -> int:
    """`port` if it can be listened on, any free one for 0. Raises ConfigError."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            chosen: int = probe.getsockname()[1]
            return chosen
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error


def _cores(usable: int) -> int:
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return max(1, min(usable, int(quota) // int(period)))
    except (OSError, ValueError):  # no control group, or no limit in it
        return usable


def _available_bytes() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    try:
        limit = int((CGROUP / "memory.max").read_text())
        used = int((CGROUP / "memory.current").read_text())
        return min(available, limit - used)
    except (OSError, ValueError):
        return available
