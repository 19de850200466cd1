"""The cluster that is simulated, as its YAML file describes it.

    model: bloom-176b
    machines:
      - {type: dgx-h100, count: 25, role: prompt}
      - {type: dgx-a100, count: 15, role: token}
    policy: moving              # Splitwise's pools (default); fixed: roles stay; colocated: every machine both phases,
                                # whole prompts first (the papers' baseline); chunked: the same with chunked prefill
    cost_model: batch-aware     # default; splitwise-sim: as the published simulator, defects included
    link_gbps: 400              # of each machine; default: as its type has it
    max_num_seqs: 512           # a machine's batch; default 512, 64 for custom machines
    max_num_batched_tokens: 2048
    tbt_target_s: 0.2           # what chunked prefill beside decodes keeps to; default: from the cost model
    ttft_target_s: 5            # what admission keeps to, with `admission: true`
    admission: false
    known_answers: false        # true: clients ask for exactly as many tokens as they get, as `loadgen replay` does
    report_every_s: 0.25
    block_size: 16

A machine of our own is `{type: custom, prefill_ms: [a, b, c], decode_ms: [a, b, c], kv_tokens: 4096,
kv_bytes_per_token: 98304, layers: 24, link_gbps: 8, count: 4, role: prompt}`: it is exactly as its Costs say. It may
have a `name`, `exposed_ms`, `usd_per_hour` and `power_kw`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from loadgen.measure.splitwise import IdleSpeed
from loadgen.sim.fields import Fields, flag, member_of, number, whole_number, word
from loadgen.sim.kinds import CostModel, KindReader, MachineKind, Policy
from loadgen.sim.profiles import idle_speed, models
from shared.errors import ConfigError
from shared.wire.terms import Role

MOST_MACHINES = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """All machines serve one model, so they agree on what a token's KV is."""

    model: str
    machines: tuple[MachineKind, ...]
    idle: IdleSpeed  # what slow-downs are taken against: a DGX-A100 alone; of an unknown model, the first machine
    policy: Policy = Policy.MOVING
    cost_model: CostModel = CostModel.BATCH_AWARE
    max_num_batched_tokens: int = 2048
    tbt_target_s: float | None = None
    ttft_target_s: float | None = None
    admission: bool = False
    known_answers: bool = False
    report_every_s: float = 0.25
    block_size: int = 16

    @classmethod
    def load(cls, path: Path) -> "Cluster":
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise ConfigError(f"cannot read {path}: {why}", param="cluster") from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str | dict[str, Any], source: str = "cluster") -> "Cluster":
        """`text`: YAML, or what it would read as. Raises ConfigError."""
        return _cluster(_values(text, source) if isinstance(text, str) else text, source)

    @property
    def kv_bytes_per_token(self) -> int:
        return self.machines[0].kv_bytes_per_token

    @property
    def layers(self) -> int:
        return self.machines[0].layers

    @property
    def serialized(self) -> bool:
        """KV is sent in one piece after the prefill, and no transfer waits for another."""
        return self.cost_model is CostModel.SPLITWISE_SIM


def _values(text: str, source: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise ConfigError(f"{source}{where}: not YAML: {getattr(error, 'problem', error)}", param="cluster") from error


def _cluster(values: Any, source: str) -> Cluster:
    fields = Fields(values, source)
    model = fields.take("model", word)
    policy = fields.take("policy", member_of(Policy), Policy.MOVING)
    cost_model = fields.take("cost_model", member_of(CostModel), CostModel.BATCH_AWARE)
    link_gbps = fields.take("link_gbps", number(above=0), None)
    max_num_seqs = fields.take("max_num_seqs", whole_number(1), None)
    reader = KindReader(model, policy, cost_model, link_gbps, max_num_seqs, source)
    kinds = tuple(reader.read(item, index) for index, item in enumerate(fields.take("machines", _several)))
    known = model in models()
    cluster = Cluster(
        model=model,
        machines=kinds,
        idle=idle_speed(model, published=cost_model is CostModel.SPLITWISE_SIM) if known else kinds[0].idle,
        policy=policy,
        cost_model=cost_model,
        max_num_batched_tokens=fields.take("max_num_batched_tokens", whole_number(1), 2048),
        tbt_target_s=fields.take("tbt_target_s", number(above=0), None),
        ttft_target_s=fields.take("ttft_target_s", number(above=0), None),
        admission=fields.take("admission", flag, False),
        known_answers=fields.take("known_answers", flag, False),
        report_every_s=fields.take("report_every_s", number(above=0), 0.25),
        block_size=fields.take("block_size", whole_number(1, 4096), 16),
    )
    fields.finish()
    _check(cluster, source)
    return cluster


def _several(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError("give a list of at least one machine, each a mapping")
    return value


def _check(cluster: Cluster, source: str) -> None:
    kinds = cluster.machines
    for name in ("kv_bytes_per_token", "layers"):
        if len({getattr(kind, name) for kind in kinds}) > 1:
            raise ConfigError(f"{source}: machines: {name} differs, but all serve one model", param="machines")
    if (machines := sum(kind.count for kind in kinds)) > MOST_MACHINES:
        raise ConfigError(f"{source}: machines: {machines} are too many, at most {MOST_MACHINES}", param="machines")
    roles = {kind.role for kind in kinds}
    for role in (Role.PROMPT, Role.TOKEN):
        if cluster.policy is Policy.FIXED and not roles & {role, Role.MIXED}:
            raise ConfigError(f"{source}: machines: policy fixed needs one of role {role} or mixed", param="machines")
