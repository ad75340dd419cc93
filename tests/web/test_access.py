"""WCAG 2.2 AA by axe-core, in each state of the page, on a light desk and a dark phone."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest

from tests.support.browser import browse, needs_chromium, open_page, picture
from tests.support.fake_coach import FakeCoach, open_fake_coach

from .test_page import BRISK, ESSAY, PHONE, hand_in, write_and_be_read

pytestmark = [pytest.mark.real_time, needs_chromium]

RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
AXE = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")
RUN = """(rules) => axe.run(document, { runOnly: rules }).then((found) => found.violations.map(
  ({ id, nodes }) => `${id}: ${nodes.map(({ target, failureSummary }) =>
    `${target} ${failureSummary}`).join(" | ")}`))"""


def violations(page: Any) -> list[str]:
    """What axe finds; its source comes beside the page's own security policy."""
    page.wait_for_timeout(300)  # colours that fade
    page.evaluate(AXE)
    found: list[str] = page.evaluate(RUN, RULES)
    return found


@pytest.mark.parametrize(("device", "scheme"), [("desk", "light"), ("phone", "dark")])
async def test_no_state_of_the_page_shuts_anybody_out(device: str, scheme: str) -> None:
    """Empty; read; a note without its words; what was said before, and how it is graded; asked back
    before handing in; graded."""
    found: dict[str, list[str]] = {}

    def act(url: str) -> None:
        options: dict[str, Any] = (
            PHONE if device == "phone" else {"viewport": {"width": 1440, "height": 900}}
        )
        with open_page(url, color_scheme=scheme, **options) as page:
            found["empty"] = violations(page)
            write_and_be_read(page, ESSAY)
            found["read"] = violations(page)
            page.locator(".note .quote").first.click()
            found["shown"] = violations(page)
            page.locator("#draft").fill(ESSAY[400:])
            found["gone"] = violations(page)
            write_and_be_read(page, ESSAY)
            page.evaluate("() => scrollTo(0, 0)")
            picture(page, f"desk-read-{scheme}")
            page.click("#earlier summary")
            page.click("#rubric summary")
            page.click("#rubric details summary")
            found["earlier"] = violations(page)
            page.click("#hand-in")
            found["asked back"] = violations(page)
            picture(page, f"desk-sure-{scheme}")
            page.click("#sure button[value=no]")
            hand_in(page)
            found["graded"] = violations(page)
            picture(page, f"desk-graded-{scheme}")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert len(found) == 7
    assert {state: broken for state, broken in found.items() if broken} == {}
