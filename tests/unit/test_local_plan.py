"""The plan of `splitmesh up`: which processes, with which environment and share of the machine."""

import pytest

from services.local.plan import (
    GIB,
    MIB,
    Machine,
    check_memory,
    check_roles,
    commands,
    core_sets,
    kv_bytes_per_worker,
    lent_cores,
)
from shared.errors import ConfigError
from shared.runtime.config import Settings, parse

MACHINE = Machine(cores=8, available_bytes=10 * GIB)


def planned(**options: object) -> dict[str, dict[str, str]]:
    settings = Settings(**options)  # type: ignore[arg-type]
    base = {"PATH": "/bin", "SPLITMESH_CACHE": "/cache", "SPLITMESH_PROMPT_WORKERS": "9"}
    made = commands(settings, MACHINE, redis_url="redis://:pw@h", secret="s3cret", base=base)
    return {command.name: dict(command.environment) for command in made}


def test_one_of_each_by_default() -> None:
    assert list(planned()) == ["pool-manager-0", "router-0", "prompt-0", "token-0", "gateway-0"]


def test_as_many_as_asked_for() -> None:
    names = list(planned(pool_managers=2, routers=2, prompt_workers=0, token_workers=0, mixed_workers=2))
    assert names == ["pool-manager-0", "pool-manager-1", "router-0", "router-1", "mixed-0", "mixed-1", "gateway-0"]


def test_secrets_are_in_the_environment_and_never_on_a_command_line() -> None:
    made = commands(Settings(api_key=("key",)), MACHINE, redis_url="redis://:pw@h", secret="s3cret", base={})
    for command in made:
        assert not any(secret in part for part in command.argv for secret in ("pw", "s3cret", "key"))
        assert command.environment["SPLITMESH_MESH_SECRET"] == "s3cret"
        assert "s3cret" not in repr(command)


def test_every_service_accepts_its_environment() -> None:
    made = commands(Settings(), MACHINE, redis_url="redis://:pw@h", secret="s", base={"SPLITMESH_CACHE": "/c"})
    for command in made:
        settings = parse(command.kind, [], command.environment)
        assert settings.name == command.name
        assert settings.redis_url == "redis://:pw@h"


def test_the_settings_of_up_are_not_inherited_but_the_cache_and_the_path_are() -> None:
    gateway = planned()["gateway-0"]
    assert gateway["SPLITMESH_CACHE"] == "/cache" and gateway["PATH"] == "/bin"
    assert "SPLITMESH_PROMPT_WORKERS" not in gateway


def test_cores_and_kv_memory_are_divided_among_the_workers() -> None:
    token = planned(prompt_workers=1, token_workers=3, kv_memory=2 * GIB)["token-2"]
    assert token["SPLITMESH_THREADS"] == token["OMP_NUM_THREADS"] == "2"
    assert token["SPLITMESH_KV_MEMORY"] == str(GIB // 2)
    assert token["SPLITMESH_ROLE"] == "token"
    assert planned(prompt_workers=20)["prompt-0"]["SPLITMESH_THREADS"] == "1"
    assert planned(threads=5)["prompt-0"]["OMP_NUM_THREADS"] == "5"


def machine(cores: int, *, quota: int | None = None) -> Machine:
    return Machine(cores=quota or cores, core_ids=tuple(range(cores)), available_bytes=10 * GIB)


@pytest.mark.parametrize(
    ("cores", "options", "sets"),
    [
        (2, {}, ["0", "1"]),
        (5, {}, ["0-2", "3-4"]),
        (8, {"token_workers": 2}, ["0-2", "3-5", "6-7"]),
        (2, {"mixed_workers": 1, "prompt_workers": 0, "token_workers": 0}, ["0-1"]),
        (2, {"prompt_workers": 2, "token_workers": 3}, ["0", "1", "0", "1", "0"]),
        (8, {"cores": "1,4-6"}, ["1,4", "5-6"]),
        (8, {"cores": ""}, ["0-3", "4-7"]),
        (2, {"threads": 1}, ["0", "1"]),
        (2, {"threads": 2}, ["0-1", "0-1"]),
    ],
)
def test_every_worker_has_cores_of_its_own_where_there_are_enough(
    cores: int, options: dict[str, object], sets: list[str]
) -> None:
    settings = Settings(**options)  # type: ignore[arg-type]
    made = commands(settings, machine(cores), redis_url="", secret="", base={})
    workers = [command.environment for command in made if command.kind.endswith("_worker")]
    assert [worker["SPLITMESH_CORES"] for worker in workers] == sets
    sizes = [str(settings.threads or len(own)) for own in core_sets(settings, machine(cores))]
    assert [worker["SPLITMESH_THREADS"] for worker in workers] == sizes
    assert [worker["OMP_NUM_THREADS"] for worker in workers] == sizes


@pytest.mark.parametrize(
    ("options", "lent"),
    [
        ({}, (0, 1, 2, 3)),
        ({"cores": "2-3"}, (2, 3)),
        ({"lend_cores": "off"}, ()),
        ({"prompt_workers": 4}, ()),
        ({"threads": 3}, ()),
        ({"threads": 1}, (0, 1, 2, 3)),
        ({"prompt_workers": 0, "token_workers": 0, "mixed_workers": 1}, ()),
        ({"engine": "paced"}, ()),
        ({"device": "cuda"}, ()),
    ],
)
def test_cores_are_lent_between_workers_that_have_their_own(options: dict[str, object], lent: tuple[int, ...]) -> None:
    assert lent_cores(Settings(**options), machine(4)) == lent  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"engine": "fake", "cores": "77"}, {"engine": "paced"}, {"device": "cuda"}])
def test_an_engine_that_takes_no_cores_is_tied_to_none(options: dict[str, object]) -> None:
    made = commands(Settings(**options), machine(4), redis_url="", secret="", base={})  # type: ignore[arg-type]
    for command in made:
        assert "SPLITMESH_CORES" not in command.environment
    assert [c.environment["SPLITMESH_THREADS"] for c in made if c.kind == "token_worker"] == ["2"]


def test_a_quota_ties_nobody_unless_cores_are_named() -> None:
    limited = machine(64, quota=4)
    assert core_sets(Settings(), limited) == [(), ()]
    assert core_sets(Settings(cores="8-11"), limited) == [(8, 9), (10, 11)]


def test_cores_that_the_machine_lacks_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^--cores 0-4: this process cannot use core 2 \(it may use 0-1\)$"):
        core_sets(Settings(cores="0-4"), machine(2))


def test_only_workers_are_told_of_the_board_and_spin_briefly_then() -> None:
    def environments(board: str | None, base: dict[str, str]) -> dict[str, dict[str, str]]:
        made = commands(Settings(core_board=board), machine(2), redis_url="", secret="", base=base)
        return {command.name: dict(command.environment) for command in made}

    lending = environments("/proc/1/fd/9", {})
    for name, environment in lending.items():
        told = name in ("prompt-0", "token-0")
        assert (environment.get("SPLITMESH_CORE_BOARD") == "/proc/1/fd/9") is told
        assert ("GOMP_SPINCOUNT" in environment) is told
    assert "GOMP_SPINCOUNT" not in environments(None, {})["token-0"]
    assert environments("/b", {"GOMP_SPINCOUNT": "7"})["token-0"]["GOMP_SPINCOUNT"] == "7", "the user's word"


def test_kv_memory_is_a_share_of_what_is_available_up_to_a_limit() -> None:
    assert kv_bytes_per_worker(Settings(), MACHINE) == GIB
    assert kv_bytes_per_worker(Settings(), Machine(cores=8, available_bytes=1000 * GIB)) == 2 * GIB


def test_a_mixed_worker_is_a_prompt_worker_with_another_role() -> None:
    made = commands(Settings(mixed_workers=1), MACHINE, redis_url="", secret="", base={})
    (mixed,) = [command for command in made if command.name == "mixed-0"]
    assert mixed.argv[-1] == "services.prompt_worker"
    assert mixed.environment["SPLITMESH_ROLE"] == "mixed"


def test_too_little_memory_is_said() -> None:
    with pytest.raises(ConfigError, match=r"not enough memory: 4 workers need about 9\.2 GiB, 2\.0 GiB are available"):
        check_memory(
            Settings(prompt_workers=2, token_workers=2, kv_memory=3 * GIB), Machine(cores=2, available_bytes=2 * GIB),
            weights_bytes=500 * MIB,
        )  # fmt: skip
    check_memory(Settings(), MACHINE, weights_bytes=500 * MIB)


@pytest.mark.parametrize("roles", [{"prompt_workers": 0}, {"token_workers": 0}])
def test_a_mesh_that_could_serve_nobody_is_refused(roles: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="nobody could serve"):
        check_roles(Settings(**roles))  # type: ignore[arg-type]
    check_roles(Settings(**roles, mixed_workers=1))  # type: ignore[arg-type]
