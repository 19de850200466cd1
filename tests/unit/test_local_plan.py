"""The plan of `splitmesh up`: which processes, with which environment and share of the machine."""

import pytest

from services.local.plan import GIB, MIB, Machine, check_memory, check_roles, commands, kv_bytes_per_worker
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
