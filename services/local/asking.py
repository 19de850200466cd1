"""How the small commands speak to a gateway: one call, one answer, and one line when something is wrong."""

import json
import os
import urllib.error
import urllib.request
from typing import Any

from shared.errors import ConfigError
from shared.runtime.options import Options

ANSWER_WITHIN_S = 3.0
KEY_VARIABLE = "SPLITMESH_API_KEY"


class Gateway:
    """Raises ConfigError where nothing answers, or where it says no: with its own words."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"content-type": "application/json"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    def text(self, path: str, body: dict[str, Any] | None = None) -> str:
        """The JSON that it answers, unchanged. With a `body`, it is posted."""
        url = self._url + path
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(url, data, self._headers)
            with urllib.request.urlopen(request, timeout=ANSWER_WITHIN_S) as answer:
                raw: bytes = answer.read()
                json.loads(raw)
                return raw.decode()
        except urllib.error.HTTPError as error:
            raise ConfigError(_words(error) or f"{url} answers {error.code} {error.reason}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ConfigError(f"no mesh answers at {url}: {reason}; is `splitmesh up` running?") from error

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self.text(path, body))


def add_gateway_options(options: Options) -> None:
    options.add_argument("--url", default="http://127.0.0.1:8000", help="address of a gateway (default: %(default)s)")


def add_key_option(options: Options) -> None:
    first = os.environ.get(KEY_VARIABLE, "").split(",")[0] or None
    options.add_argument("--api-key", default=first, help=f"key of the API (default: the first of {KEY_VARIABLE})")


def _words(error: urllib.error.HTTPError) -> str | None:
    """What the gateway itself says of an error."""
    try:
        message = json.loads(error.read())["error"]["message"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(message)
