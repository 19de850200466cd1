"""The machines of the papers, by model: DGX-A100, DGX-H100 and DGX-H100 at capped power, each one replica on 8 GPUs.

`figures/hardware.yaml` holds what is known of models and machines, with its sources; `figures/speeds.json` what
loadgen.sim.fitting makes of Splitwise's table of measurements, with the errors of each fit. Of that

    a simulated machine takes   the measured prompt times, interpolated (MeasuredSpeed), and the fitted decode times
    its policies believe        the fitted Costs, whose prompt part holds up to the knee at 2,048 tokens of a step

just as a live worker has a true speed and a fit of it. Beyond the knee, where no step of ours goes, the fit is up to
60 % too fast, as speeds.json says; batches above 64 sequences are extrapolated.
"""

import dataclasses
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import orjson
import yaml

from loadgen.measure.splitwise import IdleSpeed
from loadgen.sim.speeds import MeasuredSpeed, PublishedSpeed, Speed
from shared.wire.costs import CostFit, Costs

REFERENCE_MACHINE = "dgx-a100"  # Splitwise's slow-downs are against a request alone on this one
REFERENCE_CONTEXT = 1024  # tokens, of that request while it decodes

Facts = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Power:
    """Of a machine: watts at full power, and the share of it that each kind of work draws."""

    full_w: float
    prompt_share: float
    token_share: float
    idle_share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineProfile:
    """`kv_tokens` is what the memory holds beside the weights. published_*: as the simulator of Splitwise counts."""

    model: str
    type: str
    speed: MeasuredSpeed
    fit: CostFit
    kv_tokens: int
    kv_bytes_per_token: int
    layers: int
    link_gbps: float
    exposed_s: float
    usd_per_hour: float
    power: Power
    published_speed: PublishedSpeed
    published_fit: CostFit
    published_kv_tokens: int
    published_kv_bytes_per_token: int


def models() -> tuple[str, ...]:
    return tuple(hardware()["models"])


def machine_types() -> tuple[str, ...]:
    return tuple(hardware()["machines"])


@cache
def profile(model: str, machine_type: str) -> MachineProfile:
    """Of one of models() and one of machine_types()."""
    known = hardware()
    facts, machine = known["models"][model], known["machines"][machine_type]
    measured = _measured(model, machine["hardware"])
    costs = Costs(prefill_ms=tuple(measured["prefill_ms"]), decode_ms=tuple(measured["decode_ms"]))
    knots = measured["knots"]
    published = PublishedSpeed(knots["tokens"], knots["prompt_ms"], knots["token_ms"])
    fit = CostFit(
        costs=costs,
        prefill_error=measured["errors"]["prefill_to_knee"]["mean"],
        decode_error=measured["errors"]["decode"]["mean"],
        prefill_steps=measured["rows"],
        decode_steps=measured["rows"],
    )
    return MachineProfile(
        model=model,
        type=machine_type,
        speed=MeasuredSpeed(knots["tokens"], knots["squares"], knots["prompt_ms"], costs),
        fit=fit,
        kv_tokens=_kv_tokens(machine, facts, known["memory_share"], facts["kv_bytes_per_token"]),
        kv_bytes_per_token=facts["kv_bytes_per_token"],
        layers=facts["layers"],
        link_gbps=machine["link_gbps"],
        exposed_s=machine["exposed_ms"] / 1000,
        usd_per_hour=machine["usd_per_hour"],
        power=_power(model, machine_type),
        published_speed=published,
        published_fit=dataclasses.replace(fit, costs=_published_costs(costs, published), decode_error=0.0),
        published_kv_tokens=_kv_tokens(machine, facts, 1.0, facts["published_kv_bytes_per_token"]),
        published_kv_bytes_per_token=facts["published_kv_bytes_per_token"],
    )


def idle_speed(model: str, *, published: bool) -> IdleSpeed:
    """Of a request that has a DGX-A100 to itself. The published simulator looks its time between tokens up by the
    length of the prompt."""
    alone = profile(model, REFERENCE_MACHINE)
    speed: Speed = alone.published_speed if published else alone.speed
    lengths = _measured(model, hardware()["machines"][REFERENCE_MACHINE]["hardware"])["knots"]["tokens"]
    return IdleSpeed(
        ttft_s=tuple((tokens, speed.step_s(tokens, tokens * tokens, 0, 0)) for tokens in lengths),
        tbt_s=speed.decode_s(0, REFERENCE_CONTEXT) if published else speed.decode_s(REFERENCE_CONTEXT, 1),
    )


@cache
def hardware() -> Facts:
    facts: Facts = yaml.safe_load(_figures("hardware.yaml"))
    return facts


@cache
def _speeds() -> Facts:
    speeds: Facts = orjson.loads(_figures("speeds.json"))
    return speeds


def _figures(name: str) -> bytes:
    return (resources.files("loadgen.sim") / "figures" / name).read_bytes()


def _measured(model: str, name: str) -> Facts:
    found: Facts = next(s for s in _speeds()["speeds"] if (s["model"], s["hardware"]) == (model, name))
    return found


def _published_costs(costs: Costs, speed: PublishedSpeed) -> Costs:
    """What a worker would fit to such decodes: next to nothing a sequence, or less, which is taken for nothing."""
    one_ms, many_ms = speed.decode_s(0, 1) * 1000, speed.decode_s(0, 65) * 1000
    return Costs(prefill_ms=costs.prefill_ms, decode_ms=(one_ms, 0.0, max(0.0, (many_ms - one_ms) / 64)))


def _kv_tokens(machine: Facts, facts: Facts, memory_share: float, bytes_per_token: int) -> int:
    return int((machine["hbm_bytes"] * memory_share - facts["weight_bytes"]) // bytes_per_token)


def _power(model: str, machine_type: str) -> Power:
    """Only the A100's power was measured by phase, as a share of its GPUs' limit; the others are taken to draw the same
    share. A cap slows prompts down to it; decodes stay below it and draw what they did."""
    known = hardware()
    machine = known["machines"][machine_type]
    shares = _measured(model, known["machines"][REFERENCE_MACHINE]["hardware"])["power_share"]
    uncapped_kw = known["machines"][machine.get("uncapped", machine_type)]["power_kw"]
    return Power(
        full_w=machine["power_kw"] * 1000,
        prompt_share=min(1.0, shares["prompt"]),
        token_share=min(1.0, shares["token"] * uncapped_kw / machine["power_kw"]),
        idle_share=known["idle_power_share"],
    )
