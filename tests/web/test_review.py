"""The educators' page in a browser, against the application itself with a real Redis."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from coach.grading import load_rubric
from coach.simulator.corpus import load_essays
from tests.support.browser import browse, come_in, needs_chromium, open_context, picture
from tests.test_app import opened, serving
from tests.test_review import graded, reviews_of

from .test_access import violations

pytestmark = [pytest.mark.real_time, needs_chromium]

ESSAY = next(essay for essay in load_essays() if essay.name == "cricket-with-my-uncle").text
ASSIGNMENT = load_rubric().assignments[0].id
QUOTE = ESSAY[200:240].strip()


def score_an_essay(page: Any) -> None:
    """The judges' grade is seen only once one's own score is kept; then both are there."""
    first = page.locator("#list button").first
    assert "ana" in first.inner_text()
    assert "apart" not in first.inner_text()
    first.click()
    page.wait_for_selector("#open:not([hidden])")
    assert page.locator("#grade").is_hidden()
    page.fill("#score", "72")
    page.click("#scoring .do")
    page.wait_for_selector("#grade:visible")
    assert "You: 72" in page.locator("#people").inner_text()
    assert "before seeing the grade" in page.locator("#people").inner_text()
    assert page.locator("#given strong").inner_text() == "64"
    assert page.locator("#judges thead th").count() == 3
    assert page.locator("#judges tbody tr").count() == 4
    assert "3 bands apart" in page.locator("#list button").first.inner_text()
    page.locator("#judges .quote").first.click()
    assert page.locator("#text mark[data-key=shown]").inner_text() == QUOTE


def come_back(page: Any) -> None:
    """What was entered is there, for this educator and in the table; then it is off the list."""
    page.reload()
    page.wait_for_selector("#list button")
    assert "eva 72" in page.locator("#list button").first.inner_text()
    with page.expect_download() as downloading:
        page.click("#download")
    with Path(downloading.value.path()).open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["essay"], row["score"], row["by"], row["blind"]) == (ESSAY, "72", "eva", "1")
    page.locator("#list button").first.click()
    page.click("#done")
    page.wait_for_selector("#list button >> nth=1", state="detached")


def look_at_all(page: Any) -> None:
    """Every essay of the assignment, and how grades and people's scores are spread."""
    page.click("#view-all")
    page.wait_for_selector("#list .none")
    page.select_option("#assignment", ASSIGNMENT)
    page.wait_for_selector("#bins .people", state="attached")
    assert page.locator("#list button").count() == 3
    assert "3 grades, mean 64.0; 1 score by people, mean 72.0" in page.inner_text("#spread-title")
    label = page.locator("#bins .column").nth(6).get_attribute("aria-label")
    assert label == "60 to 69: 3 grades, 0 scores by people"
    with page.expect_download() as downloading:
        page.click("#download-grades")
    with Path(downloading.value.path()).open(newline="") as file:
        assert [row["score"] for row in csv.DictReader(file)] == ["64"] * 3


async def test_an_educator_scores_an_essay_and_sees_the_judges(tmp_path: Path) -> None:
    """On a desk and a phone; a student's token does not open the page."""
    found: list[str] = []

    def act(url: str, educator: str, student: str) -> None:
        with open_context(tolerate=("Failed to load resource",)) as context:
            page = context.new_page()
            come_in(page, f"{url}/review", refused=student, token=educator)
            page.wait_for_selector("#list button")
            found.extend(violations(page))
            score_an_essay(page)
            found.extend(violations(page))
            picture(page, "reviews-light")
            come_back(page)
            look_at_all(page)
            found.extend(violations(page))
        phone: dict[str, Any] = {"viewport": {"width": 390, "height": 840}, "color_scheme": "dark"}
        with open_context(**phone) as context:
            page = context.new_page()
            page.goto(f"{url}/review#token={educator}")
            page.locator("#list button").first.click()
            page.wait_for_selector("#hidden-grade:visible")
            page.click("#show")
            page.wait_for_selector("#judges .quote")
            assert page.evaluate("() => document.documentElement.scrollWidth") == 390
            found.extend(violations(page))
            picture(page, "reviews-dark")

    async with opened(tmp_path) as served:
        reviews = await reviews_of(served)
        judges = {"s-1": (2, 2, 3), "s-2": (1, 4, 3), "s-3": (3, 3, 3)}
        for id_, bands in judges.items():
            seats = dict(zip("abc", bands, strict=True))
            await graded(served, id_, seats, text=ESSAY, evidence=QUOTE, assignment=ASSIGNMENT)
            if id_ != "s-3":
                await reviews.add("demo", id_, "disagreement")
        tokens = [
            served.bearer("eva", role=role)["Authorization"].removeprefix("Bearer ")
            for role in ("educator", "student")
        ]
        async with serving() as port:
            await browse(act, f"http://127.0.0.1:{port}", *tokens)
    assert found == []
