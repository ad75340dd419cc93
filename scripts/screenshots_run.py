"""What scripts/screenshots does, once it has its environment."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from _environment import ROOT

from coach import config
from coach.session import open_authority
from coach.simulator.corpus import load_essays

sys.path.insert(0, str(ROOT))  # the tests' browser is this one's

from tests.support.browser import CHROMIUM, browse, close_browser, open_context
from tests.support.stack import free_port

WIDTHS = {390: 844, 768: 1024, 1440: 1000}
"""With the heights that go with them."""
SCHEMES = ("light", "dark")
START_S_MAX = 30.0
WRITERS, WRITING_S = 30, 75
WATCHED_S = 50
"""After so long the charts of the bridge have something to show."""
TITLE = "The night the lights went out"
ESSAY = "the-night-the-power-failed"
SETTINGS = "[grading]\nreview_percent = 30\n"
README = {
    "desk-1440-light.png": "desk.png",
    "desk-390-light.png": "phone.png",
    "ops-1440-light.png": "bridge.png",
    "review-1440-light.png": "reviews.png",
}


def main() -> int:
    """Take the pictures; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".screenshots")
    parser.add_argument("--readme", action="store_true", help="also those that the README shows")
    options = parser.parse_args()
    if CHROMIUM is None:
        print("screenshots: no chromium on the PATH: install the distribution's package")
        return 2
    options.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="coach-screenshots-") as scratch:
        port = free_port()
        with _demo(Path(scratch), port) as url, _writers(url):
            try:
                trio.run(browse, _take, url, Path(scratch), options.folder)
            finally:
                close_browser()
    if options.readme:
        for taken, shown in README.items():
            shutil.copyfile(options.folder / taken, ROOT / "docs" / "images" / shown)
    print(f"pictures are in {options.folder}")
    return 0


def _take(url: str, data_dir: Path, folder: Path) -> None:
    """All pages: the bridge in the midst of it, reviews when the essays have been handed in."""
    authority = open_authority(config.Settings(data_dir=str(data_dir)))
    tokens = {
        role: authority.issue(user=user, org="demo", role=role)[0]
        for user, role in (("ola", "operator"), ("eva", "educator"))
    }
    time.sleep(WATCHED_S)
    for page, picture in _pages(f"{url}/ops#token={tokens['operator']}"):
        page.wait_for_selector("#tiles .figure")
        page.wait_for_timeout(500)
        picture(page, folder, "ops")
    for page, picture in _pages(url):
        _desk(page)
        picture(page, folder, "desk")
    for page, picture in _pages(f"{url}/review#token={tokens['educator']}"):
        _review(page)
        picture(page, folder, "review")


def _pages(url: str) -> Iterator[tuple[Any, Any]]:
    for width, height in WIDTHS.items():
        for scheme in SCHEMES:
            options: dict[str, Any] = {"viewport": {"width": width, "height": height}}
            if width < 500:
                options |= {"device_scale_factor": 2, "is_mobile": True, "has_touch": True}
            with open_context(color_scheme=scheme, **options) as context:
                page = context.new_page()
                page.goto(url)

                def picture(
                    page: Any, folder: Path, name: str, at: str = f"{width}-{scheme}"
                ) -> None:
                    page.screenshot(path=folder / f"{name}-{at}.png")

                yield page, picture


def _desk(page: Any) -> None:
    """An essay that has been read."""
    essay = next((each for each in load_essays() if each.name == ESSAY), load_essays()[0])
    page.wait_for_selector("#link[data-state=online]")
    page.select_option("#assignment", label=TITLE)
    page.locator("#draft").fill(essay.text[:1_800])
    page.wait_for_selector(".note.anchored")
    page.wait_for_selector("#turn.busy", state="detached")
    page.locator("#draft").blur()
    page.evaluate("() => scrollTo(0, 0)")
    page.wait_for_timeout(400)


def _review(page: Any) -> None:
    """The essay on which the judges are furthest apart, with what they gave."""
    page.wait_for_selector("#list button")
    page.locator("#list button").first.click()
    page.wait_for_selector("#open:not([hidden])")
    if page.locator("#show").is_visible():
        page.click("#show")
    page.wait_for_selector("#judges .quote")
    page.wait_for_timeout(600)


@contextmanager
def _demo(data_dir: Path, port: int) -> Iterator[str]:
    settings = data_dir / "coach.toml"
    settings.write_text(SETTINGS)
    command = [sys.executable, "-m", "coach", "demo", "--port", str(port)]
    command += ["--data-dir", str(data_dir), "--config", str(settings)]
    with (data_dir / "demo.log").open("wb") as log:
        demo = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        _until_ready(url, demo, data_dir / "demo.log")
        yield url
    finally:
        demo.terminate()
        demo.wait()


def _until_ready(url: str, demo: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S_MAX
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < end and demo.poll() is None:
            try:
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise RuntimeError(f"the demo has not started: {log.read_text()[-2_000:]}")


@contextmanager
def _writers(url: str) -> Iterator[None]:
    command = [sys.executable, str(ROOT / "scripts" / "simulate_writers.py"), "--url", url]
    command += ["--writers", str(WRITERS), "--seconds", str(WRITING_S)]
    writers = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        writers.terminate()
        writers.wait()
