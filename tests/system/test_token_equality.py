"""Greedy output through the mesh equals transformers' own `generate`, token for token, disaggregated and colocated.

The reference runs in this process, before the mesh starts: two cores are not shared between them. float32, because in
bfloat16 batched and lone logits differ by more than the gap between two tokens now and then.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from shared.models.catalogue import resolve
from tests.support.reference import generated
from tests.support.running import RunningMesh

MODEL = "smollm2-135m-instruct"
LENGTHS = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 100, 129, 250, 300, 512, 700, 1000, 2000)
CHATS = (
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "Nenne drei Farben.",
    "1+1=",
    "Tell me a story \U0001f600",
)
NEW_TOKENS = 12
KV_BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def prompts(path: Path) -> list[list[int]]:
    """Raw prompts of many lengths cut out of ordinary text, and chats through the model's template."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path)
    prose = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = tokenizer(prose, add_special_tokens=False)["input_ids"]
    assert len(ids) > 2200
    raw = [ids[n : n + length] for n, length in enumerate(LENGTHS)]
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in CHATS
    ]
    return raw + chats


@pytest.fixture(scope="module")
def reference() -> list[tuple[list[int], list[int]]]:
    """(prompt, tokens that transformers generates)."""
    path = resolve(MODEL).path
    cases = prompts(path)
    return list(zip(cases, generated(path, cases, NEW_TOKENS), strict=True))


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("--prompt-workers", "1", "--token-workers", "1", "--pools", "fixed"), id="disaggregated"),
        pytest.param(("--prompt-workers", "0", "--token-workers", "0", "--mixed-workers", "1"), id="colocated"),
    ],
)
def mesh(request: pytest.FixtureRequest, reference: object) -> Iterator[RunningMesh]:
    with RunningMesh("--model", MODEL, "--dtype", "float32", *request.param) as running:
        yield running


def complete(mesh: RunningMesh, prompt: list[int], **more: Any) -> list[int]:
    body = {"model": MODEL, "prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
    choice = mesh.post("/v1/completions", body | more)["choices"][0]
    tokens: list[int] = choice["token_ids"]
    return tokens


def test_alone(mesh: RunningMesh, reference: list[tuple[list[int], list[int]]]) -> None:
    for prompt, wanted in reference:
        assert complete(mesh, prompt) == wanted, f"prompt of {len(prompt)} tokens"


def test_batched_together(mesh: RunningMesh, reference: list[tuple[list[int], list[int]]]) -> None:
    with ThreadPoolExecutor(len(reference)) as pool:
        outputs = list(pool.map(lambda case: complete(mesh, case[0]), reference))
    assert outputs == [wanted for _, wanted in reference]
    mesh.settle()


def test_sampled_output_is_the_same_alone_batched_and_continued(
    mesh: RunningMesh, reference: list[tuple[list[int], list[int]]]
) -> None:
    cases = [(prompt, {"temperature": 0.8, "top_p": 0.95, "seed": n}) for n, (prompt, _) in enumerate(reference[:16])]
    alone = [complete(mesh, prompt, **sampling) for prompt, sampling in cases]
    with ThreadPoolExecutor(len(cases)) as pool:
        together = list(pool.map(lambda case: complete(mesh, case[0], **case[1]), cases))
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) > 8, "different seeds and prompts give different text"


def test_the_whole_context_is_used_in_bounded_memory(mesh: RunningMesh) -> None:
    """A prompt of 8,000 tokens, in pieces: what a worker takes beside its KV does not grow with the prompt."""
    prompt = [1000 + 7 * n % 20_000 for n in range(8_000)]
    before = {worker["pid"]: psutil.Process(worker["pid"]).memory_info().rss for worker in mesh.ready_workers()}
    assert len(complete(mesh, prompt, ignore_eos=True)) == NEW_TOKENS
    mesh.settle()
    for pid, was in before.items():
        grown = psutil.Process(pid).memory_info().rss - was
        assert grown < len(prompt) * KV_BYTES_PER_TOKEN + 400e6
