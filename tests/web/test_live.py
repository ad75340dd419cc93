"""The writer's page against a whole coach: real workers, Redis, simulator, grader and browser."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from coach import config
from coach.grading import Claim, Queue, Submission, load_rubric
from coach.session import open_authority
from coach.simulator.corpus import load_essays
from coach.simulator.numbering import MARK, Reader
from coach.store import open_redis
from tests.support.browser import (
    LOST_CONNECTION,
    browse,
    come_in,
    needs_chromium,
    open_context,
    open_page,
    picture,
)
from tests.support.stack import Stack, open_stack

from .test_access import violations

pytestmark = [pytest.mark.real_time, needs_chromium]

ESSAY = next(essay for essay in load_essays() if essay.name == "cricket-with-my-uncle").text
BEGUN = ".note .comment:not(:empty)"
QUOTA = "quota = { requests_per_minute = 4000 }"
WATCH_LINK = """() => {
  const link = document.getElementById("link");
  const turn = document.getElementById("turn");
  window.states = [];
  window.said = [];
  new MutationObserver(() => window.said.push(turn.textContent))
    .observe(turn, { childList: true, characterData: true, subtree: true });
  new MutationObserver(() => window.states.push(link.dataset.state))
    .observe(link, { attributes: true, attributeFilter: ["data-state"] });
}"""
HAS_READ = """() => {
  const key = Object.keys(localStorage).find((name) => name.startsWith("coach.read."));
  return key && JSON.parse(localStorage[key]).feedback;
}"""
WAS_READ = """(words) => Object.keys(localStorage).some((key) =>
  key.startsWith("coach.read.") && JSON.parse(localStorage[key]).read.endsWith(words))"""


def write_and_be_read(page: Any) -> None:
    """The first sentences are read after a pause, without being asked."""
    draft = page.locator("#draft")
    draft.press_sequentially(ESSAY[:60])
    draft.fill(ESSAY[:700])
    page.wait_for_selector(BEGUN)
    page.wait_for_selector("#turn.busy", state="detached")
    assert page.locator(".note").count() >= 2
    assert page.locator(".note.anchored").count() >= 1
    assert page.locator("#underlines mark").count() >= 1


def hand_in_and_be_graded(page: Any) -> None:
    """Score, criteria and evidence that stands in the text."""
    page.locator("#draft").fill(ESSAY)
    page.click("#hand-in")
    page.click("#sure button[value=yes]")
    page.wait_for_selector(".score")
    assert 0 <= int(page.locator(".score strong").inner_text()) <= 100
    rows = page.locator(".criterion-row")
    assert rows.count() >= 3
    assert rows.locator(".quote:enabled").count() == rows.locator(".quote").count() > 0
    assert page.locator("#trouble").is_hidden()


def lose_the_worker(page: Any, workers: Iterable[int]) -> None:
    """The page comes back by itself, with what was written meanwhile; it says that it was
    interrupted and asks again, also about what is new."""
    draft = page.locator("#draft")
    draft.fill(ESSAY[:700])
    draft.press("Control+Enter")
    page.wait_for_selector(BEGUN)
    page.evaluate(WATCH_LINK)
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    page.wait_for_function("() => window.states.includes('reconnecting')")
    draft.press("Control+End")
    draft.press_sequentially(" Meanwhile, more.")
    page.wait_for_selector("#link[data-state=online]")
    page.wait_for_function("() => window.said.includes('interrupted, asking again…')")
    draft.press("Control+Enter")
    page.wait_for_function(WAS_READ, arg="Meanwhile, more.")
    assert draft.input_value() == f"{ESSAY[:700]} Meanwhile, more."
    assert page.locator(".note.anchored").count() >= 1


def pause_a_lane(page: Any) -> None:
    """Asked back, done, seen, and written down with who did it."""
    row = page.locator("#lanes tr[data-lane=background]")
    row.locator("button").click()
    page.click("#confirm button[value=no]")
    assert row.locator("button").inner_text() == "Pause"
    row.locator("button").click()
    page.click("#confirm button[value=yes]")
    page.wait_for_selector("#lanes tr[data-paused=true]")
    page.wait_for_selector("#alerts .warn")
    assert "lane background paused" in page.locator("#audit li").first.inner_text()
    assert "demo/ola" in page.locator("#audit li").first.inner_text()


def renew_a_worker(page: Any) -> None:
    """A new one takes its place, and the old one drains and goes."""
    page.wait_for_selector("#workers li")
    old = page.locator("#workers li").get_attribute("data-pid")
    page.get_by_role("button", name="Renew worker 0").click()
    page.click("#confirm button[value=yes]")
    page.wait_for_selector(f"#workers li[data-pid='{old}']", state="detached")
    page.wait_for_selector("#workers li")
    page.get_by_text("demo/ola: workers renew 0").wait_for()


def grade_again(page: Any) -> None:
    """Its price is told first; then it is a job that can be stopped."""
    page.click("#regrade-open")
    page.wait_for_selector("#regrade[open]")
    assert page.input_value("#regrade-org") == "demo"
    page.click("#regrade-form .do")
    page.wait_for_selector("#confirm[open]")
    asked = page.inner_text("#confirm-what")
    assert re.search(r"Have 1 essay of “.+” graded again, for about \d+\.\d\d USD", asked)
    page.click("#confirm button[value=yes]")
    page.get_by_text("0 of 1 essay · regrade · ola").wait_for()
    page.get_by_role("button", name=re.compile("^Stop bridge-")).click()
    page.click("#confirm button[value=yes]")
    page.get_by_text(re.compile("stopped, bridge-")).wait_for()


def change_a_quota(page: Any) -> None:
    """What it is now can be changed for a while; asked back, and written down."""
    row = page.locator("#providers tr[data-provider=simulator]")
    row.get_by_role("button", name="Quota").click()
    field = page.locator("#quota-fields input")
    assert field.input_value() == "4000"
    field.fill("90")
    page.click("#quota .do")
    assert "requests 90 a minute, for 24 hours?" in page.inner_text("#confirm-what")
    page.click("#confirm button[value=yes]")
    page.get_by_text("quota simulator requests 90").wait_for()
    row.get_by_role("button", name="Quota").click()
    page.get_by_text("Set by an operator").wait_for()
    assert field.input_value() == "90"
    page.click("#quota-cancel")


async def give_up_an_essay(stack: Stack) -> None:
    """One that has ended, of the first assignment."""
    settings = config.load(stack.data_dir / "coach.toml")
    assignment = load_rubric().assignments[0].id
    async with open_redis(stack.redis.url) as redis:
        queue = Queue(redis, settings.grading)
        essay = Submission(id="e-1", user="ana", org="demo", assignment=assignment, text=ESSAY)
        await queue.submit(essay)
        shard = queue.shard("demo")
        claim = await queue.claim(shard, ["submission"])
        assert isinstance(claim, Claim)
        await queue.fail(claim, reason="no use", final=True)


async def test_an_operator_watches_and_pauses_a_lane(tmp_path: Path) -> None:
    """And renews a worker, has essays graded again, changes a quota. No student may come in."""
    found: list[str] = []

    def act(stack: Stack, operator: str, student: str) -> None:
        with open_context(tolerate=("Failed to load resource",)) as context:
            page = context.new_page()
            come_in(page, f"{stack.url}/ops", refused=student, token=operator)
            page.wait_for_selector("#tiles .figure")
            pause_a_lane(page)
            change_a_quota(page)
            grade_again(page)
            renew_a_worker(page)
            found.extend(violations(page))
            picture(page, "bridge-light")
        phone: dict[str, Any] = {"viewport": {"width": 390, "height": 840}, "color_scheme": "dark"}
        with open_context(**phone) as context:
            page = context.new_page()
            page.goto(f"{stack.url}/ops#token={operator}")
            page.wait_for_selector("#tiles .figure")
            assert page.evaluate("() => document.documentElement.scrollWidth") == 390
            page.click("#regrade-open")
            page.wait_for_selector("#regrade[open]")
            found.extend(violations(page))
            page.click("#regrade-cancel")
            picture(page, "bridge-dark")

    async with open_stack(tmp_path, grader=False, provider=QUOTA) as stack:
        await give_up_an_essay(stack)
        authority = open_authority(config.Settings(data_dir=str(tmp_path)))
        operator, _ = authority.issue(user="ola", org="demo", role="operator")
        await browse(act, stack, operator, await stack.token())
    assert found == []


def lose_the_network(page: Any) -> None:
    """In the middle of the feedback; what is typed meanwhile is kept, and sent afterwards."""
    draft = page.locator("#draft")
    draft.fill(ESSAY[:700])
    draft.press("Control+Enter")
    page.wait_for_selector(BEGUN)
    page.context.set_offline(True)
    page.wait_for_selector("#link[data-state=offline]")
    page.wait_for_timeout(700)
    draft.press("Control+End")
    draft.press_sequentially(" Meanwhile, more.")
    page.context.set_offline(False)
    page.wait_for_selector("#link[data-state=online]")


async def test_a_network_that_is_cut_mid_stream_costs_no_word(tmp_path: Path) -> None:
    """The text goes on where it stopped: whole, by the simulator's numbers, asked for once."""
    shown: list[str] = []

    def act(stack: Stack) -> None:
        with open_page(stack.url, tolerate=LOST_CONNECTION) as page:
            lose_the_network(page)
            page.wait_for_function(HAS_READ)
            shown.append(page.evaluate(HAS_READ))

    simulator = ("--number", "true", "--events-per-s", "60", "--feedback-events-min", "120")
    async with open_stack(tmp_path, workers=2, grader=False, simulator=simulator) as stack:
        await browse(act, stack)
        assert (await stack.simulator())["streams_cancelled"] == 0
        assert await stack.metric("coach_resumes_total") == 1
        assert await stack.metric("coach_resumes_total", how="expired") == 0
        assert await stack.metric("coach_replayed_messages_total") > 0
    reader = Reader()
    reader.read(shown[0])
    reader.end()
    assert (reader.lost, reader.doubled) == (0, 0)
    assert len(MARK.findall(shown[0])) >= 120


async def test_from_the_first_word_to_the_score(tmp_path: Path) -> None:
    """On a phone; then on a wide screen, where the worker is killed while feedback streams."""

    def act(stack: Stack) -> None:
        phone = {"width": 360, "height": 740}
        with open_page(stack.url, viewport=phone, is_mobile=True, has_touch=True) as page:
            write_and_be_read(page)
            hand_in_and_be_graded(page)
            assert page.evaluate("() => document.documentElement.scrollWidth") == 360
        with open_page(stack.url, tolerate=LOST_CONNECTION) as page:
            lose_the_worker(page, stack.workers())
            hand_in_and_be_graded(page)

    async with open_stack(
        tmp_path, simulator=("--events-per-s", "40", "--judge-ms", "300")
    ) as stack:
        await browse(act, stack)
