"""A headless Chromium driven over its DevTools protocol: open a page, run scripts, look at it."""

import asyncio
import base64
import contextlib
import shutil
import subprocess
import time
from pathlib import Path

import aiohttp
import pytest


class Browser:
    """One tab. Use in an `async with`; skips the test where there is no Chromium."""

    def __init__(self, folder: Path, *, size: tuple[int, int] = (1280, 760)) -> None:
        self._program = shutil.which("chromium") or shutil.which("google-chrome")
        self._folder = folder / "chromium"
        self._size = size
        self._count = 0

    async def __aenter__(self) -> "Browser":
        if self._program is None:
            pytest.skip("needs chromium")
        self._process = subprocess.Popen(
            [
                self._program,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={self._folder}",
                "--window-size={},{}".format(*self._size),
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._session = aiohttp.ClientSession()
        place = self._folder / "DevToolsActivePort"
        await until(lambda: place.is_file() and place.read_text().count("\n"), seconds=30)
        port = place.read_text().split()[0]
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as response:
            [page] = [each for each in await response.json() if each["type"] == "page"]
        self._tab = await self._session.ws_connect(page["webSocketDebuggerUrl"], max_msg_size=0)
        await self._call("Page.enable")
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        self._process.kill()
        self._process.wait()

    async def _call(self, method: str, **parameters: object) -> dict:
        self._count += 1
        await self._tab.send_json({"id": self._count, "method": method, "params": parameters})
        async with asyncio.timeout(120):
            while True:
                answer = await self._tab.receive_json()
                if answer.get("id") == self._count:
                    assert "error" not in answer, answer
                    return answer["result"]

    async def open(self, url: str) -> None:
        await self._call("Page.navigate", url=url)
        await self.wait_for("location.href != 'about:blank' && document.readyState == 'complete'")

    async def run(self, script: str):
        """Returns the value of a JavaScript expression."""
        answer = await self._call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def wait_for(self, script: str, *, seconds: float = 20) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + seconds
        while not await self.run(script):
            assert time.monotonic() < end, f"not within {seconds} s: {script}"
            await asyncio.sleep(0.05)

    async def screenshot(self, path: Path) -> None:
        answer = await self._call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(answer["data"]))


async def until(condition, *, seconds: float = 60) -> None:
    """Waits until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)
