"""A real browser, headless: the Chromium of this machine, driven by Playwright."""

import contextlib
import shutil
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


@contextlib.contextmanager
def browser() -> Iterator["Browser"]:
    """A browser whose pages are closed with it; skips the test where there is none.

    Meanwhile `asyncio.run` cannot be used in this thread.
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("needs chromium")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


def wait_for(tab: "Page", script: str, *, seconds: float = 30) -> None:
    """Waits until a JavaScript expression is true.

    Playwright's own waiting evaluates within the page, which forbids that to whoever is there.
    """
    end = time.monotonic() + seconds
    while not tab.evaluate(script):
        assert time.monotonic() < end, f"not within {seconds} s: {script}"
        tab.wait_for_timeout(50)
