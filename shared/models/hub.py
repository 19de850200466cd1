"""Models of the Hugging Face hub: fetched when it is reachable, found in the cache when it is not."""

import re
from pathlib import Path

from shared.errors import ConfigError
from shared.models.progress import Progress

_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_WANTED = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
_REACH_S = 5.0


def looks_like_hub_id(model: str) -> bool:
    return _ID.fullmatch(model) is not None


def snapshot(model: str, cache: Path, progress: Progress) -> Path:
    """The files of `owner/name`. Raises ConfigError in seconds when the hub is out of reach or has no such model."""
    import httpx2
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(model, cache_dir=cache, allow_patterns=_WANTED, local_files_only=True))
    except LocalEntryNotFoundError:
        progress(f"fetching {model} from the Hugging Face hub", 0, 0)
    try:
        HfApi().model_info(model, timeout=_REACH_S)
        return Path(snapshot_download(model, cache_dir=cache, allow_patterns=_WANTED))
    except HfHubHTTPError as error:
        raise ConfigError(
            f"the Hugging Face hub refused {model!r} (HTTP {error.response.status_code}): "
            "check the id, or set HF_TOKEN for a gated model",
            param="model",
        ) from error
    except (OfflineModeIsEnabled, LocalEntryNotFoundError, httpx2.HTTPError, OSError) as error:
        raise ConfigError(
            f"cannot fetch {model!r}: the Hugging Face hub is out of reach ({type(error).__name__}); "
            "connect to a network, or give --model a local directory",
            param="model",
        ) from error
