"""Faster, longer, fewer, cut to a context: the laws that hold for any trace."""

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.traces import scale
from loadgen.traces.describe import shared_tokens
from loadgen.traces.load import from_arguments
from loadgen.traces.readers import own
from loadgen.traces.trace import Request, Trace
from loadgen.traces.wanted import add_arguments
from shared.errors import ConfigError
from shared.runtime.options import Options
from tests.support.traces import traces

FEW = settings(max_examples=60)
factors = st.floats(0.01, 100.0)


def assert_carried_fits(trace: Trace) -> None:
    for r in trace.requests:
        if r.carries and r.after is not None:
            before = trace.requests[r.after]
            assert r.prompt_tokens >= before.prompt_tokens + before.output_tokens


@FEW
@given(traces(), factors)
def test_rate_scale_divides_every_time(trace: Trace, factor: float) -> None:
    scaled = scale.scale_rate(trace, factor)
    scaled.check()
    assert [r.at_s for r in scaled.requests] == [r.at_s / factor for r in trace.requests]
    assert [r.think_s for r in scaled.requests] == [r.think_s / factor for r in trace.requests]
    assert [r.prompt_tokens for r in scaled.requests] == [r.prompt_tokens for r in trace.requests]


@FEW
@given(traces(), factors)
def test_length_scale_multiplies_every_count(trace: Trace, factor: float) -> None:
    scaled = scale.scale_lengths(trace, factor)
    scaled.check()
    assert_carried_fits(scaled)
    for was, now in zip(trace.requests, scaled.requests, strict=True):
        assert now.output_tokens == max(1, math.floor(was.output_tokens * factor + 0.5))
        assert now.prompt_tokens >= max(1, math.floor(was.prompt_tokens * factor + 0.5))
        if not was.carries:
            assert now.prompt_tokens == max(1, math.floor(was.prompt_tokens * factor + 0.5))
        assert (now.at_s, now.after, now.carries) == (was.at_s, was.after, was.carries)
        assert now.blocks == was.blocks[: len(now.blocks)]
        assert (len(now.blocks) - 1) * now.block_tokens < now.prompt_tokens, "no block begins behind the prompt"


def test_what_was_shared_stays_shared_at_a_tenth_of_the_length() -> None:
    requests = tuple(
        Request(at_s=float(n), prompt_tokens=5000, output_tokens=1, blocks=(*range(8), 100 + n), block_tokens=512)
        for n in range(5)
    )
    trace = Trace(name="t", requests=requests)
    tenth = scale.scale_lengths(trace, 0.1)
    assert shared_tokens(trace) == 4 * 8 * 512
    assert shared_tokens(tenth) == 4 * 8 * 51


@FEW
@given(traces(), st.integers(1, 15))
def test_limit_takes_the_first(trace: Trace, count: int) -> None:
    cut = scale.limit(trace, count)
    cut.check()
    assert cut.requests == trace.requests[:count]
    assert (cut.notes == ()) == (count >= len(trace.requests))


@FEW
@given(traces(), st.integers(2, 4000))
def test_fit_cuts_only_what_does_not_fit_and_answers_last(trace: Trace, max_model_len: int) -> None:
    fitted = scale.fit(trace, max_model_len)
    fitted.check()
    assert_carried_fits(fitted)
    for was, now in zip(trace.requests, fitted.requests, strict=True):
        assert now.prompt_tokens + now.output_tokens <= max_model_len
        if was.prompt_tokens + was.output_tokens <= max_model_len:
            assert now == was
        else:
            assert now.prompt_tokens + now.output_tokens == max_model_len
            assert now.output_tokens == min(was.output_tokens, max_model_len - 1)
    assert (fitted is trace) == (fitted.requests == trace.requests)


def test_every_change_leaves_a_note() -> None:
    trace = Trace(
        name="t",
        requests=tuple(
            Request(at_s=float(n), prompt_tokens=10_000, output_tokens=9_000 if n else 100) for n in range(3)
        ),
    )
    changed = scale.limit(scale.scale_rate(scale.scale_rate(trace, 2.0), 0.25), 2)
    changed = scale.fit(scale.scale_lengths(changed, 2.0), 8192)
    assert changed.notes == (
        "rate x 2: time compressed",
        "rate x 0.25: time stretched",
        "the first 2 of 3 requests",
        "lengths x 2: every count at least 1 token",
        "2 prompts cut to the context of 8,192 tokens",
        "1 answer cut to the context of 8,192 tokens",
    )
    assert scale.scale_rate(trace, 1.0) is trace and scale.scale_lengths(trace, 1.0) is trace


@pytest.mark.parametrize("factor", [0.0, -1.0, math.nan, math.inf])
def test_senseless_factors_are_refused(factor: float) -> None:
    trace = Trace(name="t", requests=(Request(at_s=0.0, prompt_tokens=1, output_tokens=1),))
    with pytest.raises(ConfigError, match="--rate-scale must be a finite number above 0"):
        scale.scale_rate(trace, factor)
    with pytest.raises(ConfigError, match="--length-scale must be a finite number above 0"):
        scale.scale_lengths(trace, factor)


def from_line(*arguments: str) -> Trace:
    parser = Options("prog", "")
    add_arguments(parser)
    return from_arguments(parser.read(arguments))


def test_the_command_line_limits_then_scales(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    requests = tuple(Request(at_s=float(n), prompt_tokens=10, output_tokens=4) for n in range(5))
    own.write(Trace(name="t", requests=requests), path)
    trace = from_line("--trace", str(path), "--limit", "3", "--rate-scale", "2", "--length-scale", "0.5")
    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in trace.requests] == [(0, 5, 2), (0.5, 5, 2), (1, 5, 2)]
    assert trace.notes == (
        "at most the first 3 requests",
        "rate x 2: time compressed",
        "lengths x 0.5: every count at least 1 token",
    )


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate-scale", "0"], "argument --rate-scale: '0': give a number above 0"),
        (["--rate-scale", "inf"], "argument --rate-scale: 'inf': give a finite number above 0"),
        (["--request-rate", "fast"], "argument --request-rate: 'fast': give a number above 0"),
        (["--num-prompts", "0"], "argument --num-prompts: '0': give a whole number from 1"),
        (["--think-time", "-1"], "argument --think-time: '-1': give a number of at least 0"),
        (["--seed", "x"], "argument --seed: 'x': give a whole number from 0"),
        (["--format", "xml"], "argument --format: invalid choice: 'xml'"),
    ],
)
def test_malformed_options_are_named_in_one_line(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_line("--trace", "poisson", *arguments)
    assert complaint in str(caught.value) and "\n" not in str(caught.value)
