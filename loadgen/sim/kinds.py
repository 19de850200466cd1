"""Machines that are alike: what the world must know of them, and how an entry of the cluster file says it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from loadgen.measure.splitwise import IdleSpeed
from loadgen.sim import profiles
from loadgen.sim.fields import Fields, member_of, number, numbers, one_of, whole_number, word
from loadgen.sim.profiles import REFERENCE_CONTEXT, Power
from loadgen.sim.speeds import FittedSpeed, Speed
from shared.errors import ConfigError
from shared.wire.costs import REFERENCE_TOKENS, CostFit, Costs
from shared.wire.terms import Role

CUSTOM = "custom"
MOST_OF_A_KIND = 100_000
PUBLISHED_LINK_GBPS = 200 * 2**30 * 8 / 1e9  # 200 GiB/s
CUSTOM_LINK_GBPS = 10.0
DGX_NUM_SEQS, CUSTOM_NUM_SEQS = 512, 64
_KNOWN_WELL = 1000  # steps behind a fit that is no guess
_IDLE_LENGTHS = (128, 512, 2048, 8192)


class Policy(StrEnum):
    MOVING = "moving"
    FIXED = "fixed"
    COLOCATED = "colocated"
    CHUNKED = "chunked"

    @property
    def has_pools(self) -> bool:
        """Prompts and decodes have machines of their own."""
        return self in (Policy.MOVING, Policy.FIXED)


class CostModel(StrEnum):
    BATCH_AWARE = "batch-aware"
    SPLITWISE_SIM = "splitwise-sim"


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineKind:
    """`count` machines that are alike. `speed` is how long steps take, `fit` what policies believe. `role` is mixed
    under a policy that does not split. exposed_s: what a layer-wise transfer costs however well it is hidden."""

    type: str
    count: int
    role: Role
    speed: Speed
    fit: CostFit
    kv_tokens: int
    kv_bytes_per_token: int
    layers: int
    link_gbps: float
    exposed_s: float
    max_num_seqs: int
    usd_per_hour: float
    power: Power

    @property
    def idle(self) -> IdleSpeed:
        """Of a request that has one of these machines to itself."""
        ttft_s = tuple((tokens, self.speed.step_s(tokens, tokens * tokens, 0, 0)) for tokens in _IDLE_LENGTHS)
        return IdleSpeed(ttft_s=ttft_s, tbt_s=self.speed.decode_s(REFERENCE_CONTEXT, 1))

    @property
    def link_bytes_per_s(self) -> float:
        return self.link_gbps * 1e9 / 8

    def cost_usd(self, seconds: float) -> float:
        """Of one machine."""
        return self.usd_per_hour * seconds / 3600

    def energy_wh(self, *, prefill_s: float, decode_s: float, mixed_s: float, idle_s: float) -> float:
        """Of one machine; a step that does both draws what a prompt draws."""
        power = self.power
        shares = power.prompt_share * (prefill_s + mixed_s) + power.token_share * decode_s + power.idle_share * idle_s
        return power.full_w * shares / 3600


@dataclass(frozen=True, slots=True)
class KindReader:
    """What of the cluster a machine's entry depends on; link_gbps and max_num_seqs: None where not given."""

    model: str
    policy: Policy
    cost_model: CostModel
    link_gbps: float | None
    max_num_seqs: int | None
    source: str

    def read(self, values: Any, index: int) -> MachineKind:
        where = f"{self.source}: machines[{index}]"
        fields = Fields(values, where)
        machine_type = fields.take("type", one_of((*profiles.machine_types(), CUSTOM)))
        count = fields.take("count", whole_number(1, MOST_OF_A_KIND), 1)
        role = self._role(fields)
        kind = (
            self._custom(fields, where, count, role)
            if machine_type == CUSTOM
            else self._known(machine_type, count, role)
        )
        fields.finish()
        return kind

    def _role(self, fields: Fields) -> Role:
        parse = member_of(Role)
        if not self.policy.has_pools:
            fields.take("role", parse, Role.MIXED)
            return Role.MIXED
        return fields.take("role", parse)

    def _known(self, machine_type: str, count: int, role: Role) -> MachineKind:
        if self.model not in profiles.models():
            words = ", ".join(profiles.models())
            raise ConfigError(
                f"{self.source}: model is {self.model!r}; {machine_type} is known with one of {words}", param="model"
            )
        found = profiles.profile(self.model, machine_type)
        published = self.cost_model is CostModel.SPLITWISE_SIM
        link_gbps = PUBLISHED_LINK_GBPS if published else found.link_gbps
        return MachineKind(
            type=machine_type,
            count=count,
            role=role,
            speed=found.published_speed if published else found.speed,
            fit=found.published_fit if published else found.fit,
            kv_tokens=found.published_kv_tokens if published else found.kv_tokens,
            kv_bytes_per_token=found.published_kv_bytes_per_token if published else found.kv_bytes_per_token,
            layers=found.layers,
            link_gbps=self.link_gbps or link_gbps,
            exposed_s=0.0 if published else found.exposed_s,
            max_num_seqs=self.max_num_seqs or DGX_NUM_SEQS,
            usd_per_hour=found.usd_per_hour,
            power=found.power,
        )

    def _custom(self, fields: Fields, where: str, count: int, role: Role) -> MachineKind:
        if self.cost_model is CostModel.SPLITWISE_SIM:
            raise ConfigError(f"{where}: cost_model splitwise-sim has no figures for a custom machine", param="type")
        costs = Costs(prefill_ms=fields.take("prefill_ms", numbers(3)), decode_ms=fields.take("decode_ms", numbers(3)))
        if not costs.prefill_s(REFERENCE_TOKENS) or not costs.decode_s(1, 1):
            raise ConfigError(f"{where}: prefill_ms and decode_ms must each have a number above 0", param="prefill_ms")
        full_w = 1000 * fields.take("power_kw", number(least=0), 0.0)
        return MachineKind(
            type=fields.take("name", word, CUSTOM),
            count=count,
            role=role,
            speed=FittedSpeed(costs),
            fit=CostFit(
                costs=costs, prefill_error=0.0, decode_error=0.0, prefill_steps=_KNOWN_WELL, decode_steps=_KNOWN_WELL
            ),
            kv_tokens=fields.take("kv_tokens", whole_number(1)),
            kv_bytes_per_token=fields.take("kv_bytes_per_token", whole_number(1)),
            layers=fields.take("layers", whole_number(1)),
            link_gbps=fields.take("link_gbps", number(above=0), self.link_gbps or CUSTOM_LINK_GBPS),
            exposed_s=fields.take("exposed_ms", number(least=0), 0.0) / 1000,
            max_num_seqs=self.max_num_seqs or CUSTOM_NUM_SEQS,
            usd_per_hour=fields.take("usd_per_hour", number(least=0), 0.0),
            power=Power(full_w=full_w, prompt_share=1.0, token_share=1.0, idle_share=0.0),
        )
