"""Makes the pictures of docs/page.md: the page of a real run, as a browser shows it.

    python -m bench.screenshots car-detection.mp4 bottle-detection.mp4

The videos are played again and again, so any will do; those of the documentation are Intel's, named
there. Options of `stream-rpn` may follow, such as `--size 224` where the machine is slow. To be run
where nothing else is: the pictures show figures. Needs Playwright (`pip install 'stream-rpn[dev]'`)
and a Chromium of the machine.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
_WARM_SECONDS = 65  # a minute of history, and a little
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("videos", nargs="+", help="what the page shows")
    parser.add_argument("--fps", default="5", help="frames a second of each")
    arguments, others = parser.parse_known_args()
    command = [sys.executable, "-m", "stream_rpn", *arguments.videos, "--loop", "--quiet", *others]
    # A token that is made up is said even so, with the address.
    command += ["--serve", "0", "--serve-token", "auto", "--fps", arguments.fps]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            said = process.stderr.readline()
            found = re.match(r"watch at (\S+)", said)
            if found is None:
                raise SystemExit(f"the page does not come: {said.strip()}")
            photograph(found[1])
        finally:
            process.send_signal(signal.SIGINT)


def photograph(url: str) -> None:
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise SystemExit("there is no chromium here")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        desk: dict[str, Any] = {"viewport": {"width": 1180, "height": 680}}
        tab = browser.new_page(**desk, color_scheme="light")
        tab.goto(url)
        tab.wait_for_timeout(_WARM_SECONDS * 1000)
        _save(tab, "page-grid.jpg")
        tab.click(".card >> nth=0")
        _save(tab, "page-source.jpg")
        dark = browser.new_page(**desk, color_scheme="dark")
        dark.goto(url)
        dark.click(".card >> nth=0")
        _save(dark, "page-dark.jpg", pointed=True)
        phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
        phone.goto(url)
        _save(phone, "page-phone.jpg")
        browser.close()


def _save(tab: Any, name: str, *, pointed: bool = False) -> None:
    """Takes the picture when results come, with boxes that are worth a look."""
    tab.fill("#score", "0.25")
    tab.locator("#score").blur()
    tab.wait_for_timeout(3000)
    tab.wait_for_selector("#connection[data-state=live]", timeout=120_000)
    if pointed:
        tab.focus("#picture")
        tab.keyboard.press("ArrowDown")
    tab.screenshot(path=DOCS / name, type="jpeg", quality=82)
    print(DOCS / name)


if __name__ == "__main__":
    main()
