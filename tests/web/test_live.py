"""The writer's page against a whole coach: real workers, Redis, simulator, grader and browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach.simulator.corpus import load_essays
from tests.support.browser import browse, needs_chromium, open_page
from tests.support.stack import open_stack

pytestmark = [pytest.mark.real_time, needs_chromium]

ESSAY = next(essay for essay in load_essays() if essay.name == "cricket-with-my-uncle").text


@pytest.mark.parametrize("width", [360, 1280])
async def test_from_the_first_word_to_the_score(tmp_path: Path, width: int) -> None:
    """Notes stream in and point into the text; the essay is graded by criteria."""

    def act(url: str) -> None:
        with open_page(url, viewport={"width": width, "height": 800}) as page:
            draft = page.locator("#draft")
            draft.fill(ESSAY[:700])
            draft.press("End")
            draft.press_sequentially(" And more.", delay=20)
            page.wait_for_selector(".note.streaming .comment:not(:empty)")
            page.wait_for_selector("#turn.busy", state="detached")
            assert page.locator(".note").count() >= 2
            assert page.locator(".note.anchored").count() >= 1
            draft.fill(ESSAY)
            page.wait_for_selector(".note.streaming .comment:not(:empty)")
            page.click("#hand-in")
            page.wait_for_selector(".grading")
            page.wait_for_selector(".score")
            assert 0 <= int(page.locator(".score strong").inner_text()) <= 100
            rows = page.locator(".criterion-row")
            assert rows.count() >= 3
            assert rows.locator(".quote:enabled").count() == rows.locator(".quote").count() > 0
            assert page.locator("#trouble").is_hidden()
            assert page.evaluate("() => document.documentElement.scrollWidth") == width

    async with open_stack(tmp_path, simulator=("--events-per-s", "30")) as stack:
        await browse(act, stack.url)
