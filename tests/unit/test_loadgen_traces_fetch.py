"""Downloads from a server in this process: whole and as published, or no file at all."""

import contextlib
import hashlib
import io
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from loadgen.trace_command import run
from loadgen.traces.catalogue import SOURCES, Source
from shared.errors import ConfigError

CONTENT = b"TIMESTAMP,ContextTokens,GeneratedTokens\n" + b"2023-11-16 18:17:03,1,1\n" * 40_000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/missing.csv":
            self.send_error(404)
            return
        self.send_response(200)
        if self.path != "/unsized.csv":
            self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/half.csv" else CONTENT)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def base() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(autouse=True)
def _catalogue(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One file that is pinned, one that is not; downloads go where the test is."""
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.chdir(tmp_path)
    pinned = Source(url="http://x/pinned.csv", about="", licence="CC-BY 4.0", sha256=SHA256, size_bytes=len(CONTENT))
    monkeypatch.setitem(SOURCES, "pinned", pinned)
    monkeypatch.setitem(SOURCES, "loose", Source(url="http://x/loose.csv", about="", licence="CC-BY 4.0"))


def test_the_published_file_is_kept_and_the_next_time_found(base: str, console: Console, tmp_path: Path) -> None:
    assert run(["fetch", "pinned", "--url", f"{base}/any.csv"], console) == 0
    assert (tmp_path / "pinned.csv").read_bytes() == CONTENT
    assert list(tmp_path.iterdir()) == [tmp_path / "pinned.csv"]
    assert f"the published file (SHA-256 {SHA256})" in said(console) and "CC-BY 4.0" in said(console)
    assert run(["fetch", "pinned", "--url", f"{base}/missing.csv"], console) == 0
    assert "is here already" in said(console)


@pytest.mark.parametrize("path", ["any.csv", "unsized.csv"])
def test_without_a_pinned_checksum_the_one_found_is_said(base: str, console: Console, path: str) -> None:
    out = Path("mine.csv")
    assert run(["fetch", "loose", "--url", f"{base}/{path}", "--out", str(out)], console) == 0
    assert out.read_bytes() == CONTENT
    assert f"SHA-256 {SHA256}; no checksum is pinned" in said(console)


def refused(console: Console, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        run(["fetch", *arguments], console)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_file_is_refused_and_the_one_here_stays(
    base: str, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    wrong = Source(url=f"{base}/pinned.csv", about="", licence="", sha256="0" * 64)
    monkeypatch.setitem(SOURCES, "pinned", wrong)
    (tmp_path / "pinned.csv").write_text("mine")
    assert f"is not the published file: SHA-256 {SHA256}, not 0000" in refused(console, "pinned")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_a_missing_file_says_what_to_do(base: str, console: Console, tmp_path: Path) -> None:
    message = refused(console, "pinned", "--url", f"{base}/missing.csv")
    assert "missing.csv: HTTP 404 Not Found; give the file's new place with --url" in message
    assert not list(tmp_path.iterdir())


def test_a_download_that_breaks_off_leaves_nothing(base: str, console: Console, tmp_path: Path) -> None:
    message = refused(console, "loose", "--url", f"{base}/half.csv")
    assert f"broke off after {len(CONTENT) // 2:,} of {len(CONTENT):,} bytes; try again" in message
    assert not list(tmp_path.iterdir())


def test_offline_is_one_line_with_the_next_step(console: Console, tmp_path: Path) -> None:
    with socket.socket() as taken:  # bound, but nobody listens
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/x.csv"
        message = refused(console, "azure-code-2024", "--url", url)
    assert f"cannot reach {url} (" in message and "refused" in message
    assert message.endswith("bring the file from elsewhere and give --trace FILE or --trace azure-code")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_nothing(base: str, console: Console, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def interrupt(*_: object, **__: object) -> None:
        assert list(tmp_path.iterdir()), "the partial file is there while it loads"
        raise KeyboardInterrupt

    monkeypatch.setattr(Progress, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(["fetch", "loose", "--url", f"{base}/any.csv"], console)
    assert not list(tmp_path.iterdir())


def test_senseless_requests_are_refused(console: Console) -> None:
    assert "no public trace is named 'nope'; known are azure-conv-2023, " in refused(console, "nope")
    assert "must begin with http:// or https://" in refused(console, "loose", "--url", "file:///etc/passwd")
    assert "cannot write into nowhere" in refused(console, "loose", "--url", "http://x/", "--out", "nowhere/a.csv")


def test_what_is_pinned_is_what_was_measured() -> None:
    """The files that the study read, where they are at hand."""
    real = Path(__file__).parents[3] / "shared" / "traces"
    seen = 0
    for source in SOURCES.values():
        path = real / source.file_name.replace("synthetic_trace", "mooncake_synthetic")
        if source.sha256 is not None and path.is_file():
            assert hashlib.sha256(path.read_bytes()).hexdigest() == source.sha256
            assert path.stat().st_size == source.size_bytes
            seen += 1
    if not seen:
        pytest.skip("no published trace is here, they are not ours to ship: python -m loadgen trace fetch gets them")
