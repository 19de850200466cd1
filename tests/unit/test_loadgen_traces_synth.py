"""The generated twins of the Azure traces against the files, where these are at hand, and against their figures."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from loadgen.traces.load import load
from loadgen.traces.synth import NAMES, figures_of, generate
from loadgen.traces.trace import Trace
from loadgen.traces.wanted import Wanted
from loadgen.traces.windows import burstiness

REAL = Path(__file__).parents[3] / "shared" / "traces"
FILES = {"azure-conv": "AzureLLMInferenceTrace_conv.csv", "azure-code": "AzureLLMInferenceTrace_code.csv"}
SEEDS = range(6)
KS_LIMIT = 0.02

Values = NDArray[np.float64]


def ks(a: Values, b: Values) -> float:
    """The largest distance of two distributions."""
    at = np.union1d(a, b)
    shares = [np.searchsorted(np.sort(values), at, side="right") / len(values) for values in (a, b)]
    return float(np.abs(shares[0] - shares[1]).max())


def ks_2d(a: tuple[Values, Values], b: tuple[Values, Values]) -> float:
    """The largest distance over the four quadrants around each point of a grid of both samples' quantiles."""
    grid = [
        np.unique(np.quantile(np.concatenate([x, y]), np.linspace(0, 1, 150), method="nearest"))
        for x, y in zip(a, b, strict=True)
    ]
    shares = []
    for first, second in (a, b):
        table = np.zeros((len(grid[0]) + 1, len(grid[1]) + 1))
        np.add.at(table, (np.searchsorted(grid[0], first), np.searchsorted(grid[1], second)), 1.0 / len(first))
        shares.append(table)
    difference = shares[0] - shares[1]
    corners = [difference[::rows, ::columns] for rows in (1, -1) for columns in (1, -1)]
    return max(float(np.abs(corner.cumsum(axis=0).cumsum(axis=1)).max()) for corner in corners)


def gaps_us(trace: Trace) -> Values:
    """To 0.1 us, the precision of the files: equal gaps must compare as equal."""
    return np.round(np.diff([r.at_s for r in trace.requests]) * 1e6, 1)


def lengths(trace: Trace) -> tuple[Values, Values]:
    prompts = np.array([r.prompt_tokens for r in trace.requests], dtype=np.float64)
    return prompts, np.array([r.output_tokens for r in trace.requests], dtype=np.float64)


def bursts(trace: Trace) -> tuple[Values, Values, Values]:
    """Sizes, durations and the pauses between; a gap of more than 3 s separates bursts."""
    gaps = gaps_us(trace)
    pauses = np.flatnonzero(gaps > 3e6)
    starts, ends = np.append(0, pauses + 1), np.append(pauses, len(gaps))
    at_us = np.append(0, np.cumsum(gaps))
    return (ends - starts + 1).astype(np.float64), np.round(at_us[ends] - at_us[starts], -3), gaps[pauses]


@cache
def twin(name: str, seed: int) -> Trace:
    return generate(name, seed=seed)


@cache
def real(name: str) -> Trace:
    path = REAL / FILES[name]
    if not path.is_file():
        pytest.skip(f"{path.name} is not ours to ship: python -m loadgen trace fetch {name}-2023 gets it")
    return load(str(path))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_lengths_and_gaps_keep_to_the_real_trace(name: str, seed: int) -> None:
    made, trace = twin(name, seed), real(name)
    assert ks(gaps_us(made), gaps_us(trace)) <= KS_LIMIT
    for ours, theirs in zip(lengths(made), lengths(trace), strict=True):
        assert ks(ours, theirs) <= KS_LIMIT
        assert ours.mean() == pytest.approx(theirs.mean(), rel=0.01)
    assert ks_2d(lengths(made), lengths(trace)) <= KS_LIMIT


def test_the_joint_distance_would_notice_independent_lengths() -> None:
    prompts, outputs = lengths(real("azure-conv"))
    apart = np.random.default_rng(0).permutation(outputs)
    assert ks_2d((prompts, outputs), (prompts, outputs)) == 0
    assert ks_2d((prompts, apart), (prompts, outputs)) > 0.1


@pytest.mark.parametrize("seed", SEEDS)
def test_the_bursts_of_code_keep_to_the_real_trace(seed: int) -> None:
    made, trace = bursts(twin("azure-code", seed)), bursts(real("azure-code"))
    assert [len(values) for values in made] == [72, 72, 71]
    for ours, theirs in zip(made, trace, strict=True):
        assert ks(ours, theirs) <= 2 / 72  # sizes and pauses are equal, durations nearly


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_burstiness_keeps_to_the_figures_of_the_trace(name: str, seed: int) -> None:
    figures = figures_of(name)
    found = burstiness(np.array([r.at_s for r in twin(name, seed).requests]))
    assert found == pytest.approx(figures["figures"], rel=0.101)
    assert found["gap_cv"] == pytest.approx(figures["figures"]["gap_cv"], rel=0.002)
    assert twin(name, seed).span_s == pytest.approx(figures["span_s"], rel=0.002)


@pytest.mark.parametrize("name", NAMES)
def test_the_figures_are_those_of_the_trace(name: str) -> None:
    trace, figures = real(name), figures_of(name)
    assert len(trace.requests) == figures["requests"]
    assert trace.span_s == pytest.approx(figures["span_s"], abs=1e-3)
    assert burstiness(np.array([r.at_s for r in trace.requests])) == pytest.approx(figures["figures"], rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", SEEDS)
def test_marginals_keep_to_the_stored_quantiles(name: str, seed: int) -> None:
    """What can be said without the files: as the tables have it."""
    figures, made = figures_of(name), twin(name, seed)
    made.check()
    assert len(made.requests) == figures["requests"]
    middles = (np.arange(len(made.requests)) + 0.5) / len(made.requests)
    for values, key in zip(lengths(made), ("prompt_quantiles", "output_quantiles"), strict=True):
        table = np.interp(middles, np.linspace(0, 1, 1001), figures[key])
        assert ks(values, np.rint(table)) <= 0.002
    table = np.asarray(figures["gap_quantiles_us"])
    within = gaps_us(made) if name == "azure-conv" else gaps_us(made)[gaps_us(made) <= 3e6]
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert np.quantile(within, share) == pytest.approx(np.interp(share, np.linspace(0, 1, 1001), table), rel=0.02)


@pytest.mark.parametrize(
    ("name", "sha256"),
    [
        ("azure-conv", "523aad1cc640781b83d979e89754a471e39ee7c4517632d05cdb0bd9d649aedd"),
        ("azure-code", "137a8f1803dc509dc3781a4467e8e854bc64ec102d1acd65cf1773cab99c122a"),
    ],
)
def test_a_seed_gives_the_same_trace_on_every_machine(name: str, sha256: str) -> None:
    assert twin(name, 0).sha256 == sha256
    assert generate(name, seed=0).sha256 == sha256
    assert twin(name, 1).sha256 != sha256


@pytest.mark.parametrize("name", NAMES)
def test_fewer_are_the_first_and_more_go_on(name: str) -> None:
    whole = twin(name, 2)
    fewer = load(name, seed=2, options=Wanted(requests=500))
    assert fewer.requests == whole.requests[:500]
    count = len(whole.requests) + 700
    more = load(name, seed=2, options=Wanted(requests=count))
    more.check()
    assert len(more.requests) == count
    assert more.requests[: len(whole.requests)] == whole.requests
    gone_on = more.requests[len(whole.requests) :]
    assert 0 < gone_on[0].at_s - whole.span_s < 60
    assert [r.prompt_tokens for r in gone_on] != [r.prompt_tokens for r in whole.requests[:700]]


def test_the_tables_are_small_and_say_where_they_come_from() -> None:
    for name in NAMES:
        figures = figures_of(name)
        assert figures["licence"] == "CC-BY-4.0" and "Patel et al., Splitwise" in figures["source"]
        assert figures["source"] in twin(name, 0).notes[0]
