"""The part of UCXX that is used, and what it is told about this machine; the only file that knows UCXX."""

import ctypes
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any

import psutil

from shared.errors import ConfigError
from shared.wire import address as addresses
from shared.wire.terms import LinkKind

UCXX_VERSION = "0.52.00"
# What UCX may use where a link of some kind is required. By default: those that notice a dead peer.
TLS = {
    LinkKind.TCP: "tcp,self",
    LinkKind.SHM: "sm,tcp,self",
    LinkKind.CUDA_IPC: "cuda_ipc,cuda_copy,sm,tcp,self",
    LinkKind.RDMA: "ib,cuda_copy,tcp,self",
}


class Library:
    """The part of UCXX that is used here, loaded on first use. Raises ConfigError where it cannot work."""

    def __init__(self) -> None:
        os.environ.setdefault("UCX_LOG_FILE", "stderr")  # read when the library loads; its default is stdout
        os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")
        try:
            import ucxx
            from ucxx._lib import libucxx
            from ucxx._lib.arr import Array
        except (ImportError, OSError) as error:
            raise ConfigError(f"UCX is not to be had here: {error}", param="transport") from error
        if ucxx.__version__ != UCXX_VERSION:
            raise ConfigError(f"UCX needs ucxx {UCXX_VERSION}, found {ucxx.__version__}", param="transport")
        self._lib = libucxx
        self.array: Callable[[memoryview], Any] = Array
        self.tag: Callable[[int], Any] = libucxx.UCXXTag
        self.error: type[Exception] = libucxx.UCXError
        self.truncated: type[Exception] = libucxx.UCXMessageTruncatedError

    def worker(self, *, devices: str, tls: str) -> Any:
        options = {"TLS": tls, "NET_DEVICES": devices}
        options = {name: value for name, value in options.items() if f"UCX_{name}" not in os.environ}
        try:
            context = self._lib.UCXContext(options, (self._lib.Feature.TAG, self._lib.Feature.WAKEUP))
            worker = self._lib.UCXWorker(context)
            worker.init_blocking_progress_mode()
        except (self._lib.UCXError, RuntimeError) as error:
            raise ConfigError(f"UCX cannot use {devices}: {error}", param="bind") from error
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(worker))
        return worker

    def let_go(self, worker: Any) -> None:
        """A worker's destructor takes in every message that nobody received, and waits for ever for one whose sender is
        gone. So a worker is freed only if there is none, else never: not even by an interpreter that shuts down."""
        if not worker.tag_probe(self.tag(0), self._lib.UCXXTagMask(0)).matched:
            ctypes.pythonapi.Py_DecRef(ctypes.py_object(worker))

    def endpoint(self, worker: Any, address: bytes) -> Any:
        return self._lib.UCXEndpoint.create_from_worker_address(
            worker, self._lib.UCXAddress.create_from_buffer(address), True
        )


def interface_of(host: str) -> str:
    """Name of the network interface that carries this address; "all" for every interface. Raises ConfigError."""
    if host in addresses.EVERY_INTERFACE:
        return "all"
    try:
        found = {info[4][0] for info in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise ConfigError(f"cannot bind to {host}: {error}", param="bind") from error
    for name, configured in psutil.net_if_addrs().items():
        for one in configured:
            if one.family in (socket.AF_INET, socket.AF_INET6) and one.address.partition("%")[0] in found:
                return str(name)
    if all(ipaddress.ip_address(one).is_loopback for one in found):
        return "lo"
    raise ConfigError(f"no network interface here has the address {host}", param="bind")
