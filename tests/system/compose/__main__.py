"""The mesh of compose.yaml on a real container engine: `python -m tests.system.compose [--only NAME ...]`.

    bash tests/system/compose/engine.sh start      (root, once: engine, base images, our images)

Every check prints what it saw. Exit code 0: all passed, 1: one failed, 77: no engine runs here, said loudly.
"""

import argparse
import functools
import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from shared.models.catalogue import resolve
from tests.support.reference import generated
from tests.system.compose.clients import MODEL, Clients, client, completed
from tests.system.compose.stack import Stack, compilers_in, engine_runs, image_sizes, packages_of

PORT, STREAMS, TOKENS = 18080, 6, 24
# While Redis is away, new requests are refused with a Retry-After; what was accepted goes on.
BROKER_AWAY = "InternalServerError: Error code: 503 - the mesh cannot take requests now"
REFUSED = "APIConnectionError: Connection error."
STOPPING = "InternalServerError: Error code: 503 - this gateway is shutting down"
URL = f"http://127.0.0.1:{PORT}"
SETTINGS = {
    "SPLITMESH_PUBLISHED_PORT": str(PORT),
    "SPLITMESH_DTYPE": "float32",  # so that tokens equal those of `generate`
    "SPLITMESH_TRANSPORT": "ucx",
    "SPLITMESH_KV_MEMORY": "512MiB",
}
IMAGES = ("splitmesh-control", "splitmesh-worker", "splitmesh-load")
PROMPTS = ("The capital of France is", "def add(a, b):", "Once upon a time, in a town by the sea, ")


def images(stack: Stack) -> None:
    """Sizes; no torch in the control image, no compiler in any."""
    for name, size in image_sizes(IMAGES).items():
        say(f"{name}: {size:,.0f} MB")
    control = packages_of("splitmesh-control")
    expect(not {"torch", "transformers", "ucxx-cu12"} & control, "the control image has no torch")
    expect("torch" in packages_of("splitmesh-worker"), "the worker image has torch")
    for name in IMAGES:
        expect(not compilers_in(name), f"{name} has no compiler")


def start(stack: Stack) -> None:
    """Everything healthy; the model lies in the volume."""
    stack.fetch_model(MODEL)
    stack.compose("up", "--detach")
    say(f"healthy after {stack.until_healthy():.0f} s: {', '.join(c.name for c in stack.containers())}")


def answers(stack: Stack) -> None:
    """The openai SDK streams through the published port, token for token what `generate` says, over UCX between
    containers."""
    with client(URL) as sdk:
        expect([model.id for model in sdk.models.list()] == [MODEL], "the model is listed")
    for prompt in PROMPTS:
        _goes_on(prompt)
    _show_links(stack)


def _show_links(stack: Stack) -> None:
    for worker in mesh()["workers"]:
        say(f"{worker['id']}: {worker['transport']} by {worker['transport_link']}, "
            f"{worker['transport_bandwidth_gb_s']:.2f} GB/s, {worker['transport_latency_ms']:.3f} ms, "
            f"links at {worker['link_address']}")  # fmt: skip
        expect(worker["transport"] == "ucx" and worker["transport_link"].startswith("tcp/eth"), "UCX over TCP")
        expect(not worker["link_address"].startswith("127."), "its address is no loopback")


def scale(stack: Stack) -> None:
    """Two prompt workers and three token workers, without a restart of the others."""
    before = {c.name: c.started for c in stack.containers()}
    stack.compose("up", "--detach", "--no-recreate", "--scale", "prompt_worker=2", "--scale", "token_worker=3")
    say(f"healthy after {stack.until_healthy():.0f} s")
    wait("5 workers are ready", lambda: sum(w["state"] == "ready" for w in mesh()["workers"]) == 5)
    expect(_unchanged(stack, before), "nothing else was restarted")
    for prompt in PROMPTS * 2:
        _goes_on(prompt)


def crashes(stack: Stack) -> None:
    """Each container killed in turn under load: the engine starts it again, the others stay, no stream that could be
    saved is lost. A gateway takes the connections of its clients along."""
    for service in ("token_worker", "prompt_worker", "router", "pool_manager", "redis", "gateway"):
        before = {c.name: c.started for c in stack.containers()}
        victim = stack.containers(service)[0]
        with Clients(URL, STREAMS) as clients:
            clients.until(STREAMS)
            clients.take()
            stack.kill(victim)
            if service == "gateway":
                stack.until_healthy()
            clients.until(2 * STREAMS, within_s=120)
            gap_s = clients.longest_gap_s
        ended = clients.take()
        back_s = stack.until_healthy()
        say(f"{victim.name} killed: streams {ended}, longest gap {gap_s:.1f} s, healthy {back_s:.0f} s later")
        if service != "gateway":
            allowed = {"done", BROKER_AWAY} if service == "redis" else {"done"}
            expect(set(ended) <= allowed, "no stream was lost")
        expect(_unchanged(stack, before, but=victim.name), "no other container was restarted")


def redis_restart(stack: Stack) -> None:
    """`docker-compose restart redis` under load."""
    before = {c.name: c.started for c in stack.containers()}
    with Clients(URL, STREAMS) as clients:
        clients.until(STREAMS)
        clients.take()
        stack.compose("restart", "redis")
        clients.until(2 * STREAMS, within_s=120)
    ended = clients.take()
    say(f"redis restarted: streams {ended}")
    expect(set(ended) <= {"done", BROKER_AWAY}, "no stream was lost")
    expect(_unchanged(stack, before, but=stack.containers("redis")[0].name), "no other container was restarted")


def any_order(stack: Stack) -> None:
    """Stopped, then started one after the other, workers first and Redis last."""
    stack.compose("stop")
    order = ("token_worker", "prompt_worker", "gateway", "pool_manager", "router", "redis")
    for service in order:
        stack.compose("start", service)
        time.sleep(1)
    say(f"started as {', '.join(order)}: healthy after {stack.until_healthy():.0f} s more")
    _goes_on(PROMPTS[0])


def load(stack: Stack) -> None:
    """The load generator as a container of the profile `load`."""
    replay = ("loadgen", "replay", "--base-url", "http://gateway:8000", "--trace", "azure-conv", "--limit", "5")
    said = stack.compose("--profile", "load", "run", "--rm", "load", *replay, "--length-scale", "0.1")
    expect("5/5 done" in said, _line(said, "5/5 done"))


def stop(stack: Stack) -> None:
    """`docker-compose stop` drains: the gateway goes first, streams that run are ended well, Redis goes last."""
    with Clients(URL, STREAMS) as clients:
        clients.until(STREAMS)
        clients.take()
        started = time.monotonic()
        stack.compose("stop")
        taken_s = time.monotonic() - started
    ended = clients.take()
    say(f"stopped in {taken_s:.1f} s: streams {ended}")
    expect(ended.get("done", 0) >= STREAMS, "streams that ran were ended well")
    expect(set(ended) <= {"done", REFUSED, STOPPING}, "new ones were refused, none was cut")
    expect(all(c.state == "exited" for c in stack.containers()), "all have ended")
    expect(not any(c.exit_code for c in stack.containers()), "by themselves, with exit code 0")


def refusals(stack: Stack) -> None:
    """What must not start says why."""
    open_ = Stack(
        f"{stack.project}-open", SETTINGS | {"SPLITMESH_PUBLISHED": "0.0.0.0", "SPLITMESH_PUBLISHED_PORT": "0"}
    )
    said = open_.compose("run", "--rm", "--no-deps", "gateway", check=False)
    expect("with the default secret" in said, _line(said, "default secret"))
    open_.compose("down", "--volumes", check=False)
    strict = Stack(stack.project, SETTINGS | {"SPLITMESH_REQUIRE_TRANSPORT": "shm"})
    strict.compose("start", "redis")
    said = strict.compose("run", "--rm", "--no-deps", "--use-aliases", "token_worker", check=False)
    expect("--require-transport shm" in said, _line(said, "--require-transport"))


def down(stack: Stack) -> None:
    """Nothing is left."""
    stack.compose("down", "--volumes", "--timeout", "30")
    expect(not stack.left_over(), f"left over: {stack.left_over() or 'nothing'}")


CHECKS: dict[str, Callable[[Stack], None]] = {
    check.__name__: check
    for check in (images, start, answers, crashes, redis_restart, scale, load, any_order, stop, refusals, down)
}


@functools.cache
def expected() -> dict[str, str]:
    """How transformers' own `generate` goes on, greedily, after each of PROMPTS."""
    from transformers import AutoTokenizer

    path = resolve(MODEL).path
    tokenizer = AutoTokenizer.from_pretrained(path)
    outputs = generated(path, [tokenizer(prompt)["input_ids"] for prompt in PROMPTS], TOKENS)
    return {p: tokenizer.decode(ids, skip_special_tokens=True) for p, ids in zip(PROMPTS, outputs, strict=True)}


def _goes_on(prompt: str) -> None:
    text = completed(URL, prompt, TOKENS)
    expect(text == expected()[prompt], f"{prompt!r} goes on as with `generate`: {text[:50]!r}")


def mesh() -> dict[str, Any]:
    with urllib.request.urlopen(f"{URL}/mesh", timeout=5) as response:
        found: dict[str, Any] = json.load(response)
    return found


def say(text: str) -> None:
    print(f"  {text}", flush=True)


def expect(held: bool, what: str) -> None:
    say(f"{'ok' if held else 'FAILED'}: {what}")
    if not held:
        raise AssertionError(what)


def wait(what: str, held: Callable[[], bool], within_s: float = 60.0) -> None:
    give_up_at = time.monotonic() + within_s
    while not held() and time.monotonic() < give_up_at:
        time.sleep(0.5)
    expect(held(), what)


def _unchanged(stack: Stack, before: dict[str, str], but: str = "") -> bool:
    """`model` runs again with every `up`, and finds that it has nothing to do."""
    stayed = [c for c in stack.containers() if c.name in before and c.name != but and c.service != "model"]
    return all(c.started == before[c.name] for c in stayed)


def _line(text: str, part: str) -> str:
    return next((line.strip() for line in text.splitlines() if part in line), text.strip()[-300:])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.compose", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME", help=", ".join(CHECKS)
    )
    parser.add_argument("--keep", action="store_true", help="leave the project running at the end")
    given = parser.parse_args(arguments)
    if not engine_runs():
        print("SKIPPED: no container engine runs here; as root: bash tests/system/compose/engine.sh start")
        return 77
    stack, failed = Stack("splitmesh-proof", SETTINGS), 0
    try:
        for name in given.only:
            print(f"{name}: {CHECKS[name].__doc__}", flush=True)
            CHECKS[name](stack)
    except (AssertionError, RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
        print(f"{stack.logs()}\nFAILED: {error}")
        failed = 1
    finally:
        if not given.keep:
            stack.take_down()
    print("failed" if failed else "all passed")
    return failed


if __name__ == "__main__":
    sys.exit(main())
