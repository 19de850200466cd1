"""The tree is what it says: names resolve in it, services start alone, messages survive the wire, files are short."""

import importlib.util
import re
import subprocess
import sys
import types
import typing
from dataclasses import fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from shared.wire import messages
from shared.wire.codec import decode, encode

ROOT = Path(__file__).parents[2]
PACKAGES = [name for name in ("services", "shared", "loadgen") if (ROOT / name).is_dir()]
MODULES = sorted(path for name in PACKAGES for path in (ROOT / name).rglob("*.py"))
LONGEST_MODULE_LINES = 300
MESSAGES = sorted(typing.get_args(messages.Message), key=lambda cls: cls.__name__)

BLOCKED_START = """
import importlib, sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "ucxx"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Block())
importlib.import_module(sys.argv[1])
"""


@pytest.mark.parametrize("name", PACKAGES)
def test_names_resolve_inside_the_repository(name: str) -> None:
    """The package index has a `shared` and a `services`, too."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    assert Path(spec.origin) == ROOT / name / "__init__.py"


@pytest.mark.parametrize("service", ["gateway", "router", "pool_manager", "local"])
def test_it_starts_without_torch(service: str) -> None:
    started = subprocess.run(
        [sys.executable, "-c", BLOCKED_START, f"services.{service}.__main__"], cwd=ROOT, capture_output=True, text=True
    )
    assert started.returncode == 0, started.stderr


def test_every_module_is_short_and_says_what_holds() -> None:
    too_long = {
        str(path.relative_to(ROOT)): lines for path in MODULES if (lines := _lines(path)) > LONGEST_MODULE_LINES
    }
    silent = [
        str(path.relative_to(ROOT))
        for path in MODULES
        if path.name != "__init__.py" and not path.read_text().startswith('"""')
    ]
    assert (too_long, silent) == ({}, [])


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_every_message_survives_the_wire(cls: type[Any]) -> None:
    message = _sample(cls)
    assert decode(encode(message)) == message


def _sample(hint: Any) -> Any:
    """Some value of a type hint."""
    if hasattr(hint, "__supertype__"):
        return _sample(hint.__supertype__)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return _sample(next(arg for arg in typing.get_args(hint) if arg is not type(None)))
    if typing.get_origin(hint) is tuple:
        return (_sample(typing.get_args(hint)[0]),) * 2
    if isinstance(hint, type) and issubclass(hint, Enum):
        return list(hint)[-1]
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return hint(**{f.name: _sample(hints[f.name]) for f in fields(hint)})  # type: ignore[operator]
    return {str: "text", int: 7, float: 0.25, bool: True, bytes: b"\x00\xff"}[hint]


def test_every_path_of_the_readme_exists() -> None:
    paths = _tree_paths((ROOT / "README.md").read_text())
    assert len(paths) > 20
    assert [path for path in paths if not (ROOT / path).exists()] == []


def _tree_paths(text: str) -> list[str]:
    """Paths of the indented tree in a fenced block: `name` or `name/` first on its line, two spaces a level."""
    paths: list[str] = []
    for block in re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE):
        if "services/" not in block or "shared/" not in block:
            continue
        parents: list[str] = []
        for line in block.splitlines():
            entry = re.match(r"^((?: {2})*)([\w.\-]+/?)(?=\s|$)", line)
            if entry is None:
                continue
            level = len(entry[1]) // 2
            parents = [*parents[:level], entry[2]]
            paths.append("".join(parents))
    return paths


def test_the_reader_of_trees_reads_trees() -> None:
    tree = "```\nservices/   five processes\n  router/   placement\n    service.py  its loop\nshared/\n  ids.py\n```"
    assert _tree_paths(tree) == [
        "services/",
        "services/router/",
        "services/router/service.py",
        "shared/",
        "shared/ids.py",
    ]
