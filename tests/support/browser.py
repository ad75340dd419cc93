"""A real browser for tests: the distribution's Chromium under Playwright, in a thread of its own.

Starting it costs more than most tests take, so one browser serves them all; each gets a fresh
profile. `close_browser` ends it, and tests/web/conftest.py calls that.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import trio

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PICTURES: Final = Path(__file__).parents[2] / ".screenshots" / "tests"
"""What the pages looked like in the last run, for people; git ignores it, CI keeps it."""
WIDTHS: Final = {390: 844, 768: 1024, 1440: 1000}
"""With the heights that go with them."""
LOST_CONNECTION: Final = ("WebSocket connection to", "net::ERR_INTERNET_DISCONNECTED")
"""What Chromium itself logs when a server or the network is away."""
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: install the distribution's package"
)
T = TypeVar("T")

# Playwright's blocking API belongs to the thread that started it.
_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="browser")
_opened = ExitStack()
_browser: Any = None


async def browse(act: Callable[..., T], *args: Any) -> T:
    """Run `act`, which opens pages, in the browser's thread beside trio."""
    return await trio.to_thread.run_sync(_thread.submit(act, *args).result)


@contextmanager
def open_context(
    *, tolerate: tuple[str, ...] = (), timeout_s: float = 20.0, **options: Any
) -> Iterator[Any]:
    """Open a fresh profile; what its pages open later is watched, too.

    Args:
      tolerate: beginnings of console errors that the test causes on purpose.
      timeout_s: how long an action or a selector may take.
      options: of Playwright's `new_context`: viewport, color_scheme, …

    Fails the test at the end if a page has logged an error or thrown. Playwright's own types are
    not used, so that tests without a browser need not import it.
    """
    complaints: list[str] = []

    def console(said: Any) -> None:
        if said.type == "error" and not any(known in said.text for known in tolerate):
            complaints.append(said.text)

    context = _start().new_context(**options)
    try:
        context.set_default_timeout(timeout_s * 1_000)
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("console", console)
        yield context
    finally:
        context.close()
    assert not complaints, complaints


@contextmanager
def open_page(url: str, *, clock: bool = False, **options: Any) -> Iterator[Any]:
    """Open `url` in a fresh profile and wait until the page is connected; see `open_context`.

    With `clock` the page's time is the test's: `page.clock`.
    """
    with open_context(**options) as context:
        if clock:
            context.clock.install()
        page = context.new_page()
        page.goto(url)
        page.wait_for_selector("#link[data-state=online]")
        yield page


def come_in(page: Any, url: str, *, refused: str, token: str) -> None:
    """Enter a page of the staff: not with the token `refused`, then with `token` at the door."""
    page.goto(f"{url}#token={refused}")
    page.wait_for_selector("#door-trouble:not(:empty)")
    page.fill("#token", token)
    page.click("#door button")
    page.wait_for_selector("#link[data-state=online]")
    assert "token" not in page.url


def picture(page: Any, name: str) -> None:
    """Keep what `page` looks like at three widths, as `<name>-<width>.png`."""
    before = page.viewport_size
    PICTURES.mkdir(parents=True, exist_ok=True)
    for width, height in WIDTHS.items():
        page.set_viewport_size({"width": width, "height": height})
        page.screenshot(path=PICTURES / f"{name}-{width}.png")
    page.set_viewport_size(before)


def until(page: Any, holds: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Let `page` go on until `holds` is true of something outside it."""
    for _ in range(int(within_s / 0.02)):
        if holds():
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"did not become true within {within_s:g} s")


def close_browser() -> None:
    """End the browser, if one was started."""
    _thread.submit(_stop).result()


def _start() -> Any:
    global _browser  # noqa: PLW0603 - one browser for the whole run is the point
    if _browser is None:
        from playwright.sync_api import sync_playwright

        playwright = _opened.enter_context(sync_playwright())
        _browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        _opened.callback(_browser.close)
    return _browser


def _stop() -> None:
    global _browser  # noqa: PLW0603 - see _start
    _browser = None
    _opened.close()
