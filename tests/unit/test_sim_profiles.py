"""The machines of the papers: what was measured, what is made of it, and where it is known to be off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.measure.splitwise import nine
from loadgen.record import Outcome, Record, Run
from loadgen.sim import fitting
from loadgen.sim.profiles import MachineProfile, idle_speed, machine_types, models, profile
from loadgen.sim.speeds import Curve, FittedSpeed, MeasuredSpeed, PublishedSpeed
from shared.errors import ConfigError
from shared.wire.costs import Costs

TABLE = Path(__file__).parents[3] / "shared" / "reference" / "data" / "splitwise_perf_model.csv"
SHIPPED = orjson.loads(fitting.SHIPPED.read_bytes())
EVERY = [profile(model, machine) for model in models() for machine in machine_types()]
ids = [f"{one.model} {one.type}" for one in EVERY]


def shipped(one: MachineProfile) -> dict[str, Any]:
    hardware = {"dgx-a100": "a100-80gb", "dgx-h100": "h100-80gb", "dgx-h100-capped": "h100-80gb-pcap"}[one.type]
    found: dict[str, Any]
    (found,) = (s for s in SHIPPED["speeds"] if (s["model"], s["hardware"]) == (one.model, hardware))
    return found


@pytest.mark.skipif(
    not TABLE.is_file(),
    reason=f"{TABLE.name}, published with Splitwise's simulator, is not ours to ship; its fit is, and is tested",
)
def test_the_shipped_figures_are_a_fit_of_the_table() -> None:
    """Up to the last digit that is kept, which may differ between libraries of linear algebra."""
    found = dict(leaves(orjson.loads(orjson.dumps(fitting.refit(TABLE)))))
    kept = dict(leaves(SHIPPED))
    assert found.keys() == kept.keys()
    for place, value in kept.items():
        assert found[place] == (pytest.approx(value, rel=1e-4, abs=1e-4) if isinstance(value, float) else value), place


def leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(item, f"{place}/{key}")
    else:
        yield place, value


# ---- what a simulated machine takes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_a_lone_prompt_takes_what_was_measured(one: MachineProfile) -> None:
    knots = shipped(one)["knots"]
    for tokens, ms in zip(knots["tokens"], knots["prompt_ms"], strict=True):
        if 256 <= tokens <= 8192:  # longer ones were measured as many short prompts only
            assert one.speed.step_s(tokens, tokens * tokens, 0, 0) * 1000 == pytest.approx(ms, rel=0.04)


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_decodes_depend_on_batch_and_context(one: MachineProfile) -> None:
    """Measured with 64 sequences of 512 to 640 tokens: up to twice the time of one; the published curve misses it."""
    measured_s = shipped(one)["knots"]["token_ms"][-1] / 1000
    assert one.speed.decode_s(64 * 576, 64) == pytest.approx(measured_s, rel=0.07)
    assert one.published_speed.decode_s(64 * 576, 64) < 0.72 * measured_s
    assert one.speed.decode_s(64 * 2048, 64) > 1.1 * one.speed.decode_s(64 * 576, 64)


@settings(max_examples=50)
@given(
    one=st.sampled_from(EVERY),
    tokens=st.integers(1, 40_000),
    more=st.integers(0, 5000),
    batch=st.integers(0, 256),
    context=st.integers(0, 100_000),
)
def test_more_work_never_takes_less(one: MachineProfile, tokens: int, more: int, batch: int, context: int) -> None:
    context = context if batch else 0
    alone_s = one.speed.step_s(tokens, tokens * tokens, 0, 0)
    both_s = one.speed.step_s(tokens, tokens * tokens, context, batch)
    longer_s = one.speed.step_s(tokens + more, (tokens + more) ** 2, context, batch)
    assert 0 < alone_s <= both_s <= longer_s + 1e-9
    assert both_s <= alone_s + one.speed.decode_s(context, batch)


def test_a_later_piece_pays_for_attention_over_the_earlier_ones() -> None:
    speed = profile("bloom-176b", "dgx-a100").speed
    first_s = speed.step_s(2048, 2048**2, 0, 0)
    last_s = speed.step_s(2048, 8192**2 - 6144**2, 0, 0)
    assert 1.03 * first_s < last_s < 1.15 * first_s
    assert speed.step_s(2048, 4 * 512**2, 0, 0) < first_s  # four short prompts


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_each_next_decode_step_takes_the_growth_longer(one: MachineProfile) -> None:
    for speed in (one.speed, one.published_speed, FittedSpeed(one.fit.costs)):
        grown_s = speed.decode_s(10_000 + 48, 48) - speed.decode_s(10_000, 48)
        assert speed.decode_growth_s(48) == pytest.approx(grown_s, abs=1e-12)


# ---- what its policies believe --------------------------------------------------------------------------------------


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_the_fit_is_as_good_as_it_says(one: MachineProfile) -> None:
    errors = shipped(one)["errors"]
    assert one.fit.prefill_error == errors["prefill_to_knee"]["mean"] < 0.12
    assert one.fit.decode_error == errors["decode"]["mean"] < 0.025 and errors["decode"]["max"] < 0.09
    assert errors["prefill_curve"]["mean"] < 0.05 and errors["decode_published"]["max"] > 0.35
    for tokens in (512, 1024, 2048):
        told_s, real_s = one.fit.costs.prefill_s(tokens), one.speed.step_s(tokens, tokens**2, 0, 0)
        assert told_s == pytest.approx(real_s, rel=0.25)
    assert one.fit.costs.decode_s(20_000, 32) == pytest.approx(one.speed.decode_s(20_000, 32))


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_a_prompt_in_pieces_takes_about_what_the_fit_says(one: MachineProfile) -> None:
    """8,192 tokens in steps at the knee, each with its own load of the weights."""
    ends = range(2048, 8192 + 1, 2048)
    real_s = sum(one.speed.step_s(2048, end**2 - (end - 2048) ** 2, 0, 0) for end in ends)
    assert one.fit.costs.prefill_s(8192) == pytest.approx(real_s, rel=0.36)


# ---- the published simulator ----------------------------------------------------------------------------------------


def test_the_published_simulator_is_met_exactly() -> None:
    """The times of its own example, and its decodes that do not notice each other."""
    h100, a100 = profile("bloom-176b", "dgx-h100").published_speed, profile("bloom-176b", "dgx-a100").published_speed
    assert h100.step_s(4096, 4096**2, 0, 0) == pytest.approx(0.649598, abs=1e-6)
    assert h100.step_s(2048, 2048**2, 0, 0) == pytest.approx(0.251964, abs=1e-6)
    assert [round(a100.decode_s(0, batch) * 1000, 2) for batch in (1, 8, 64, 128)] == [47.52, 47.52, 47.56, 47.61]
    assert [round(h100.decode_s(9, batch) * 1000, 2) for batch in (1, 8, 64, 128)] == [35.33, 35.35, 35.53, 35.74]
    assert h100.step_s(2047, 2047**2, 512, 1) == pytest.approx(1.1 * 0.251964, abs=1e-6)
    falling = profile("llama2-70b", "dgx-h100")
    assert falling.published_speed.decode_s(0, 128) < falling.published_speed.decode_s(0, 1)
    assert falling.published_fit.costs.decode_ms[2] == 0.0  # a fit is never negative


def test_kv_memory() -> None:
    bloom, llama = profile("bloom-176b", "dgx-h100"), profile("llama2-70b", "dgx-h100")
    assert bloom.kv_bytes_per_token == bloom.published_kv_bytes_per_token == 4_014_080
    assert (llama.kv_bytes_per_token, llama.published_kv_bytes_per_token) == (327_680, 2_621_440)
    assert bloom.kv_tokens == int((640e9 * 0.9 - 352.4e9) / 4_014_080)
    assert bloom.published_kv_tokens == int((640e9 - 352.4e9) / 4_014_080)


def test_a_cap_slows_prompts_and_leaves_decodes_as_they_are() -> None:
    for model in models():
        free, capped = profile(model, "dgx-h100"), profile(model, "dgx-h100-capped")
        assert capped.speed.step_s(2048, 2048**2, 0, 0) == pytest.approx(1.3 * free.speed.step_s(2048, 2048**2, 0, 0))
        assert capped.speed.decode_s(9000, 16) == pytest.approx(free.speed.decode_s(9000, 16), rel=0.01)
        assert capped.power.full_w < free.power.full_w
        decoding_w = [one.power.full_w * one.power.token_share for one in (free, capped)]
        assert decoding_w[0] == pytest.approx(decoding_w[1])


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("model", models())
def test_a_request_alone_on_the_reference_machine_is_not_slowed_down(model: str, published: bool) -> None:
    one = profile(model, "dgx-a100")
    speed: MeasuredSpeed | PublishedSpeed = one.published_speed if published else one.speed
    first_s = speed.step_s(2048, 2048**2, 0, 0)
    event_s = [first_s + step * speed.decode_s(2100, 1) for step in range(100)]
    record = Record(
        index=0, prompt_tokens=2048, output_tokens=100, due_s=0.0, sent_s=0.0, event_s=event_s, event_tokens=[1] * 100,
        done_s=event_s[-1], outcome=Outcome.COMPLETED,
    )  # fmt: skip
    run = Run(
        target="t", model=model, trace="t", schedule_sha256="", scheduled=1, records=[record], window_s=(0, event_s[-1])
    )
    table: Any = nine(run, idle_speed(model, published=published))
    assert table["ttft"]["p50"]["value"] == pytest.approx(1.0)
    assert table["tbt"]["p50"]["value"] == pytest.approx(1.0, rel=0.05)


# ---- curves and fits ------------------------------------------------------------------------------------------------


def test_a_curve_goes_through_its_knots_and_on_beyond_them() -> None:
    curve = Curve([10, 20, 40], [1.0, 2.0, 8.0])
    assert [curve.at(x) for x in (0, 10, 15, 20, 30, 40, 50)] == pytest.approx([0.0, 1.0, 1.5, 2.0, 5.0, 8.0, 11.0])
    with pytest.raises(AssertionError, match="out of order"):
        Curve([1, 1], [2.0, 3.0])


COLUMNS = (
    "model,hardware,prompt_size,batch_size,token_size,peak_power,average_power,prompt_time,token_time,e2e_time,"
    "tensor_parallel"
)


def table_of(path: Path, costs: Costs) -> Path:
    """The grid of the true table for one whose machines all follow the costs; a request's answer ends as asked."""
    grid = [(p, 1, 128) for p in (128, 256, 512, 1024, 2048, 4096)] + [(512, b, 128) for b in (2, 4)] + [(512, 1, 1024)]
    lines = [COLUMNS]
    for model in models():
        for hardware in ("a100-80gb", "h100-80gb", "h100-80gb-pcap"):
            for prompt, batch, answer in grid:
                prompt_ms = costs.step_s(prompt * batch, prompt * prompt * batch, 0, 0) * 1000
                token_ms = costs.decode_s(round(batch * (prompt + answer / 2)), batch) * 1000
                e2e_ms = prompt_ms + (answer - 1) * token_ms
                power = "1.0,0.6" if hardware == "a100-80gb" else "0.0,0.0"
                lines.append(f"{model},{hardware},{prompt},{batch},{answer},{power},{prompt_ms},{token_ms},{e2e_ms},8")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_known_costs_are_found_again(tmp_path: Path) -> None:
    costs = Costs(prefill_ms=(40.0, 0.2, 0.0), decode_ms=(48.0, 0.0005, 0.4))
    found = fitting.refit(table_of(tmp_path / "table.csv", costs))["speeds"]
    assert len(found) == 6 and [s.get("note") is not None for s in found] == [False, False, True] * 2
    for speed in found:
        assert speed["decode_ms"] == pytest.approx(costs.decode_ms, rel=1e-3)
        assert speed["errors"]["decode"]["max"] < 1e-3
        a, b, c = speed["prefill_ms"]
        assert (a, b) == pytest.approx((40.0, 0.2), rel=0.1)
        assert 0.01 < c * 2048**2 / (0.2 * 2048) < 0.03  # the share of attention, by counting operations
        assert speed["power_share"] == ({"prompt": 1.0, "token": 0.6} if speed["hardware"] == "a100-80gb" else None)


def test_a_fit_is_never_negative() -> None:
    features = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert fitting._not_negative(features, np.array([3.0, 2.0, 1.0])) == pytest.approx((2.0, 0.0))
    assert fitting._not_negative(features, np.array([1.0, 2.0, 3.0])) == pytest.approx((0.0, 1.0), abs=1e-9)
    assert fitting._not_negative(features, np.array([-1.0, -1.0, -1.0])) == (0.0, 0.0)


@pytest.mark.parametrize("text", ["", "model,hardware\nbloom-176b,a100-80gb\n", COLUMNS + "\n"])
def test_what_is_not_the_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"other\.csv"):
        fitting.refit(path)
    with pytest.raises(ConfigError, match="missing"):
        fitting.refit(tmp_path / "missing.csv")
