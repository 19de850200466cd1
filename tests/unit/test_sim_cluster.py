"""The cluster file: what it means, and that every mistake in it is told in one line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.sim.cluster import Cluster
from loadgen.sim.kinds import CostModel, Policy
from loadgen.sim.profiles import idle_speed, machine_types, models, profile
from loadgen.sim.speeds import FittedSpeed, MeasuredSpeed, PublishedSpeed
from shared.errors import ConfigError
from shared.wire.costs import Costs
from shared.wire.terms import Role

H100: dict[str, Any] = {"type": "dgx-h100", "count": 25, "role": "prompt"}
A100: dict[str, Any] = {"type": "dgx-a100", "count": 15, "role": "token"}
PAPER: dict[str, Any] = {"model": "bloom-176b", "machines": [H100, A100], "policy": "moving"}
CUSTOM: dict[str, Any] = {
    "type": "custom", "count": 4, "role": "mixed", "prefill_ms": [10, 0.1, "1e-6"], "decode_ms": [5.0, 0.001, 0.2],
    "kv_tokens": 4096, "kv_bytes_per_token": 1000, "layers": 24,
}  # fmt: skip


def test_the_example_of_the_documentation() -> None:
    cluster = Cluster.parse(
        "{model: bloom-176b, machines: [{type: dgx-h100, count: 25, role: prompt}, "
        "{type: dgx-a100, count: 15, role: token}], policy: moving}"
    )
    assert cluster == Cluster.parse(PAPER)
    assert (cluster.model, cluster.policy, cluster.cost_model) == ("bloom-176b", Policy.MOVING, CostModel.BATCH_AWARE)
    first, second = cluster.machines
    assert (first.type, first.count, first.role) == ("dgx-h100", 25, Role.PROMPT)
    assert (second.type, second.count, second.role) == ("dgx-a100", 15, Role.TOKEN)
    assert first.speed is profile("bloom-176b", "dgx-h100").speed and isinstance(first.speed, MeasuredSpeed)
    assert (first.max_num_seqs, cluster.max_num_batched_tokens, cluster.block_size) == (512, 2048, 16)
    assert (cluster.tbt_target_s, cluster.ttft_target_s, cluster.admission) == (None, None, False)
    assert (cluster.known_answers, cluster.report_every_s, cluster.serialized) == (False, 0.25, False)
    assert (cluster.layers, cluster.kv_bytes_per_token) == (70, 4_014_080)
    assert first.link_bytes_per_s == 400e9 and second.link_bytes_per_s == 200e9
    assert (first.exposed_s, second.exposed_s) == (0.005, 0.008)
    assert cluster.idle == idle_speed("bloom-176b", published=False)


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("model: llama2-70b\nmachines:\n  - {type: dgx-h100-capped}\npolicy: chunked\nadmission: true\n")
    cluster = Cluster.load(path)
    assert cluster.policy is Policy.CHUNKED and cluster.admission and cluster.machines[0].count == 1
    assert cluster.machines[0].role is Role.MIXED


def test_policies_without_pools_ignore_roles() -> None:
    for policy in ("colocated", "chunked"):
        assert {kind.role for kind in Cluster.parse(PAPER | {"policy": policy}).machines} == {Role.MIXED}


def test_the_published_cost_model() -> None:
    cluster = Cluster.parse(PAPER | {"model": "llama2-70b", "cost_model": "splitwise-sim"})
    kind = cluster.machines[0]
    assert isinstance(kind.speed, PublishedSpeed) and cluster.serialized
    assert cluster.kv_bytes_per_token == 2_621_440 and kind.exposed_s == 0.0
    assert 2048 * 4_014_080 / kind.link_bytes_per_s == pytest.approx(0.038281, abs=1e-6)
    assert kind.fit.costs.decode_s(100_000, 64) == pytest.approx(kind.fit.costs.decode_s(0, 1), rel=0.01)
    assert cluster.idle == idle_speed("llama2-70b", published=True)


def test_what_is_given_for_all_machines_wins_over_their_types() -> None:
    cluster = Cluster.parse(PAPER | {"link_gbps": 400, "max_num_seqs": 7})
    assert {kind.link_gbps for kind in cluster.machines} == {400.0}
    assert {kind.max_num_seqs for kind in cluster.machines} == {7}
    assert Cluster.parse(PAPER | {"cost_model": "splitwise-sim", "link_gbps": 80}).machines[0].link_bytes_per_s == 1e10


def test_a_machine_of_our_own() -> None:
    cluster = Cluster.parse({"model": "smollm2-135m", "machines": [CUSTOM, CUSTOM | {"name": "slow", "link_gbps": 2}]})
    kind, slow = cluster.machines
    costs = Costs(prefill_ms=(10.0, 0.1, 1e-6), decode_ms=(5.0, 0.001, 0.2))
    assert isinstance(kind.speed, FittedSpeed) and kind.fit.costs == costs
    assert kind.speed.step_s(100, 10_000, 50, 2) == costs.step_s(100, 10_000, 50, 2)
    assert (kind.type, kind.kv_tokens, kind.max_num_seqs, kind.link_gbps) == ("custom", 4096, 64, 10.0)
    assert (slow.type, slow.link_gbps) == ("slow", 2.0)
    assert cluster.idle.tbt_s == costs.decode_s(1024, 1)
    assert dict(cluster.idle.ttft_s)[512] == costs.prefill_s(512)
    assert kind.cost_usd(3600) == kind.energy_wh(prefill_s=1, decode_s=1, mixed_s=1, idle_s=1) == 0.0


def test_cost_and_energy_of_a_machine() -> None:
    kind = Cluster.parse(PAPER).machines[0]
    assert kind.cost_usd(1800) == 19.0
    assert kind.energy_wh(prefill_s=3600, decode_s=0, mixed_s=0, idle_s=0) == pytest.approx(10_000)
    spared = kind.energy_wh(prefill_s=0, decode_s=3600, mixed_s=0, idle_s=0)
    idle = kind.energy_wh(prefill_s=0, decode_s=0, mixed_s=0, idle_s=3600)
    assert 0 < idle < spared < 10_000 and spared == pytest.approx(6349.17)


def machines(*entries: Any) -> dict[str, Any]:
    return PAPER | {"machines": list(entries)}


MISTAKES: list[tuple[Any, str | None, str]] = [
    ({}, "model", "c.yaml: model is missing; give a name"),
    ({"modle": "bloom-176b"}, "model", "'modle' is not it"),
    ("model: [", "cluster", "line 1: not YAML"),
    ("just words", None, "give a mapping"),
    (PAPER | {"polcy": "fixed"}, "polcy", "unknown key 'polcy'; did you mean policy?"),
    (PAPER | {"policy": "movin"}, "policy", "did you mean moving? give one of moving, fixed, colocated, chunked"),
    (PAPER | {"cost_model": "batch"}, "cost_model", "give one of batch-aware, splitwise-sim"),
    (PAPER | {"model": "gpt-5"}, "model", "known with one of bloom-176b, llama2-70b"),
    (PAPER | {"machines": []}, "machines", "at least one machine"),
    (PAPER | {"machines": H100}, "machines", "give a list"),
    (machines("dgx-h100"), None, "machines[0]: give a mapping"),
    (machines(H100, A100 | {"type": "dgx-a10"}), "type", "machines[1]: type is 'dgx-a10'; did you mean dgx-a100?"),
    (machines({"type": "dgx-h100", "count": 2}), "role", "role is missing; give one of prompt, token, mixed"),
    (machines(H100 | {"role": "decode"}), "role", "machines[0]: role is 'decode'"),
    (machines(H100 | {"count": 0}), "count", "count is 0; give a whole number from 1 to 100000"),
    (machines(H100 | {"count": 2.5}), "count", "count is 2.5; give a whole number"),
    (machines(H100 | {"count": True}), "count", "count is True; give a whole number"),
    (machines(H100 | {"cuont": 3}), "cuont", "machines[0]: unknown key 'cuont'; did you mean count?"),
    (machines(H100 | {"count": 60_000}, A100 | {"count": 60_000}), "machines", "120000 are too many, at most 100000"),
    (machines(H100) | {"policy": "fixed"}, "machines", "policy fixed needs one of role token or mixed"),
    (machines(H100, CUSTOM), "machines", "kv_bytes_per_token differs"),
    (machines(CUSTOM | {"prefill_ms": [1, 2]}), "prefill_ms", "give a list of 3 numbers of at least 0"),
    (machines(CUSTOM | {"prefill_ms": [1, 2, -3]}), "prefill_ms", "give a list of 3 numbers"),
    (machines(CUSTOM | {"decode_ms": [1, 2, ".nan"]}), "decode_ms", "give a list of 3 numbers"),
    (machines(CUSTOM | {"decode_ms": "123"}), "decode_ms", "give a list of 3 numbers"),
    (machines(CUSTOM | {"prefill_ms": [0, 0, 0]}), "prefill_ms", "a number above 0"),
    (machines({k: v for k, v in CUSTOM.items() if k != "layers"}), "layers", "layers is missing; give a whole number"),
    (machines(CUSTOM) | {"cost_model": "splitwise-sim"}, "type", "no figures for a custom machine"),
    (PAPER | {"link_gbps": 0}, "link_gbps", "link_gbps is 0; give a number above 0"),
    (PAPER | {"link_gbps": "fast"}, "link_gbps", "give a number above 0"),
    (PAPER | {"report_every_s": float("inf")}, "report_every_s", "give a number above 0"),
    (PAPER | {"tbt_target_s": -1}, "tbt_target_s", "tbt_target_s is -1; give a number above 0"),
    (PAPER | {"admission": 1}, "admission", "give true or false"),
    (PAPER | {"block_size": 0}, "block_size", "give a whole number from 1 to 4096"),
    (PAPER | {"block_size": [16]}, "block_size", "give a whole number"),
]


@pytest.mark.parametrize(("values", "key", "says"), MISTAKES, ids=[says for *_, says in MISTAKES])
def test_a_mistake_is_told_in_one_line(values: Any, key: str | None, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Cluster.parse(values, "c.yaml")
    text = str(caught.value)
    assert text.startswith("c.yaml") and says in text and "\n" not in text
    assert caught.value.param == key


def test_a_file_that_is_none(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.yaml"):
        with pytest.raises(ConfigError, match="cannot read"):
            Cluster.load(path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="no text"):
        Cluster.load(tmp_path / "binary.yaml")


JUNK = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "1", "moving", "a b"])
    | st.lists(st.none())
)
KEYS = st.sampled_from(
    [
        "model",
        "machines",
        "policy",
        "cost_model",
        "link_gbps",
        "max_num_seqs",
        "known_answers",
        "block_size",
        "admission",
        "x",
    ]
)
ENTRY = st.fixed_dictionaries(
    {"type": st.sampled_from([*machine_types(), "custom"]) | JUNK},
    optional={"count": st.integers(-1, 5) | JUNK, "role": st.sampled_from([*Role]) | JUNK, "layers": JUNK},
)


@settings(max_examples=100)
@given(values=st.dictionaries(KEYS, JUNK), model=st.sampled_from(models()), entries=st.lists(ENTRY, max_size=3))
def test_whatever_is_given_there_is_a_cluster_or_one_line(
    values: dict[str, Any], model: str, entries: list[dict[str, Any]]
) -> None:
    try:
        cluster = Cluster.parse({"model": model, "machines": entries, **values}, "c.yaml")
    except ConfigError as error:
        assert str(error).startswith("c.yaml") and "\n" not in str(error)
    else:
        assert all(kind.count >= 1 and kind.kv_tokens >= 1 for kind in cluster.machines)
