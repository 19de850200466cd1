"""The transformers engine: equal to `generate` for what it serves, and a refusal in one line for all else."""

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import PretrainedConfig

from shared.engine import lean
from shared.engine.choose import open_engine
from shared.engine.hf import HfEngine
from shared.engine.packed import PackedStep
from shared.engine.pages import KvPages
from shared.engine.port import Draw, Row
from shared.engine.prepack import PackedLinear
from shared.engine.probe import check, forward, probe
from shared.errors import ConfigError, Rejected
from shared.models.catalogue import resolve

os.environ["HF_HUB_OFFLINE"] = "1"

AutoModelForCausalLM: Any = transformers.AutoModelForCausalLM  # its methods have no types
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 128, "initializer_range": 0.5,
    "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0,
}  # fmt: skip
NEW_TOKENS = 10
PROMPTS = [[7], [11, 12, 13, 14, 15], [(i * 37) % 128 for i in range(40)], [(i * 5) % 128 for i in range(23)]]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def config_of(kind: str, **changes: Any) -> PretrainedConfig:
    config: PretrainedConfig = getattr(transformers, kind + "Config")(**{**TINY, **changes})
    return config


def save(path: Path, config: PretrainedConfig) -> Path:
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def open_(path: Path, **changes: Any) -> HfEngine:
    settings: dict[str, Any] = {"device": "cpu", "dtype": "float32", "kv_bytes": 1 << 20, "block_size": 4}
    return HfEngine(name="tiny", path=path, **{**settings, **changes})


def greedy(position: int) -> Draw:
    return Draw(temperature=0, top_k=0, top_p=1, seed=0, choice=0, position=position)


def stock(path: Path) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        whole = model.generate(ids, attention_mask=mask, max_new_tokens=NEW_TOKENS, do_sample=False)
        texts.append(whole[0, len(prompt) :].tolist())
    return texts


def paged(engine: HfEngine, prompts: list[list[int]]) -> list[list[int]]:
    blocks = [[i + len(prompts) * j for j in range(13)][::-1] for i in range(len(prompts))]
    rows = [Row(token_ids=p, start=0, blocks=b, draw=greedy(0)) for p, b in zip(prompts, blocks, strict=True)]
    texts = [[token] for token in engine.step(rows) if token is not None]
    for position in range(1, NEW_TOKENS):
        rows = [
            Row(token_ids=text[-1:], start=len(p) + position - 1, blocks=b, draw=greedy(position))
            for p, b, text in zip(prompts, blocks, texts, strict=True)
        ]
        for text, token in zip(texts, engine.step(rows), strict=True):
            assert token is not None
            text.append(token)
    return texts


@pytest.mark.parametrize("native", [True, False], ids=["native", "torch"])
@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("Llama", {}),
        ("Llama", {"num_key_value_heads": 4}),
        ("Llama", {"num_key_value_heads": 1, "tie_word_embeddings": True}),
        ("Qwen2", {}),
        ("Qwen3", {"head_dim": 32}),
        ("Llama", {"attention_bias": True}),
        ("Mistral", {"sliding_window": 12}),
        ("Gemma3Text", {"sliding_window": 8, "head_dim": 16, "layer_types": ["sliding_attention", "full_attention"]}),
        ("GPTNeoX", {}),
        ("Mixtral", {"num_local_experts": 4}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_equal_to_generate_alone_and_together(tmp_path: Path, kind: str, changes: dict[str, Any], native: bool) -> None:
    path = save(tmp_path / "model", config_of(kind, **changes))
    expected = stock(path)
    engine = open_(path, native=native)
    assert [paged(engine, [prompt])[0] for prompt in PROMPTS] == expected
    assert paged(engine, PROMPTS) == expected
    alike = [PROMPTS[2], PROMPTS[2][::-1], PROMPTS[2]]  # lengths that are padded, not taken one by one
    assert paged(engine, alike)[::2] == [expected[2]] * 2


def rope(kind: str, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **more}}


LONG = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
REFUSED: dict[str, tuple[Callable[[], PretrainedConfig], str]] = {
    "mamba": (lambda: transformers.MambaConfig(hidden_size=32, num_hidden_layers=2), "no attention layers"),
    "t5": (lambda: transformers.T5Config(d_model=32, num_layers=2, num_heads=4), "encoder-decoder"),
    "vit": (transformers.ViTConfig, "no causal language model"),
    "llama4": (lambda: config_of("Llama4Text", attention_chunk_size=8, head_dim=8), "chunked attention"),
    "longrope": (
        lambda: config_of("Phi3", original_max_position_embeddings=16, **rope("longrope", **LONG)),
        "RoPE of type longrope",
    ),
    "dynamic": (lambda: config_of("Llama", **rope("dynamic", factor=2.0)), "RoPE of type dynamic"),
    "mla": (lambda: config_of("DeepseekV3", kv_lora_rank=8), "latent attention"),
    "hybrid": (lambda: config_of("Qwen3Next", layer_types=["linear_attention", "full_attention"]), "linear_attention"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_configurations_that_are_refused_without_weights(tmp_path: Path, kind: str) -> None:
    make, reason = REFUSED[kind]
    make().save_pretrained(tmp_path)
    with pytest.raises(Rejected, match=reason) as refused:
        open_(tmp_path)
    assert refused.value.code == "model_not_supported"
    assert "\n" not in str(refused.value)


def test_softcapped_attention_is_refused_by_the_probe(tmp_path: Path) -> None:
    layers = ["full_attention", "full_attention"]
    path = save(tmp_path / "model", config_of("Gemma2", head_dim=8, attn_logit_softcapping=5.0, layer_types=layers))
    with pytest.raises(Rejected, match="its attention needs softcap"):
        open_(path)


def test_attention_that_cannot_be_replaced_is_refused(tmp_path: Path) -> None:
    config = transformers.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=128)
    with pytest.raises(Rejected, match="cannot be served") as refused:
        open_(save(tmp_path / "model", config))
    assert "\n" not in str(refused.value)


def test_attention_of_an_own_kind_is_refused(tmp_path: Path) -> None:
    config = transformers.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=128, alibi=True
    )
    with pytest.raises(Rejected, match="its attention cannot be replaced"):
        open_(save(tmp_path / "model", config))


def test_attention_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=128
    )
    with pytest.raises(Rejected, match="not causal"):
        open_(save(tmp_path / "model", config))


def test_the_probe_compares_logits() -> None:
    """Llama 4 keeps its chunks in the mask alone: were the configuration not refused, the probe would notice."""
    torch.manual_seed(1)
    config = config_of("Llama4Text", attention_chunk_size=8, head_dim=8, num_local_experts=1, intermediate_size_mlp=64)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="splitmesh", dtype=torch.float32)
    model.eval()
    shape = probe("tiny", model)
    with pytest.raises(Rejected, match="changes its logits"):
        check("tiny", model, partial(forward, model), shape, None)


def test_a_lean_loop_that_computes_something_else_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "model", config_of("Llama", rms_norm_eps=1e-5))
    assert lean_of(open_(path)) is not None
    assert lean_of(open_(path, native=False)) is None
    assert lean_of(open_(save(tmp_path / "other", config_of("GPTNeoX")))) is None
    monkeypatch.setattr(
        lean, "_rotary", lambda rotary, positions: (torch.ones(positions, 8), torch.zeros(positions, 8))
    )
    with pytest.raises(Rejected, match="changes its logits"):
        open_(path)


def lean_of(engine: HfEngine) -> lean.LeanModel | None:
    return engine._forward if isinstance(engine._forward, lean.LeanModel) else None


def test_a_window_reaches_the_lean_loop(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Mistral", sliding_window=12))
    assert lean_of(open_(path)) is not None


def test_stale_bytes_behind_a_sequence_are_harmless(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Llama"))
    clean, dirty = open_(path), open_(path)
    poison = dirty.receive_buffer(4 * dirty.facts.kv_bytes_per_token)
    poison[:] = b"\xff" * len(poison)  # NaN in every place
    for block in range(60):
        for layer in range(2):
            dirty.import_kv(layer, [block], 0, 4, poison)
    prompts = [PROMPTS[3], PROMPTS[3][1:], PROMPTS[3][2:]]
    assert paged(dirty, prompts) == paged(clean, prompts)
    assert paged(dirty, PROMPTS) == paged(clean, PROMPTS)


def test_packed_linear_layers_compute_the_same() -> None:
    linear = torch.nn.Linear(64, 96)
    x = torch.randn(1, 5, 64)
    with torch.inference_mode():
        torch.testing.assert_close(PackedLinear(linear)(x), linear(x), rtol=1e-4, atol=1e-5)


def test_packing_keeps_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.engine import prepack

    model = AutoModelForCausalLM.from_config(config_of("Llama"), attn_implementation="splitmesh")
    model.eval()
    pages = KvPages(
        layers=2, blocks=16, block_size=4, kv_heads=2, head_dim=16, dtype=torch.float32, device=torch.device("cpu")
    )
    rows = [Row(token_ids=PROMPTS[2], start=0, blocks=list(range(10)), draw=greedy(0))]
    with torch.inference_mode():
        before = forward(model, PackedStep(rows, pages, None))
        monkeypatch.setattr(prepack, "_pays", lambda linears: True)
        assert prepack.prepack(model) == 2 * 7 + 1
        torch.testing.assert_close(forward(model, PackedStep(rows, pages, None)), before, rtol=1e-4, atol=1e-4)


def test_kv_memory_sets_the_blocks_and_may_lower_the_longest_length(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Llama"))
    block_bytes = 2 * 4 * 2 * 2 * 16 * 4
    assert open_(path).facts.kv_blocks == (1 << 20) // block_bytes
    assert open_(path).facts.max_model_len == 128
    assert open_(path, kv_bytes=10 * block_bytes + 5).facts.max_model_len == 40
    with pytest.raises(ConfigError, match="holds 40 tokens, one request may have 64"):
        open_(path, kv_bytes=10 * block_bytes, max_model_len=64)
    with pytest.raises(ConfigError, match="more than the model's 128"):
        open_(path, max_model_len=129)
    with pytest.raises(ConfigError, match="MiB are free"):
        open_(path, kv_bytes=1 << 60)


def test_files_that_cannot_be_loaded_are_one_line(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Llama"))
    (path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(Rejected, match="cannot load it") as refused:
        open_(path)
    assert "\n" not in str(refused.value)


def test_missing_weights_are_refused_not_invented(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Llama"))
    weights = load_file(path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Rejected, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight"):
        open_(path)


def test_end_tokens_come_from_the_generation_config(tmp_path: Path) -> None:
    path = save(tmp_path / "model", config_of("Llama", eos_token_id=3))
    assert open_(path).facts.eos_token_ids == (3,)
    (path / "generation_config.json").write_text('{"eos_token_id": [3, 9]}')
    assert open_(path).facts.eos_token_ids == (3, 9)


def test_opened_by_name_from_resolved_files(tmp_path: Path) -> None:
    path = save(tmp_path / "tiny", config_of("Llama"))
    engine = open_engine("hf", resolve(str(path)), device="cpu", dtype="float32", threads=1, kv_bytes=1 << 20)
    assert (engine.facts.name, engine.facts.dtype, engine.facts.block_size) == ("tiny", "float32", 16)
    config = transformers.AutoConfig.from_pretrained(path)
    shape = (config.num_key_value_heads, config.hidden_size // config.num_attention_heads)
    assert (engine.facts.kv_heads, engine.facts.head_dim) == shape
    engine.close()
