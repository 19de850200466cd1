"""Which transport is chosen, how fast it says it is, and that one file alone knows UCXX."""

import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import structlog

from shared.errors import ConfigError
from shared.runtime.config import Settings
from shared.transport import ucx_lanes, ucx_library
from shared.transport.choose import open_transport
from shared.transport.measure import measure
from shared.transport.port import MAX_PARTS, Route, tag_of
from shared.wire.address import without_port
from shared.wire.terms import LinkKind
from shared.worker.start import _kv_advertise

ROOT = Path(__file__).parents[2]
SECRET = b"s"


async def opened_kind(wanted: Any, **options: Any) -> str:
    options = {"bind": "127.0.0.1", "advertise": None} | options
    transport = await open_transport(wanted, secret=SECRET, **options)
    await transport.close()
    return transport.kind


async def test_ucx_is_preferred_and_tcp_is_to_be_had() -> None:
    assert await opened_kind("auto") == "ucx"
    assert await opened_kind("ucx") == "ucx"
    assert await opened_kind("tcp") == "tcp"


@pytest.mark.parametrize("kind", ["ucx", "tcp"])
async def test_a_port_that_is_given_is_used_and_another_advertised(kind: Any) -> None:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    transport = await open_transport(kind, bind=f"127.0.0.1:{port}", advertise="127.0.0.1:7999", secret=SECRET)
    try:
        assert b"127.0.0.1:7999" in transport.address
        with pytest.raises(OSError, match="in use"), socket.socket() as other:
            other.bind(("127.0.0.1", port))
    finally:
        await transport.close()


def test_the_links_port_is_left_to_the_links() -> None:
    assert [without_port(text) for text in ("10.0.0.1:7000", "10.0.0.1", "[::1]:7", "mesh:1")] == [
        "10.0.0.1", "10.0.0.1", "[::1]", "mesh",
    ]  # fmt: skip
    assert _kv_advertise(Settings(advertise="192.0.2.1:7000")) == "192.0.2.1"
    assert _kv_advertise(Settings(advertise="192.0.2.1:7000", kv_bind="10.0.0.1")) is None
    assert _kv_advertise(Settings(advertise="192.0.2.1:7000", kv_advertise="192.0.2.2:7001")) == "192.0.2.2:7001"


async def test_without_ucx_the_fallback_is_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ucx_library, "UCXX_VERSION", "0.99.00")
    with structlog.testing.capture_logs() as logs:
        assert await opened_kind("auto") == "tcp"
    assert [entry["log_level"] for entry in logs] == ["warning"] and "0.99.00" in logs[0]["reason"]
    with pytest.raises(ConfigError, match=r"needs ucxx 0\.99\.00, found 0\.52"):
        await opened_kind("ucx")


async def test_an_address_of_another_machine_cannot_be_bound() -> None:
    for kind in ("ucx", "tcp"):
        with pytest.raises(ConfigError, match=r"192\.0\.2\.1"):
            await opened_kind(kind, bind="192.0.2.1")


@pytest.mark.parametrize("kind", ["ucx", "tcp"])
async def test_a_measurement_is_quick_and_plausible(kind: Any) -> None:
    start = time.monotonic()
    speed = await measure(kind, bind="127.0.0.1")
    assert time.monotonic() - start < 3
    assert 1e7 < speed.bandwidth_bytes_per_s < 1e12
    assert 1e-6 < speed.latency_s < 0.05 and 1e-7 < speed.per_message_s < 0.05


async def test_the_way_that_kv_takes_is_known_and_a_worse_one_refused() -> None:
    speed = await measure("ucx", bind="127.0.0.1")
    assert speed.route is not None and (speed.route.kind, speed.route.via) == (LinkKind.TCP, "tcp/lo")
    assert (await measure("tcp", bind="127.0.0.1:1")).route == Route(kind=LinkKind.TCP, via="tcp"), "on any port"
    refused = pytest.raises(ConfigError, match="--require-transport rdma: UCX moves KV by tcp/lo here")
    with structlog.testing.capture_logs() as logs, refused:
        await measure("ucx", bind="127.0.0.1", required=LinkKind.RDMA)
    warned = {(entry["event"], entry["via"], entry["required"]) for entry in logs}
    assert warned == {("kv link is worse than required", "tcp/lo", "rdma")}, "as with every peer later"
    with pytest.raises(ConfigError, match="cannot be the shm that is required"):
        await measure("tcp", bind="127.0.0.1", required=LinkKind.SHM)


@pytest.mark.parametrize(
    ("lanes", "expected"),
    [
        ([("tcp", "eth1"), ("self", "memory")], (LinkKind.TCP, "tcp/eth1")),
        ([("tcp", "eth1"), ("posix", "memory"), ("cma", "memory")], (LinkKind.SHM, "posix/memory")),
        ([("cma", "memory"), ("cuda_ipc", "cuda"), ("cuda_copy", "cuda")], (LinkKind.CUDA_IPC, "cuda_ipc/cuda")),
        ([("rc_mlx5", "mlx5_0:1"), ("tcp", "eth0")], (LinkKind.RDMA, "rc_mlx5/mlx5_0:1")),
        ([("self", "memory")], None),
    ],
)
def test_the_best_lane_says_what_a_link_is(lanes: list[tuple[str, str]], expected: tuple[LinkKind, str] | None) -> None:
    route = ucx_lanes.best(lanes)
    assert (route and (route.kind, route.via)) == expected


def test_one_file_alone_knows_ucxx() -> None:
    folders = [ROOT / "shared", ROOT / "services", ROOT / "loadgen"]
    users = [path for folder in folders for path in folder.rglob("*.py") if "import ucxx" in path.read_text()]
    users += [path for folder in folders for path in folder.rglob("*.py") if "from ucxx" in path.read_text()]
    assert {path.relative_to(ROOT).as_posix() for path in users} == {"shared/transport/ucx_library.py"}


def test_ucxx_is_loaded_on_first_use_and_writes_nothing_to_stdout() -> None:
    script = (
        "import asyncio, sys; from shared.transport.ucx import UcxTransport; assert 'ucxx' not in sys.modules\n"
        "async def main():\n"
        "    await UcxTransport.open(bind='127.0.0.1', advertise=None, secret=b's')\n"
        "asyncio.run(main())\n"  # it is not closed: the interpreter must end all the same
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, timeout=20, check=True)
    assert ran.stdout == b""


def test_tags_hold_a_transfer_and_a_part() -> None:
    tags = [tag_of(transfer, part) for transfer in (1, 2, 2**48 - 1) for part in (0, 1, MAX_PARTS - 1)]
    assert len(set(tags)) == 9 and max(tags) < 2**64 and min(tags) > 0
    for transfer, part in ((0, 0), (2**48, 0), (1, -1), (1, MAX_PARTS)):
        with pytest.raises(ValueError, match="out of range"):
            tag_of(transfer, part)
