"""A real browser without a screen, looked at through the DevTools protocol: what it asked the network for, what its
console said, what the page measures, how it looks. It has a profile and a home of its own, and leaves nothing."""

import asyncio
import base64
import json
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import psutil

START_S = 30.0
STEP_S = 30.0  # for one answer, or for a page to load
END_S = 10.0
OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-crash-reporter",
    "--disable-dev-shm-usage", "--remote-debugging-port=0",
)  # fmt: skip


def executable() -> str | None:
    """None: this machine has no Chromium."""
    return next((path for name in ("chromium", "chromium-browser") if (path := shutil.which(name))), None)


@dataclass
class Page:
    """An open page. `requests`: the URLs of all that it asked for, itself first; `errors`: what its console said."""

    browser: "Browser"
    session: str
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    loaded: asyncio.Event = field(default_factory=asyncio.Event)

    async def evaluate(self, expression: str) -> Any:
        """The value of some JavaScript; a promise is awaited."""
        options = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = await self.browser.call("Runtime.evaluate", options, self.session)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, expression: str, limit_s: float = STEP_S) -> None:
        async with asyncio.timeout(limit_s):
            while not await self.evaluate(expression):
                await asyncio.sleep(0.05)

    async def screenshot(self) -> bytes:
        """The whole page as PNG, as far down as it goes."""
        options = {"format": "png", "captureBeyondViewport": True}
        answer = await self.browser.call("Page.captureScreenshot", options, self.session)
        return base64.b64decode(answer["data"])

    async def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.browser.call("Emulation.setDeviceMetricsOverride", metrics, self.session)

    async def prefer(self, scheme: str) -> None:
        """`light` or `dark`."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        await self.browser.call("Emulation.setEmulatedMedia", {"features": features}, self.session)

    def take(self, method: str, said: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])
            case "Runtime.exceptionThrown":
                self.errors.append(str(said["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "assert"):
                self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in said["args"]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.errors.append(said["entry"]["text"])
            case "Page.loadEventFired":
                self.loaded.set()
            case _:
                pass


class Browser:
    """`async with Browser() as browser: async with browser.open(url, width=400) as page: ...`"""

    async def __aenter__(self) -> "Browser":
        path = executable()
        assert path is not None, "no chromium on PATH"
        self._home = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        own = dict.fromkeys(("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "TMPDIR"), self._home.name)
        self._process = await asyncio.create_subprocess_exec(
            path, *OPTIONS, f"--user-data-dir={self._home.name}", "about:blank", env={**os.environ, **own},
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._pages: dict[str, Page] = {}
        self._http = aiohttp.ClientSession()
        self._reader: asyncio.Task[None] | None = None
        try:
            self._socket = await self._http.ws_connect(await self._address(), max_msg_size=0)
            self._reader = asyncio.create_task(self._read())
        except BaseException:
            await self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._end()

    @asynccontextmanager
    async def open(self, url: str, *, width: int, height: int = 900) -> AsyncIterator[Page]:
        target = (await self.call("Target.createTarget", {"url": "about:blank"}))["targetId"]
        attached = await self.call("Target.attachToTarget", {"targetId": target, "flatten": True})
        page = Page(self, attached["sessionId"])
        self._pages[page.session] = page
        for domain in ("Page", "Network", "Runtime", "Log"):
            await self.call(f"{domain}.enable", {}, page.session)
        await page.resize(width, height)
        page.loaded.clear()
        await self.call("Page.navigate", {"url": url}, page.session)
        await asyncio.wait_for(page.loaded.wait(), STEP_S)
        try:
            yield page
        finally:
            await self.call("Target.closeTarget", {"targetId": target})
            del self._pages[page.session]

    async def call(self, method: str, options: dict[str, Any], session: str | None = None) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": options} | ({"sessionId": session} if session else {})
        await self._socket.send_json(message)
        return await asyncio.wait_for(self._answers[number], STEP_S)

    async def _address(self) -> str:
        """The browser writes its port into its profile when it listens."""
        found = Path(self._home.name) / "DevToolsActivePort"
        async with asyncio.timeout(START_S):
            while not found.exists() or len(lines := found.read_text().split()) < 2:
                assert self._process.returncode is None, f"the browser ended with {self._process.returncode}"
                await asyncio.sleep(0.05)
        return f"ws://127.0.0.1:{lines[0]}{lines[1]}"

    async def _read(self) -> None:
        async for message in self._socket:
            said = json.loads(message.data)
            page = self._pages.get(said.get("sessionId", ""))
            if "method" in said and page is not None:
                page.take(said["method"], said["params"])
            answer = self._answers.pop(said.get("id"), None)
            if answer is not None and not answer.done():
                if "error" in said:
                    answer.set_exception(AssertionError(said["error"]["message"]))
                else:
                    answer.set_result(said["result"])

    async def _end(self) -> None:
        family = _family(self._process.pid)
        if self._reader is not None:
            await self._socket.send_json({"id": next(self._numbers), "method": "Browser.close"})
        try:
            await asyncio.wait_for(self._process.wait(), END_S if self._reader is not None else 0.1)
        except TimeoutError:
            os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()
        if self._reader is not None:
            await asyncio.wait_for(self._reader, END_S)
        await self._http.close()
        left = await asyncio.to_thread(psutil.wait_procs, family, END_S)
        for process in left[1]:
            process.kill()
        self._home.cleanup()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return list(psutil.Process(pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return []
