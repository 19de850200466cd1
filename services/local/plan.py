"""Which processes `splitmesh up` starts, and what share of the machine each gets. Pure: the machine is handed in."""

import dataclasses
import itertools
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from services.local.children import Command
from shared.errors import ConfigError
from shared.runtime.config import PREFIX, Settings, environment
from shared.runtime.core_sets import chosen, text_of

MIB, GIB = 1 << 20, 1 << 30
KV_SHARE = 0.2  # of the available memory
KV_MOST_BYTES = 4 * GIB
KV_LEAST_BYTES = 64 * MIB  # per worker
TORCH_WORKER_BYTES = 600 * MIB  # before weights and KV
PLAIN_WORKER_BYTES = 120 * MIB
WEIGHT_COPIES = 2.0  # the tensors and their prepacked form

# What keeps BLAS libraries from taking all cores in every worker.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# How often OpenMP's threads look for more to do before they sleep: some 50 to 100 us, the gaps within a layer, where
# libgomp's own choice is milliseconds. On a lent core that would be the owner's time.
SPIN = {"GOMP_SPINCOUNT": "4000"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """cores: as many may compute at a time. core_ids: on which of them this process may run; more than `cores` where
    a quota limits the time, not the place."""

    cores: int
    available_bytes: int
    core_ids: tuple[int, ...] = ()


def for_engine(settings: Settings) -> Settings:
    """The fake and paced engines serve bytes, whatever model is the default."""
    return settings if settings.engine == "hf" else dataclasses.replace(settings, model="bytes")


def workers(settings: Settings) -> int:
    return settings.prompt_workers + settings.token_workers + settings.mixed_workers


def check_roles(settings: Settings) -> None:
    """Raises ConfigError when no request could ever be served."""
    if settings.mixed_workers == 0 and (settings.prompt_workers == 0 or settings.token_workers == 0):
        raise ConfigError("nobody could serve: give --prompt-workers and --token-workers, or --mixed-workers")


def kv_bytes_per_worker(settings: Settings, machine: Machine) -> int:
    whole = settings.kv_memory or min(int(machine.available_bytes * KV_SHARE), KV_MOST_BYTES)
    return whole // workers(settings)


def check_memory(settings: Settings, machine: Machine, weights_bytes: int) -> None:
    """Raises ConfigError when the workers cannot fit; `weights_bytes` is the size of the model's files."""
    one = PLAIN_WORKER_BYTES
    if settings.engine == "hf":
        one = TORCH_WORKER_BYTES + int(WEIGHT_COPIES * weights_bytes)
    kv_bytes = kv_bytes_per_worker(settings, machine)
    needed = workers(settings) * (one + max(kv_bytes, KV_LEAST_BYTES))
    if needed > machine.available_bytes:
        raise ConfigError(
            f"not enough memory: {workers(settings)} workers need about {needed / GIB:.1f} GiB, "
            f"{machine.available_bytes / GIB:.1f} GiB are available; use fewer workers or less --kv-memory"
        )


def commands(
    settings: Settings, machine: Machine, *, redis_url: str, secret: str, base: Mapping[str, str]
) -> list[Command]:
    """All services, in the order in which they start. `base` is the environment of `up` itself."""
    settings = dataclasses.replace(settings, redis_url=redis_url, mesh_secret=secret)
    inherited = {key: value for key, value in base.items() if not key.startswith(PREFIX) or key == PREFIX + "CACHE"}
    managers = range(settings.pool_managers)
    result = [_command("pool_manager", f"pool-manager-{number}", settings, inherited) for number in managers]
    result += [_command("router", f"router-{number}", settings, inherited) for number in range(settings.routers)]
    roles = (
        ("prompt", "prompt_worker", settings.prompt_workers),
        ("token", "token_worker", settings.token_workers),
        ("mixed", "prompt_worker", settings.mixed_workers),
    )
    named = [(role, number, service) for role, service, count in roles for number in range(count)]
    for (role, number, service), cores in zip(named, core_sets(settings, machine), strict=True):
        share = dataclasses.replace(_share(settings, machine, cores), role=role)
        compute = (SPIN if share.core_board else {}) | inherited
        compute |= dict.fromkeys(THREAD_VARIABLES, str(share.threads)) | {"TOKENIZERS_PARALLELISM": "false"}
        result.append(dataclasses.replace(_command(service, f"{role}-{number}", share, compute), may_leave=True))
    result.append(_command("gateway", "gateway-0", settings, inherited))
    return result


def core_sets(settings: Settings, machine: Machine) -> list[tuple[int, ...]]:
    """The cores of each worker, in their order; empty for one that is tied to none. Raises ConfigError.

    Every core has one worker, or, with more workers than cores, every worker has one core. To ask for more threads than
    cores of one's own is to ask for all cores, for each worker. A quota of time without --cores ties nobody: others
    under a quota would tie themselves to the same cores.
    """
    count = workers(settings)
    if settings.engine != "hf" or settings.device == "cuda":
        return [()] * count
    cores = chosen(settings.cores, machine.core_ids)
    if not cores and len(machine.core_ids) <= machine.cores:
        cores = machine.core_ids
    least, more = divmod(len(cores), count)
    if not cores or (settings.threads or 0) > max(least, 1):
        return [cores] * count
    if least == 0:
        return [(cores[number % len(cores)],) for number in range(count)]
    starts = [number * least + min(number, more) for number in range(count + 1)]
    return [cores[start:end] for start, end in itertools.pairwise(starts)]


def lent_cores(settings: Settings, machine: Machine) -> tuple[int, ...]:
    """The cores that have one worker each, which may lend them to the others; none if nothing is to be lent."""
    cores = [core for own in core_sets(settings, machine) for core in own]
    lends = settings.lend_cores == "on" and workers(settings) > 1 and len(set(cores)) == len(cores)
    return tuple(cores) if lends else ()


def _share(settings: Settings, machine: Machine, cores: tuple[int, ...]) -> Settings:
    """What one worker gets of cores and memory; engines without torch size their small pages themselves."""
    sized = settings.engine == "hf" or settings.kv_memory is not None
    return dataclasses.replace(
        settings,
        cores=text_of(cores) or None,
        threads=settings.threads or len(cores) or max(1, machine.cores // workers(settings)),
        kv_memory=kv_bytes_per_worker(settings, machine) if sized else None,
    )


def _command(service: str, name: str, settings: Settings, inherited: Mapping[str, str]) -> Command:
    own = environment(dataclasses.replace(settings, name=name), service)
    return Command(
        name=name, kind=service, argv=(sys.executable, "-m", f"services.{service}"), environment={**inherited, **own}
    )
