"""Addresses as text: "host:port" or "[::1]:port"; where a listener is configured, a bare host means any free port."""

from shared.errors import ConfigError
from shared.ids import Address

EVERY_INTERFACE = ("0.0.0.0", "::", "")


def split(text: str) -> tuple[str, int]:
    """(host, port); port 0 where none is given. Raises ConfigError."""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":")
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, ""
    if not port:
        return host, 0
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"{text!r} is no address: the port must be a number up to 65535", param="address")
    return host, int(port)


def without_port(text: str) -> str:
    """Any free port of the same host."""
    host, _ = split(text)
    return f"[{host}]" if ":" in host else host


def join(host: str, port: int) -> Address:
    return Address(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


def reachable(*, bind: str, advertise: str | None, port: int) -> Address:
    """The address to give to others, when a listener bound as `bind` got `port`. Raises ConfigError."""
    host, given_port = split(bind if advertise is None else advertise)
    if host in EVERY_INTERFACE:
        raise ConfigError(
            "listening on every interface needs --advertise, an address that others reach", param="advertise"
        )
    return join(host, port if advertise is None else given_port or port)
