"""Which ways UCX chose for an endpoint: asked of the library itself, since UCXX has no call for it."""

import ctypes
from functools import cache
from typing import Any

from shared.transport.port import Route
from shared.wire.terms import LinkKind

_NAME_BYTES, _SOCKADDR_BYTES, _MOST = 32, 128, 16
_TRANSPORTS = 1 << 3  # UCP_EP_ATTR_FIELD_TRANSPORTS
_SHARED = ("posix", "sysv", "cma", "knem", "xpmem")
_RDMA = ("rc", "dc", "ud", "srd", "gga")  # rc_mlx5, rc_verbs, ...


class _Entry(ctypes.Structure):
    _fields_ = (("transport", ctypes.c_char_p), ("device", ctypes.c_char_p))


class _Attributes(ctypes.Structure):
    """ucp_ep_attr_t, with ucp_transports_t inside."""

    _fields_ = (
        ("mask", ctypes.c_uint64),
        ("name", ctypes.c_char * _NAME_BYTES),
        ("local", ctypes.c_uint64 * (_SOCKADDR_BYTES // 8)),
        ("remote", ctypes.c_uint64 * (_SOCKADDR_BYTES // 8)),
        ("entries", ctypes.POINTER(_Entry)),
        ("count", ctypes.c_uint),
        ("entry_size", ctypes.c_size_t),
        ("user_data", ctypes.c_void_p),
    )


def route_of(endpoint: int) -> Route | None:
    """Of an endpoint's handle, after its first message; None if the library does not say."""
    query = _query()
    if query is None or not endpoint:
        return None
    entries = (_Entry * _MOST)()
    attributes = _Attributes(mask=_TRANSPORTS, entries=entries, count=_MOST, entry_size=ctypes.sizeof(_Entry))
    if query(endpoint, ctypes.byref(attributes)) != 0:
        return None
    lanes = [(entry.transport.decode(), entry.device.decode()) for entry in entries[: attributes.count]]
    return best(lanes)


def best(lanes: list[tuple[str, str]]) -> Route | None:
    """Of (transport, device): the best carries the bulk."""
    kinds = [(kind, f"{transport}/{device}") for transport, device in lanes if (kind := _kind(transport)) is not None]
    if not kinds:
        return None
    kind, via = max(kinds, key=lambda one: list(LinkKind).index(one[0]))
    return Route(kind=kind, via=via)


def _kind(transport: str) -> LinkKind | None:
    if transport == "tcp":
        return LinkKind.TCP
    if transport in _SHARED:
        return LinkKind.SHM
    if transport == "cuda_ipc":
        return LinkKind.CUDA_IPC
    return LinkKind.RDMA if transport.partition("_")[0] in _RDMA else None  # copies within a process say nothing


@cache
def _query() -> Any:
    try:
        query = ctypes.CDLL("libucp.so.0").ucp_ep_query  # loaded by UCXX already
    except (OSError, AttributeError):
        return None
    query.argtypes, query.restype = (ctypes.c_void_p, ctypes.c_void_p), ctypes.c_int
    return query
