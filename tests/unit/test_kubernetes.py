"""deploy/kubernetes: valid for Kubernetes, hardened, complete, and of options and metrics that exist."""

import re
from collections.abc import Iterator
from pathlib import Path

import kubernetes_validate
import pytest

from services.gateway.mesh import Mesh
from services.gateway.metrics import Metrics
from shared.runtime.config import Settings, parse
from tests.support.kustomize import FOLDER, Document, build, documents_in, name_of

VERSIONS = ("1.25", "1.37")  # of Kubernetes: the oldest that is promised, and the latest that there are schemas of
SECRETS = "/run/secrets/splitmesh"
POD = {"status.podIP": "10.1.2.3", "metadata.name": "a-pod"}
both = pytest.mark.parametrize("overlay", ["base", "gpu"])


def _of(overlay: str, *kinds: str) -> dict[str, Document]:
    return {name_of(document): document for document in build(overlay) if document["kind"] in kinds}


def _workloads(overlay: str) -> dict[str, Document]:
    return _of(overlay, "Deployment", "StatefulSet", "Job")


def _pods(overlay: str) -> dict[str, Document]:
    return {name: workload["spec"]["template"] for name, workload in _workloads(overlay).items()}


def _containers(overlay: str) -> Iterator[tuple[str, Document]]:
    for name, pod in _pods(overlay).items():
        assert len(pod["spec"]["containers"]) == 1 and "initContainers" not in pod["spec"], name
        yield name, pod["spec"]["containers"][0]


def _found(selector: Document, overlay: str) -> set[str]:
    """Names of the workloads whose pods have these labels."""
    assert set(selector) <= {"matchLabels"}
    wanted = selector.get("matchLabels", {}).items()
    return {name for name, pod in _pods(overlay).items() if wanted <= pod["metadata"]["labels"].items()}


def test_every_file_belongs_to_a_kustomization() -> None:
    for overlay in ("base", "gpu"):
        plan = documents_in(FOLDER / overlay / "kustomization.yaml")[0]
        named = {"kustomization.yaml", *plan["resources"], *(patch["path"] for patch in plan["patches"])} - {"../base"}
        there = {str(path.relative_to(FOLDER / overlay)) for path in (FOLDER / overlay).rglob("*.yaml")}
        assert there == named


@both
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(overlay: str, version: str) -> None:
    for document in build(overlay):
        kubernetes_validate.validate(document, version, strict=True)


@both
def test_nothing_is_there_twice_and_what_is_referred_to_is_there(overlay: str) -> None:
    known = [(document["kind"], name_of(document)) for document in build(overlay)]
    assert len(known) == len(set(known))
    claims, maps = _of(overlay, "PersistentVolumeClaim"), _of(overlay, "ConfigMap")
    for name, workload in _workloads(overlay).items():
        pod, container = workload["spec"]["template"]["spec"], workload["spec"]["template"]["spec"]["containers"][0]
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        templates = {name_of(claim) for claim in workload["spec"].get("volumeClaimTemplates", [])}
        assert {mount["name"] for mount in container["volumeMounts"]} == {*volumes, *templates}, name
        assert {v["persistentVolumeClaim"]["claimName"] for v in volumes.values() if "persistentVolumeClaim" in v} <= {
            *claims
        }
        assert {source["configMapRef"]["name"] for source in container.get("envFrom", [])} <= {*maps}
    for scaler in _of(overlay, "HorizontalPodAutoscaler").values():
        target = _of(overlay, "Deployment")[scaler["spec"]["scaleTargetRef"]["name"]]
        assert "replicas" not in target["spec"], "the autoscaler's number would be undone by each apply"


@both
def test_selectors_find_pods(overlay: str) -> None:
    for name, workload in _of(overlay, "Deployment", "StatefulSet").items():
        assert _found(workload["spec"]["selector"], overlay) == {name}
    for name, document in _of(overlay, "PodDisruptionBudget").items():
        assert _found(document["spec"]["selector"], overlay) == {name}
    for name, service in _of(overlay, "Service").items():
        assert _found({"matchLabels": service["spec"]["selector"]}, overlay) == {name}


def _doors(overlay: str) -> Iterator[tuple[set[str], set[str], int | None]]:
    """(who may be called, by whom, on which port): no callers named means anybody, no port named any port."""
    for policy in _of(overlay, "NetworkPolicy").values():
        for rule in policy["spec"].get("ingress", []):
            callers = [_found(peer["podSelector"], overlay) for peer in rule.get("from", [])]
            for port in rule.get("ports", [{"port": None}]):
                yield _found(policy["spec"]["podSelector"], overlay), set().union(*callers), port["port"]


@both
def test_the_network_lets_through_what_is_needed_and_no_more(overlay: str) -> None:
    policies = {name: policy["spec"] for name, policy in _of(overlay, "NetworkPolicy").items()}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    workers = {"prompt-worker", "token-worker"}
    members = {"gateway", "router", "pool-manager"} | workers
    doors, expected = list(_doors(overlay)), [
        ({"gateway"}, set(), 8000), ({"redis"}, members, 6379), (members, members, 7000), (workers, workers, None),
    ]  # fmt: skip
    assert len(doors) == len(expected) and all(door in expected for door in doors)
    anywhere = {name for name, spec in policies.items() if {} in spec.get("egress", [])}
    assert anywhere == {"model"} == _found(policies["model"]["podSelector"], overlay)


@both
def test_pods_may_do_nothing_that_they_need_not(overlay: str) -> None:
    for name, pod in _pods(overlay).items():
        spec, container = pod["spec"], pod["spec"]["containers"][0]
        assert (
            spec["securityContext"].items()
            >= {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}.items()
        )
        assert spec["securityContext"]["runAsUser"] == (999 if name == "redis" else 10001)
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False, "a Service splitmesh-… would become an unknown option"
        shares_host = overlay == "gpu" and name.endswith("-worker")
        assert (spec.get("hostIPC", False), spec.get("hostPID", False)) == (shares_host, shares_host)
        assert "hostNetwork" not in spec
        assert spec["terminationGracePeriodSeconds"] == 30


@both
def test_containers_are_bounded_and_probed(overlay: str) -> None:
    for name, container in _containers(overlay):
        for amounts in container["resources"].values():
            assert {"cpu", "memory"} <= set(amounts), name
        assert set(container["resources"]) == {"requests", "limits"}, name
        probes = {key: container[key] for key in container if key.endswith("Probe")}
        assert {"readinessProbe", "livenessProbe"} <= set(probes) or name == "model", name
        ports = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
        asked = {(p["httpGet"]["path"], ports[p["httpGet"]["port"]]) for p in probes.values() if "httpGet" in p}
        if container["image"] != "redis" and name != "model":
            port = 8000 if name == "gateway" else 9000
            assert asked == {("/ready", port), ("/health", port)}, name
            assert probes["readinessProbe"]["httpGet"]["path"] == "/ready"
            assert ("startupProbe" in probes) == (name in ("gateway", "prompt-worker", "token-worker"))


def _environment(container: Document, overlay: str, secrets: Path) -> dict[str, str]:
    """Of the process in the pod POD, with its secrets below `secrets`."""
    result: dict[str, str] = {}
    for source in container.get("envFrom", []):
        result |= _of(overlay, "ConfigMap")[source["configMapRef"]["name"]]["data"]
    for variable in container.get("env", []):
        match variable:
            case {"value": str(text)}:  # what it refers to must stand before it
                text = re.sub(r"\$\((\w+)\)", lambda found: result[found[1]], text)
            case {"valueFrom": {"fieldRef": {"fieldPath": path}}}:
                text = POD[path]
            case {"valueFrom": {"resourceFieldRef": {"resource": resource}}}:
                text = container["resources"][resource.split(".")[0]][resource.split(".")[1]]
            case _:
                raise AssertionError(f"no value: {variable}")
        result[variable["name"]] = text.replace(SECRETS, str(secrets))
    return result


@both
def test_every_service_takes_its_options(overlay: str, tmp_path: Path) -> None:
    for key in _documented_secrets():
        (tmp_path / key).write_text(f"the {key}\n")
    started: dict[str, Settings] = {}
    for name, container in _containers(overlay):
        if name not in ("redis", "model"):
            (module,) = container["args"]
            environment = _environment(container, overlay, tmp_path)
            started[name] = parse(module.removeprefix("services."), [], environment)
    assert len(started) == 5
    for settings in started.values():
        assert (settings.redis_url, settings.mesh_secret) == ("the redis-url", "the mesh-secret")
        assert (settings.name, settings.bind) == ("a-pod", "10.1.2.3:7000")
    assert started["gateway"].api_key == ("the api-key",) and started["gateway"].port == 8000
    for name in ("prompt-worker", "token-worker"):
        cpu = _pods(overlay)[name]["spec"]["containers"][0]["resources"]["requests"]["cpu"]
        assert (started[name].kv_bind, started[name].probe_port, started[name].threads) == ("10.1.2.3", 9000, int(cpu))
        wanted = "cuda" if overlay == "gpu" else "auto"
        assert started[name].device == wanted


def test_the_model_is_fetched_into_what_the_others_read(tmp_path: Path) -> None:
    pods = _pods("base")
    job = pods["model"]["spec"]["containers"][0]
    environment = _environment(job, "base", tmp_path)
    assert job["args"][:3] == ["services.local", "models", "--fetch"] and environment["SPLITMESH_MODEL"]
    assert environment["HF_HUB_OFFLINE"] == "0"
    for name in ("model", "gateway", "prompt-worker", "token-worker"):
        mounts = {mount["name"]: mount for mount in pods[name]["spec"]["containers"][0]["volumeMounts"]}
        assert mounts["model"]["mountPath"] == environment["SPLITMESH_CACHE"]
        assert mounts["model"].get("readOnly", False) == (name != "model")


def _documented_secrets() -> set[str]:
    return set(re.findall(r"--from-literal=([\w-]+)=", (FOLDER / "base" / "kustomization.yaml").read_text()))


def test_the_secret_that_is_asked_for_is_the_one_that_is_used() -> None:
    text = "".join(path.read_text() for path in FOLDER.rglob("*.yaml"))
    used = re.findall(rf"{SECRETS}/([\w-]+)", text) + re.findall(
        r"secretKeyRef: \{name: splitmesh, key: ([\w-]+)\}", text
    )
    assert set(used) == _documented_secrets()


def test_every_image_can_be_replaced() -> None:
    plans = {overlay: documents_in(FOLDER / overlay / "kustomization.yaml")[0] for overlay in ("base", "gpu")}
    images = {container["image"] for _, container in _containers("base")}
    assert {image["name"] for image in plans["base"]["images"]} == images
    assert {image["name"] for image in plans["gpu"]["images"]} <= images


def test_workers_of_the_overlay_have_a_gpu_each() -> None:
    for name, container in _containers("gpu"):
        gpus = container["resources"]["limits"].get("nvidia.com/gpu", 0)
        assert gpus == (1 if name.endswith("-worker") else 0), name


@both
def test_the_autoscalers_count_what_the_gateways_export(overlay: str) -> None:
    exported = set(re.findall(r"# TYPE (\w+)", Metrics(Mesh("m")).text().decode()))
    rules = documents_in(FOLDER / "prometheus-adapter-rules.yaml")[0]["externalRules"]
    offered = {str(rule["seriesQuery"]).partition("{")[0] for rule in rules}
    scalers = _of(overlay, "HorizontalPodAutoscaler").values()
    used = {m["external"]["metric"]["name"] for scaler in scalers for m in scaler["spec"]["metrics"]}
    assert used == offered and offered <= exported
    annotations = _pods(overlay)["gateway"]["metadata"]["annotations"]
    assert annotations["prometheus.io/port"] == "8000" and annotations["prometheus.io/path"] == "/metrics"
