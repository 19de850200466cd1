"""Which address of this machine is meant by --bind: containers know names, and only these."""

import asyncio
import ipaddress
import socket

import psutil

from shared.errors import ConfigError
from shared.wire import address as addresses

WITHIN_S = 10.0  # a container may start before its network has learned its names
AGAIN_S = 0.2


async def own_address(text: str, *, param: str = "bind") -> str:
    """`text` is "host" or "host:port". Of the addresses behind a host name, the one that a network interface here has;
    literal addresses stay as they are. Raises ConfigError if the name has none of ours for WITHIN_S."""
    host, port = addresses.split(text)
    if host in addresses.EVERY_INTERFACE or _is_literal(host):
        return text
    loop = asyncio.get_running_loop()
    give_up_at, found = loop.time() + WITHIN_S, "is no name that can be looked up here"
    while loop.time() < give_up_at:
        try:
            named = {str(info[4][0]) for info in await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
        except OSError:
            pass
        else:
            if own := sorted(named & _own()):
                return str(addresses.join(own[0], port)) if port else own[0]
            found = f"is {', '.join(sorted(named))}, and no network interface here has such an address"
        await asyncio.sleep(AGAIN_S)
    raise ConfigError(f"--{param.replace('_', '-')} {text}: {host} {found}", param=param)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return ipaddress.ip_address(host).is_loopback if _is_literal(host) else host == "localhost"


def _is_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _own() -> set[str]:
    return {one.address.partition("%")[0] for interface in psutil.net_if_addrs().values() for one in interface}
