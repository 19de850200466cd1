"""What `kustomize build` makes of deploy/kubernetes, as far as our files use it: pip has no kustomize."""

import functools
import re
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parents[2] / "deploy" / "kubernetes"
MERGED_BY = {
    "containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath", "ports": "containerPort",
}  # fmt: skip

Document = dict[str, Any]


@functools.cache
def build(overlay: str) -> tuple[Document, ...]:
    """What `kustomize build` would make of a directory, as far as ours use it: resources, literals, patches."""
    folder = FOLDER / overlay
    plan = documents_in(folder / "kustomization.yaml")[0]
    documents: list[Document] = []
    for name in plan["resources"]:
        documents += build(str(folder / name)) if (folder / name).is_dir() else documents_in(folder / name)
    for generator in plan.get("configMapGenerator", []):
        documents = _generated(documents, generator)
    for patch in plan.get("patches", []):
        documents = _patched(documents, documents_in(folder / patch["path"])[0], patch.get("target"))
    return tuple(documents)


def documents_in(path: Path) -> list[Document]:
    return list(yaml.safe_load_all(path.read_text()))


def _generated(documents: list[Document], generator: Document) -> list[Document]:
    data = dict(literal.split("=", 1) for literal in generator["literals"])
    new = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data}
    if generator.get("behavior") == "merge":
        return _patched(documents, new, None)
    return [*documents, new]


def _patched(documents: list[Document], patch: Document, target: Document | None) -> list[Document]:
    """`target` has patterns; without it the patch names its document."""
    wanted = target or {"kind": patch["kind"], "name": patch["metadata"]["name"]}
    meant = [
        re.fullmatch(wanted["kind"], document["kind"]) and re.fullmatch(wanted.get("name", ".*"), name_of(document))
        for document in documents
    ]
    assert any(meant), f"{wanted} is nowhere"
    change = {key: value for key, value in patch.items() if key not in ("apiVersion", "kind")}
    change["metadata"] = {key: value for key, value in patch["metadata"].items() if key != "name"}
    pairs = zip(documents, meant, strict=True)
    return [_merged(document, change) if hit else document for document, hit in pairs]


def _merged(old: Any, new: Any, field: str = "") -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _merged(old[key], value, key) if key in old else value for key, value in new.items()}
    if isinstance(old, list) and field in MERGED_BY:
        key = MERGED_BY[field]
        more = {item[key]: item for item in new}
        kept = [_merged(item, more.pop(item[key], {})) for item in old]
        return [*more.values(), *kept]
    return new


def name_of(document: Document) -> str:
    return str(document["metadata"]["name"])
