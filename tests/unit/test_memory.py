"""Memory of a worker's process: what prompts of ever new lengths leave behind, and what an idle worker gives back."""

import asyncio
import subprocess
import sys

import pytest

from shared.worker import compute
from shared.worker.engine_thread import EngineThread
from tests.support.mesh import LocalMesh

MANY_LENGTHS = """
import ctypes

from shared.engine.memory import bound_products

bound_products()
import torch

names = "arena ordblks smblks hblks hblkhd usmblks fsmblks used free keepcost"
Counted = type("Counted", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in names.split()]})
library = ctypes.CDLL(None)
if not hasattr(library, "mallinfo2") or not torch.backends.mkldnn.is_available():
    raise SystemExit(77)
library.mallinfo2.restype = Counted
torch.set_num_threads(1)
weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(576, 576), None)
x = torch.ones(1, 400, 576)
used = []
for rows in range(1, 401):
    torch.ops.mkldnn._linear_pointwise(x[:, :rows], weight, None, "none", [], "")
    used.append(library.mallinfo2().used >> 20)
print(used[99], used[399])
"""


def test_prompts_of_ever_new_lengths_do_not_fill_the_memory() -> None:
    """Each number of rows has compiled code of its own: 400 of them took 100 MiB more than 100."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", MANY_LENGTHS], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip("oneDNN and glibc are what this is about")
    assert done.returncode == 0, done.stderr
    after_100, after_400 = map(int, done.stdout.split())
    assert after_400 - after_100 < 20


async def test_a_worker_without_work_gives_memory_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[EngineThread] = []

    async def give_back_memory(thread: EngineThread) -> None:
        given.append(thread)

    monkeypatch.setattr(compute, "IDLE_S", 0.05)
    monkeypatch.setattr(EngineThread, "give_back_memory", give_back_memory)
    async with LocalMesh() as mesh:
        await asyncio.sleep(0.3)
        assert len(given) == len(set(given)) == 2, "each worker, once"
        await (await mesh.submit([1] * 50)).end()
        await asyncio.sleep(0.3)
        assert len(given) == 4, "and once more after work"
        await mesh.settle()
