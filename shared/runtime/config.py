"""The one catalogue of options: `--kv-memory 2GiB`, `SPLITMESH_KV_MEMORY=2GiB`, or `kv-memory: 2GiB` in a file;
secrets also as `SPLITMESH_MESH_SECRET_FILE=path`, as container engines hand them over.

Precedence: command line, environment, `--config` file, default. Whatever is unknown or malformed stops the start with
one line that names the option. A service accepts only the options that concern it; `splitmesh up` accepts all.
"""

import argparse
import dataclasses
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from shared.errors import ConfigError
from shared.runtime.core_sets import core_set
from shared.runtime.parsers import nonempty, one_of, seconds, size_bytes, whole_number
from shared.wire.terms import LinkKind

PREFIX, FROM_FILE = "SPLITMESH_", "_file"

ALL = ("up", "gateway", "router", "prompt_worker", "token_worker", "pool_manager")
WORKERS = ("up", "prompt_worker", "token_worker")
UP = ("up",)


def option(
    default: Any, text: str, parse: Callable[[str], Any] = str, services: tuple[str, ...] = ALL, many: bool = False
) -> Any:
    """A catalogue line. `many` options may be repeated on the command line and are comma-separated elsewhere."""
    meta = {"help": text, "parse": parse, "services": services, "many": many}
    return field(default=default, metadata=meta)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every option there is. `None` means "not given": the service chooses and says what it chose."""

    model: str = option("smollm2-135m-instruct", "catalogue name, Hugging Face id or local directory", nonempty)
    served_model_name: str | None = option(None, "name in the API (default: the catalogue or directory name)")
    redis_url: str | None = option(None, "redis://… (default of `up`: an embedded server)")
    mesh_secret: str | None = option(None, "shared secret that authenticates links (default of `up`: a random one)")
    bind: str = option(
        "127.0.0.1", "address on which links listen, or a name of which the own address is taken", nonempty
    )
    advertise: str | None = option(None, "address under which others reach this process (default: --bind)")
    kv_bind: str | None = option(None, "the same for the KV transport (default: --bind)", nonempty, WORKERS)
    kv_advertise: str | None = option(None, "the same for the KV transport (default: --kv-bind)", nonempty, WORKERS)
    probe_port: int | None = option(
        None, "port on which a container engine may ask /health and /ready (the gateway answers both on its own)",
        whole_number(1, 65535), ("router", "prompt_worker", "token_worker", "pool_manager"),
    )  # fmt: skip
    name: str | None = option(None, "name of this process in /mesh (default: service and a number)")
    log_level: str = option("info", "debug, info, warning or error", one_of("debug", "info", "warning", "error"))
    log_format: str = option("text", "text or json", one_of("text", "json"))
    config: str | None = option(None, "YAML file with these options", services=UP)

    prompt_workers: int = option(1, "workers whose home is the prompt pool", whole_number(0), UP)
    token_workers: int = option(1, "workers whose home is the token pool", whole_number(0), UP)
    mixed_workers: int = option(0, "workers that do both phases (colocated mode)", whole_number(0), UP)
    routers: int = option(1, "routers", whole_number(1), UP)
    pool_managers: int = option(
        1, "pool managers, of which one is active (0: home roles stay as they are)", whole_number(0), UP
    )

    pools: str = option(
        "moving", "moving: home roles follow the load and pools lend workers; fixed: neither",
        one_of("moving", "fixed"), ("up", "router", "pool_manager", "gateway"),
    )  # fmt: skip
    journal: str | None = option(
        None, "directory for the journals of routers and pool managers, which `splitmesh replay` checks", nonempty,
        ("up", "router", "pool_manager"),
    )  # fmt: skip

    host: str = option("127.0.0.1", "address of the HTTP API", services=("up", "gateway"))
    port: int = option(8000, "port of the HTTP API (0: any free one)", whole_number(0, 65535), ("up", "gateway"))
    published: str | None = option(
        None, "address at which a container engine publishes the API (default: --host)", nonempty, ("gateway",)
    )  # fmt: skip
    api_key: tuple[str, ...] = option((), "accepted bearer token; repeatable", services=("up", "gateway"), many=True)
    request_timeout_s: float = option(600.0, "deadline of a request in seconds", seconds, ("up", "gateway"))

    ttft_target_s: float | None = option(
        None, "seconds to the first token that are promised: what cannot meet it is refused", seconds,
        ("up", "router", "gateway"),
    )  # fmt: skip
    tbt_target_s: float | None = option(
        None, "seconds between tokens that are promised (default of a worker: 4 of its lone decode steps)", seconds,
        ("up", "prompt_worker", "token_worker", "gateway"),
    )  # fmt: skip
    admission: str = option(
        "on", "on: what cannot meet the targets is refused; off: they only steer", one_of("on", "off"),
        ("up", "gateway"),
    )  # fmt: skip
    max_queued_tokens: int | None = option(
        None, "prompt tokens that may wait in the whole mesh: what exceeds them is refused (default: any number)",
        whole_number(1), ("up", "gateway"),
    )  # fmt: skip

    role: str | None = option(
        None, "home pool of the worker", one_of("prompt", "token", "mixed"), ("prompt_worker", "token_worker")
    )
    engine: str = option("hf", "hf (transformers), fake or paced", one_of("hf", "fake", "paced"), WORKERS)
    paced_model: str | None = option(
        None, "cost model of the paced engine: prefill_ms=a,b,c decode_ms=a,b,c", services=WORKERS
    )
    device: str = option("auto", "auto, cpu or cuda", one_of("auto", "cpu", "cuda"), WORKERS)
    dtype: str = option("auto", "auto, float32 or bfloat16", one_of("auto", "float32", "bfloat16"), WORKERS)
    quantize: str | None = option(
        None, "int8 or int4: weights in fewer bits, on CPU (default: as they are)", one_of("int8", "int4"), WORKERS
    )
    cores: str | None = option(
        None, "cores to compute on, such as 0-1,4; `up` divides them among its workers (default: all that are usable)",
        core_set, WORKERS,
    )  # fmt: skip
    threads: int | None = option(
        None, "compute threads of a worker on cores of its own (default: one for each)", whole_number(1), WORKERS
    )
    lend_cores: str = option(
        "on", "on: a worker with nothing to compute lends its cores to its neighbours; off: it does not",
        one_of("on", "off"), UP,
    )  # fmt: skip
    core_board: str | None = option(
        None, "where workers of one machine see whose cores are idle, given by `up` (default: nothing is lent)",
        nonempty, ("prompt_worker", "token_worker"),
    )  # fmt: skip
    max_model_len: int | None = option(
        None, "longest prompt plus output in tokens (default: the model's)", whole_number(1), WORKERS
    )
    max_num_seqs: int = option(64, "sequences decoded together", whole_number(1), WORKERS)
    max_num_batched_tokens: int = option(2048, "prompt tokens computed together", whole_number(1), WORKERS)
    kv_memory: int | None = option(
        None, "KV cache per machine, divided among its workers, e.g. 2GiB", size_bytes, WORKERS
    )
    block_size: int = option(16, "tokens per KV block", whole_number(1), WORKERS)
    transport: str = option("auto", "auto, ucx or tcp", one_of("auto", "ucx", "tcp"), WORKERS)
    require_transport: str | None = option(
        None,
        "tcp, shm, cuda_ipc or rdma: refuse to start over a worse link, warn of worse peers",
        one_of(*LinkKind),
        WORKERS,
    )
    push: str = option("auto", "auto, layerwise or serialized", one_of("auto", "layerwise", "serialized"), WORKERS)
    push_threshold: int | None = option(
        None,
        "prompt tokens from which KV goes layer by layer (default: measured at start)",
        whole_number(0),
        WORKERS,
    )


def parse(
    service: str, argv: Sequence[str], environ: Mapping[str, str] | None = None, *, prog: str | None = None
) -> Settings:
    """Settings of one service. Raises ConfigError; `--help` prints and exits 0."""
    environ = os.environ if environ is None else environ
    options = {f.name: f for f in dataclasses.fields(Settings) if service in f.metadata["services"]}
    given = _from_command_line(service, argv, options, prog)
    from_env = _from_environment(environ, options)
    path = given.get("config", from_env.get("config"))
    values = {**(_from_file(path, options) if path else {}), **from_env, **given}
    return Settings(**values)


def environment(settings: Settings, service: str) -> dict[str, str]:
    """The environment that makes `python -m services.<service>` start with these settings (defaults left out)."""
    result = {}
    for f in dataclasses.fields(Settings):
        value = getattr(settings, f.name)
        if service in f.metadata["services"] and value != f.default:
            result[PREFIX + f.name.upper()] = ",".join(value) if f.metadata["many"] else str(value)
    return result


def _from_command_line(
    service: str, argv: Sequence[str], options: Mapping[str, "dataclasses.Field[Any]"], prog: str | None
) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        prog=prog or f"python -m services.{service}",
        description="Start the mesh, or join it, with these options.",
        epilog=f"Each option is also an environment variable, --kv-memory for example {PREFIX}KV_MEMORY.",
        argument_default=argparse.SUPPRESS,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for name, f in options.items():
        shown = f"{f.metadata['help']} (default: {f.default})" if f.default not in (None, ()) else f.metadata["help"]
        parser.add_argument(
            "--" + name.replace("_", "-"), dest=name, help=shown.replace("%", "%%"),
            metavar=name.upper().rpartition("_")[2], action="append" if f.metadata["many"] else "store",
        )  # fmt: skip
    try:
        known, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{str(error).removeprefix('argument ')}; see {parser.prog} --help") from error
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]}; see {parser.prog} --help")
    return {
        name: tuple(text)
        if options[name].metadata["many"]
        else _parsed("--" + name.replace("_", "-"), options[name], text)
        for name, text in vars(known).items()
    }


def _from_environment(environ: Mapping[str, str], options: Mapping[str, "dataclasses.Field[Any]"]) -> dict[str, Any]:
    """Every variable is checked, and an empty one is not given; those of other services are not used."""
    every = {f.name: f for f in dataclasses.fields(Settings)}
    values = {}
    for variable, text in environ.items():
        if not variable.startswith(PREFIX) or not text:  # compose files pass on what is not set as nothing
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name == "cache":  # read by shared.cache
            continue
        if (named := name.removesuffix(FROM_FILE)) != name and named in every and named != "config":
            if environ.get(PREFIX + named.upper()):
                raise ConfigError(f"both {variable} and {PREFIX}{named.upper()} are given", param=variable)
            name, text = named, _secret(variable, text)
            if every[name].metadata["many"]:
                text = ",".join(text.splitlines())
        if name not in every:
            close = difflib.get_close_matches(variable, [PREFIX + known.upper() for known in every], n=1)
            hint = f": did you mean {close[0]}?" if close else "; splitmesh up --help lists the options"
            raise ConfigError(f"unknown environment variable {variable}{hint}", param=variable)
        value = _parsed(variable, every[name], text)
        if name in options:
            values[name] = value
    return values


def _secret(variable: str, path: str) -> str:
    """The content of a file, without the line's end: so that secrets need not lie in the environment."""
    try:
        text = Path(path).read_text().rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ConfigError(f"{variable} {path}: {reason}", param=variable) from error
    if not text.strip():
        raise ConfigError(f"{variable} {path}: the file is empty", param=variable)
    return text


def _from_file(path: str, options: Mapping[str, "dataclasses.Field[Any]"]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(f"--config {path}{where}: no YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--config {path}: expected a mapping of options")
    values = {}
    for key, value in content.items():
        name = str(key).replace("-", "_")
        if name not in options or name == "config":
            raise ConfigError(f"--config {path}: unknown option {key}; splitmesh up --help lists the options")
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        values[name] = _parsed(f"{path}: {key}", options[name], text)
    return values


def _parsed(where: str, f: "dataclasses.Field[Any]", text: str) -> Any:
    if f.metadata["many"]:
        return tuple(part for part in text.split(",") if part)
    try:
        return f.metadata["parse"](text)
    except ValueError as error:
        raise ConfigError(f"{where} {text!r}: {error}", param=where) from error
