"""Models of other architectures, from a local directory with random weights: disaggregated greedy output equals
transformers' own `generate`, token for token.

Qwen3 has norms on queries and keys, grouped heads and rotary positions; GPT-2 has learned positions and a head per key.
Weights are drawn wide: narrow ones would repeat one token and prove nothing.
"""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shared.models.catalogue import resolve
from tests.support.reference import generated
from tests.support.running import RunningMesh

LENGTHS = (1, 2, 5, 16, 17, 33, 64, 100, 200)
NEW_TOKENS = 16
VOCABULARY = 49152  # of the tokenizer that is borrowed
END = 2

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


def qwen3() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=128, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, bos_token_id=1, eos_token_id=END,
        pad_token_id=END, tie_word_embeddings=True,
    )  # fmt: skip
    return Qwen3ForCausalLM(config)


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=1, eos_token_id=END
    )
    return GPT2LMHeadModel(config)


def written(build: Callable[[], Any], path: Path) -> Path:
    """A directory as a user would have it: config, weights, tokenizer."""
    import torch

    model = build()
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                width = 1.0 if "embed" in name or "wte" in name else 0.25
                weight.copy_(width * torch.randn(weight.shape, generator=noise))
    model.save_pretrained(path)
    for file in resolve("smollm2-135m-instruct").path.glob("tokenizer*"):
        shutil.copy(file, path)
    return path


def prompts(path: Path) -> list[list[int]]:
    from transformers import AutoTokenizer

    prose = (Path(__file__).parents[2] / "LICENSE").read_text()
    ids = AutoTokenizer.from_pretrained(path)(prose, add_special_tokens=False)["input_ids"]
    return [ids[n : n + length] for n, length in enumerate(LENGTHS)]


@pytest.mark.parametrize("build", [qwen3, gpt2])
def test_greedy_output_is_that_of_transformers(build: Callable[[], Any], tmp_path: Path) -> None:
    path = written(build, tmp_path / f"tiny-{build.__name__}")
    cases = prompts(path)
    wanted = generated(path, cases, NEW_TOKENS)
    assert len({token for tokens in wanted for token in tokens}) > 3 * len(cases), "the model says different things"
    with RunningMesh("--model", str(path), "--dtype", "float32", "--pools", "fixed") as mesh:
        assert mesh.model == path.name

        def complete(prompt: list[int]) -> list[int]:
            body = {"prompt": prompt, "max_tokens": NEW_TOKENS, "temperature": 0, "return_token_ids": True}
            answer = mesh.post("/v1/completions", body)
            stages = {stage["stage"] for stage in mesh.get("/mesh/requests/" + answer["id"])["stages"]}
            assert "handed_off" in stages, "prompt and decode ran on two workers"
            tokens: list[int] = answer["choices"][0]["token_ids"]
            return tokens

        assert [complete(prompt) for prompt in cases] == wanted, "one at a time"
        with ThreadPoolExecutor(len(cases)) as pool:
            assert list(pool.map(complete, cases)) == wanted, "batched together"
        mesh.settle()
