"""Where this machine keeps what can be made again: models, compiled kernels."""

import os
from pathlib import Path


def default_cache() -> Path:
    """`SPLITMESH_CACHE`, or ~/.cache/splitmesh."""
    given = os.environ.get("SPLITMESH_CACHE")
    return Path(given).expanduser() if given else Path.home() / ".cache" / "splitmesh"
