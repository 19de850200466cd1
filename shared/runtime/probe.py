"""What a container engine asks: does this process live, and does it serve?

    GET /health → 200 while the event loop runs      GET /ready → 200 once it serves, 503 before that and while it ends

`python -m shared.runtime.probe PORT` asks the second of a process on this machine: exit code 0 or 1, and one line.
"""

import asyncio
import contextlib
import http.client
import sys
from collections.abc import Callable

from shared.errors import ConfigError

ASK_WITHIN_S = 3.0
MAX_LINE_BYTES = 1024


async def answer_probes(port: int, ready: Callable[[], bool]) -> asyncio.Server:
    """Listens on all interfaces; what it tells is no secret. Raises ConfigError where it cannot."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError, asyncio.IncompleteReadError):
            async with asyncio.timeout(ASK_WITHIN_S):
                writer.write(_answer(await reader.readline(), ready()))
                await writer.drain()
        writer.close()

    try:
        return await asyncio.start_server(serve, host=None, port=port, limit=MAX_LINE_BYTES)
    except OSError as error:
        raise ConfigError(f"--probe-port {port}: {error.strerror or error}", param="probe_port") from error


def _answer(request: bytes, ready: bool) -> bytes:
    path = b"".join(request.split()[1:2])
    if path not in (b"/health", b"/ready"):
        status, text = "404 Not Found", "ask for /health or /ready"
    elif path == b"/ready" and not ready:
        status, text = "503 Service Unavailable", "not serving"
    else:
        status, text = "200 OK", "ok"
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {len(text) + 1}\r\nConnection: close\r\n\r\n"
    )
    return f"{head}{text}\n".encode()


def main(port: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=ASK_WITHIN_S)
    try:
        connection.request("GET", "/ready")
        response = connection.getresponse()
        print(response.status, response.read(MAX_LINE_BYTES).decode(errors="replace").strip())
    except OSError as error:
        print(f"nobody answers on port {port}: {error}")
        return 1
    finally:
        connection.close()
    return int(response.status != 200)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
