"""Quantized linear layers against plain ones, what they replace in a model, and the check of what they cost."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from structlog.testing import capture_logs
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn

from shared.engine.choose import open_engine
from shared.engine.native.kernels import FewRows
from shared.engine.perplexity import check, perplexity, sample_ids
from shared.engine.prepack import prepack
from shared.engine.quantized import GROUP, Int4Linear, Int8Linear, Scratch
from shared.engine.sample_text import SAMPLE
from shared.errors import ConfigError
from shared.models.catalogue import ModelFiles
from shared.runtime.config import environment, parse

KINDS = [Int8Linear, Int4Linear]
DTYPES = [torch.bfloat16, torch.float32]


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(3)
    with torch.inference_mode():
        yield
    torch.set_num_threads(before)


def linear(inputs: int, outputs: int, dtype: torch.dtype = torch.bfloat16, bias: bool = False) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=dtype)


def weights_of(layer: nn.Module, inputs: int, rows: int = 1) -> Tensor:
    """[out, in], as the layer multiplies by them: the rows of the identity, `rows` at a time."""
    identity = torch.eye(inputs, dtype=torch.bfloat16)
    return torch.cat([layer(part) for part in torch.split(identity, rows)]).t().float()


@pytest.fixture(params=["native", "torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(FewRows, "find", lambda bits, *, inputs, outputs: None)
    elif "avx512_vnni" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this processor has no AVX512_VNNI, which our products of bytes need")
    else:
        assert FewRows.find(8, inputs=32, outputs=16) is not None, "the kernels are not compiled, or not loaded"


@pytest.mark.parametrize("rows", [1, 96])
def test_no_weight_is_off_by_more_than_half_a_step(rows: int) -> None:
    plain = linear(96, 48)
    weight = plain.weight.float()
    rounding = weight.abs().max() * 2**-7  # of scales, offsets and products to bfloat16
    int8_step = weight.abs().amax(1, keepdim=True) / 127
    off = (weights_of(Int8Linear(plain, Scratch()), 96, rows) - weight).abs()
    assert (off <= int8_step / 2 + rounding).all()
    least, most = weight.view(48, -1, GROUP).aminmax(dim=2, keepdim=True)
    off = (weights_of(Int4Linear(plain, Scratch()), 96, rows) - weight).abs().view(48, -1, GROUP)
    assert (off <= (most - least) / 30 + rounding).all()
    assert off.max() > rounding  # the bound would hold for weights that nobody quantized


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(96, 48), (64, 16), (160, 1040), (32, 144)])
def test_few_rows_and_many_multiply_by_the_same_weights(
    kind: type[Int8Linear] | type[Int4Linear], dtype: torch.dtype, bias: bool, inputs: int, outputs: int
) -> None:
    plain = linear(inputs, outputs, dtype, bias)
    layer = kind(plain, Scratch())
    assert (layer.in_features, layer.out_features) == (inputs, outputs)
    x = torch.randn(2, 80, inputs, dtype=dtype)
    many, few = layer(x), torch.cat([layer(x[:, i : i + 4]) for i in range(0, 80, 4)], 1)
    assert many.dtype == few.dtype == dtype
    assert many.shape == few.shape == (2, 80, outputs)
    spread = plain(x).float().std()
    assert (many - few).float().square().mean().sqrt() < 0.01 * spread  # few rows are rounded to 8 bits
    assert (many - plain(x)).float().square().mean().sqrt() < (0.02 if kind is Int8Linear else 0.1) * spread


@pytest.mark.parametrize("kind", KINDS)
def test_a_wide_layer_is_widened_in_pieces_with_the_same_result(
    kind: type[Int8Linear] | type[Int4Linear], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = kind(linear(64, 112, bias=True), Scratch())
    x = torch.randn(100, 64, dtype=torch.bfloat16)
    whole = layer(x)
    monkeypatch.setattr("shared.engine.quantized._PIECE", 64 * 48)  # 48, 48 and 16 outputs
    torch.testing.assert_close(layer(x), whole)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_rows_strided_rows_and_constant_weights(
    kind: type[Int8Linear] | type[Int4Linear], dtype: torch.dtype
) -> None:
    plain = linear(64, 32, dtype)
    plain.weight.fill_(0.25)
    plain.weight[:, :32] = 0.0
    before = plain.weight.clone()
    layer = kind(plain, Scratch())
    assert torch.equal(plain.weight, before)  # an embedding table may share it
    assert layer(torch.ones(0, 64, dtype=dtype)).shape == (0, 32)
    x = torch.ones(6, 128, dtype=dtype)[:, ::2]
    torch.testing.assert_close(layer(x), torch.full((6, 32), 8.0, dtype=dtype), rtol=0.01, atol=0.01)


def test_scratch_is_shared_between_sizes() -> None:
    scratch = Scratch()
    large = scratch.take(8, 16, torch.float32)
    assert scratch.take(4, 4, torch.float32).data_ptr() == large.data_ptr()
    assert scratch.take(8, 17, torch.float32).shape == (8, 17)
    assert scratch.take(2, 2, torch.uint8).dtype == torch.uint8


class Toy(nn.Module):
    """One layer, and a head that shares the table's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(112, 64, dtype=torch.bfloat16)
        self.layer = nn.Sequential(linear(64, 96), linear(96, 64), linear(64, 24), linear(24, 64), linear(64, 8))
        self.head = linear(64, 112)
        self.head.weight = self.table.weight
        self.requires_grad_(False)


@pytest.mark.parametrize(
    ("quantize", "kinds"),
    [
        ("int8", [Int8Linear, Int8Linear, Int8Linear, nn.Linear, Int8Linear, Int8Linear]),
        ("int4", [Int4Linear, Int4Linear, nn.Linear, nn.Linear, nn.Linear, Int8Linear]),
    ],
)
def test_every_layer_that_fits_is_swapped_and_the_others_are_counted(
    quantize: str, kinds: list[type[nn.Module]]
) -> None:
    toy = Toy()
    table = toy.table.weight.clone()
    with capture_logs() as logs:
        swapped = prepack(toy, quantize)
    assert [type(layer) for layer in (*toy.layer, toy.head)] == kinds
    assert swapped == sum(kind is not nn.Linear for kind in kinds)
    assert [(line["layers"], line["left_as_they_are"]) for line in logs] == [(swapped, 6 - swapped)]
    assert torch.equal(toy.table.weight, table)


def test_weights_elsewhere_and_unknown_kinds_are_refused_in_one_line() -> None:
    for model, quantize, complaint in ((Toy().to("meta"), "int8", "--device cpu"), (Toy(), "int2", "int8, int4")):
        with pytest.raises(ConfigError, match=complaint) as caught:
            prepack(model, quantize)
        assert caught.value.param == "quantize"
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("device", "cuda"), [("cuda", False), ("auto", True)])
def test_it_is_for_the_cpu_only(device: str, cuda: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(ConfigError, match="--quantize int4 is for --device cpu only"):
        open_engine("hf", ModelFiles(name="m", path=tmp_path), device=device, quantize="int4")


def test_engines_without_weights_ignore_it() -> None:
    assert open_engine("fake", None, quantize="int8").facts == open_engine("fake", None).facts


def test_up_hands_the_option_to_its_workers() -> None:
    settings = parse("up", ["--quantize", "int4"], {})
    assert environment(settings, "token_worker")["SPLITMESH_QUANTIZE"] == "int4"
    assert "SPLITMESH_QUANTIZE" not in environment(settings, "router")
    assert parse("prompt_worker", [], {}).quantize is None
    with pytest.raises(ConfigError, match="give one of int8, int4"):
        parse("up", ["--quantize", "int2"], {})


def test_perplexity_of_a_uniform_guess_is_the_size_of_the_vocabulary() -> None:
    seen: list[int] = []

    def guess(ids: list[int]) -> Tensor:
        seen.append(len(ids))
        return torch.zeros(len(ids), 50)

    assert perplexity(guess, [i % 50 for i in range(101)], window=20) == pytest.approx(50)
    assert seen == [20] * 5  # a last token alone has nothing before it


def test_perplexity_is_exp_of_the_mean_surprise() -> None:
    logits = torch.randn(7, 11)
    ids = [3, 10, 0, 5, 5, 2, 9]
    expected = nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])).exp()
    assert perplexity(lambda piece: logits[: len(piece)], ids) == pytest.approx(float(expected))
    sure = 100 * nn.functional.one_hot(torch.tensor([*ids[1:], 0]), 11).float()
    assert perplexity(lambda piece: sure, ids) == pytest.approx(1)
    assert perplexity(lambda piece: -100 * sure, ids) == float("inf")
    with pytest.raises(ValueError, match="two tokens"):
        perplexity(lambda piece: logits, [1])


@pytest.mark.parametrize(("after", "levels"), [(9.0, ["info"]), (10.4, ["info"]), (10.6, ["info", "warning"])])
def test_what_quantizing_did_is_logged(after: float, levels: list[str]) -> None:
    with capture_logs() as logs:
        check(10.0, after, "int8")
    assert [line["log_level"] for line in logs] == levels
    assert (logs[0]["before"], logs[0]["after"]) == (10.0, after)


@pytest.mark.parametrize("after", [20.1, float("inf"), float("nan")])
def test_a_spoilt_model_is_refused_with_what_to_do(after: float) -> None:
    with pytest.raises(ConfigError, match="give --quantize int8 or leave it out") as caught:
        check(10.0, after, "int4")
    assert caught.value.param == "quantize"
    with pytest.raises(ConfigError, match="leave --quantize out"):
        check(10.0, after, "int8")


def test_the_sample_in_the_tokens_of_a_model(tmp_path: Path) -> None:
    words = {word: i for i, word in enumerate(dict.fromkeys(SAMPLE.split()))}
    tokenizer = Tokenizer(models.WordLevel({**words, "?": len(words)}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ids = sample_ids(tmp_path, len(words))
    assert ids == [words[word] for word in SAMPLE.split()]


@pytest.mark.parametrize(("content", "why"), [(None, "no tokenizer.json"), ("{", "cannot be read")])
def test_without_a_tokenizer_the_log_says_why_nothing_is_checked(tmp_path: Path, content: str | None, why: str) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with capture_logs() as logs:
        assert sample_ids(tmp_path, 10) is None
    assert why in logs[0]["why"]


def test_a_vocabulary_larger_than_the_model_is_not_used(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"?": 7}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert sample_ids(tmp_path, 7) is None
    assert sample_ids(tmp_path, 8)
