"""Memory of a worker's process: what prompts of ever new lengths leave behind, and what an idle worker gives back."""

import asyncio
import os
import subprocess
import sys
import threading
from collections import Counter

import pytest

from shared.engine import memory
from shared.runtime.config import Settings
from shared.worker import compute, engine_thread
from shared.worker.opening import Share, open_engine_thread
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
    """Each number of rows has compiled code of its own: unbounded, 400 of them take 90 MiB more than 100."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-c", MANY_LENGTHS], capture_output=True, text=True, timeout=100)
    if done.returncode == 77:
        pytest.skip("torch without oneDNN keeps no products, or this C library cannot count (mallinfo2: glibc 2.33)")
    assert done.returncode == 0, done.stderr
    after_100, after_400 = map(int, done.stdout.split())
    assert after_400 - after_100 < 20


async def test_the_cache_of_products_is_bounded_before_an_engine_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    kept, set_by_user = memory._CACHES
    monkeypatch.setenv(kept, "to be restored")
    monkeypatch.delenv(kept)
    monkeypatch.setenv(set_by_user, "7")
    thread = await open_engine_thread(Settings(engine="fake"), Share((), None, None))
    thread.close()
    assert os.environ[kept] == str(memory._PRODUCTS_KEPT)
    assert os.environ[set_by_user] == "7"


async def test_workers_without_work_give_memory_back_and_then_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """In their engine threads, once after each time of work."""
    given: Counter[int] = Counter()

    def give_back() -> None:
        memory.give_back()
        given[threading.get_ident()] += 1

    async def until_each_gave(times: int) -> None:
        while len(given) < 2 or min(given.values()) < times:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(compute, "IDLE_S", 0.05)
    monkeypatch.setattr(engine_thread, "give_back", give_back)
    async with asyncio.timeout(30), LocalMesh() as mesh:
        await until_each_gave(1)
        before = max(given.values())
        await (await mesh.submit([1] * 50)).end()
        await mesh.settle()
        await until_each_gave(before + 1)
        await asyncio.sleep(0.5)  # one that work had come between may have given once more
        after = given.total()
        await asyncio.sleep(0.3)
        assert given.total() == after and threading.get_ident() not in given
