"""The catalogue of options: precedence, complaints, and the environment of a child."""

from pathlib import Path

import pytest

from shared.errors import ConfigError
from shared.runtime.config import environment, parse, size_bytes


def test_the_command_line_wins_over_environment_over_file_over_default(tmp_path: Path) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text("port: 1\nhost: from-file\nblock-size: 8\napi_key: [a, b]\n")
    env = {"SPLITMESH_HOST": "from-env", "SPLITMESH_PORT": "2"}
    settings = parse("up", ["--port", "3", "--config", str(file)], env)
    assert (settings.port, settings.host, settings.block_size, settings.max_num_seqs) == (3, "from-env", 8, 64)
    assert settings.api_key == ("a", "b")


def test_secrets_come_from_files_too(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("of its own\n")
    assert parse("gateway", [], {"SPLITMESH_MESH_SECRET_FILE": str(file)}).mesh_secret == "of its own"
    assert (
        parse("gateway", ["--mesh-secret", "given"], {"SPLITMESH_MESH_SECRET_FILE": str(file)}).mesh_secret == "given"
    )


def test_a_secret_is_given_once_and_is_not_empty(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("one\ntwo\n")
    assert parse("gateway", [], {"SPLITMESH_API_KEY_FILE": str(file)}).api_key == ("one", "two")
    with pytest.raises(ConfigError, match="both SPLITMESH_MESH_SECRET_FILE and SPLITMESH_MESH_SECRET are given"):
        parse("gateway", [], {"SPLITMESH_MESH_SECRET_FILE": str(file), "SPLITMESH_MESH_SECRET": "another"})
    file.write_text("\n")
    with pytest.raises(ConfigError, match=r"SPLITMESH_API_KEY_FILE .*: the file is empty"):
        parse("gateway", [], {"SPLITMESH_API_KEY_FILE": str(file)})
    with pytest.raises(ConfigError, match="unknown environment variable SPLITMESH_CONFIG_FILE"):
        parse("up", [], {"SPLITMESH_CONFIG_FILE": str(file)})


def test_an_empty_variable_is_not_given() -> None:
    assert parse("token_worker", [], {"SPLITMESH_QUANTIZE": "", "SPLITMESH_KV_MEMORY": ""}).quantize is None


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512MiB", 512 << 20),
        ("2GB", 2 * 10**9),
        ("1.5GiB", 3 << 29),
        ("1073741824", 1 << 30),
        ("4K", 4096),
        ("2g", 2 << 30),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize(
    ("service", "arguments", "env", "complaint"),
    [
        ("up", ["--colour", "red"], {}, "unknown option --colour"),
        ("up", ["--port"], {}, "--port: expected"),
        ("up", ["--port", "70000"], {}, "--port '70000': give a whole number from 0 to 65535"),
        ("up", ["--routers", "0"], {}, "--routers '0': give a whole number from 1"),
        ("up", ["--kv-memory", "plenty"], {}, "--kv-memory 'plenty': give a size such as 512MiB"),
        ("up", ["--cores", "0-"], {}, "--cores '0-': give cores such as 0-1,4"),
        ("token_worker", [], {"SPLITMESH_CORES": "two"}, "SPLITMESH_CORES 'two': give cores such as 0-1,4"),
        ("up", ["--lend-cores", "maybe"], {}, "--lend-cores 'maybe': give one of on, off"),
        ("up", ["--core-board", "/b"], {}, "unknown option --core-board"),
        ("up", ["--engine", "steam"], {}, "give one of hf, fake, paced"),
        ("up", ["--prompt", "3"], {}, "unknown option --prompt"),
        ("router", ["--port", "1"], {}, "unknown option --port"),
        ("up", [], {"SPLITMESH_COLOUR": "red"}, "unknown environment variable SPLITMESH_COLOUR"),
        ("up", [], {"SPLITMESH_MESH_SECRET_FILE": "/nowhere"}, "SPLITMESH_MESH_SECRET_FILE /nowhere: No such file"),
        ("up", [], {"SPLITMESH_CONFIG_FOLDER_FILE": "/x"}, "unknown environment variable SPLITMESH_CONFIG_FOLDER_FILE"),
        ("router", ["--probe-port", "0"], {}, "--probe-port '0': give a whole number from 1"),
        ("token_worker", ["--require-transport", "pigeon"], {}, "give one of tcp, shm, cuda_ipc, rdma"),
        ("up", [], {"SPLITMESH_PORT": "x"}, "SPLITMESH_PORT 'x': give a whole number"),
        ("up", ["--config", "/nowhere.yaml"], {}, "--config /nowhere.yaml: "),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(service: str, arguments: list[str], env: dict[str, str], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(service, arguments, env)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a list", "colour: red", "port: [", "port: many"])
def test_a_wrong_file_is_named(tmp_path: Path, content: str) -> None:
    file = tmp_path / "mesh.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"mesh\.yaml"):
        parse("up", ["--config", str(file)], {})


def test_api_keys_are_repeatable_and_comma_separated_in_the_environment() -> None:
    assert parse("up", ["--api-key", "a", "--api-key", "b"], {}).api_key == ("a", "b")
    assert parse("gateway", [], {"SPLITMESH_API_KEY": "a,b"}).api_key == ("a", "b")


def test_options_of_other_services_in_the_environment_are_no_mistake() -> None:
    assert parse("router", [], {"SPLITMESH_PORT": "1", "SPLITMESH_CACHE": "/c"}).model


@pytest.mark.parametrize("service", ["gateway", "router", "prompt_worker", "token_worker", "pool_manager"])
def test_a_child_reads_back_what_its_parent_meant(service: str) -> None:
    arguments = ["--api-key", "a", "--api-key", "b", "--kv-memory", "1GiB", "--port", "0", "--request-timeout-s", "1.5"]
    parent = parse("up", [*arguments, "--max-num-seqs", "3", "--redis-url", "redis://h", "--model", "m"], {})
    variables = environment(parent, service)
    child = parse(service, [], variables)
    assert environment(child, service) == variables
    assert (child.redis_url, child.model) == ("redis://h", "m")
