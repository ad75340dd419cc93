"""A real browser for tests: the distribution's Chromium under Playwright, in its own thread."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

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
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no chromium on the PATH: install the distribution's package"
)
T = TypeVar("T")


@contextmanager
def open_page(url: str, **options: Any) -> Iterator[Any]:
    """Open `url` in a fresh profile and wait until the page is connected.

    Args:
      url: the page.
      options: of Playwright's `new_context`: viewport, color_scheme, …

    Fails the test at the end if the page has logged an error or thrown. Playwright's own types are
    not used, so that tests without a browser need not import it.
    """
    from playwright.sync_api import sync_playwright

    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        try:
            page = browser.new_context(**options).new_page()
            page.set_default_timeout(20_000)
            page.on("pageerror", lambda error: complaints.append(str(error)))
            page.on(
                "console",
                lambda said: complaints.append(said.text) if said.type == "error" else None,
            )
            page.goto(url)
            page.wait_for_selector("#link[data-state=online]")
            yield page
        finally:
            browser.close()
    assert not complaints, complaints


async def browse(act: Callable[..., T], *args: Any) -> T:
    """Run `act`, which uses Playwright's blocking API, beside trio."""
    return await trio.to_thread.run_sync(act, *args)
