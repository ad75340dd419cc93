"""The writer's page in a real browser, against a server that answers as it is told."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from coach.simulator.corpus import load_essays
from tests.support.browser import browse, needs_chromium, open_page
from tests.support.fake_coach import FakeCoach, Message, open_fake_coach

pytestmark = [pytest.mark.real_time, needs_chromium]

ESSAY = next(essay for essay in load_essays() if essay.name == "cricket-with-my-uncle").text
PHONE = {"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True}
BRISK: dict[str, Any] = {"first_token_s": 0.05, "event_s": 0.01, "grade_s": 0.3}


async def test_a_student_writes_is_read_hands_in_and_is_graded() -> None:
    """Notes come by themselves after a pause; quotes that stand in the text are underlined."""

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").press_sequentially("Ünïcode 😀 first. ")
            page.locator("#draft").fill(ESSAY)
            page.wait_for_selector(".note.streaming")
            page.wait_for_selector("#turn.busy", state="detached")
            assert page.locator(".note").count() == 4
            assert page.locator(".note.anchored").count() == 3
            marks = page.locator("#underlines mark").all_text_contents()
            assert marks[0] == " ".join(ESSAY.split()[:6])
            assert page.locator("#words").inner_text() == str(len(ESSAY.split()))
            page.click("#hand-in")
            page.wait_for_selector(".grading")
            page.wait_for_selector(".score")
            assert page.locator(".score strong").inner_text() == "67"
            assert page.locator(".criterion-row").count() == 4
            assert page.locator(".criterion-row .band").first.get_attribute("aria-label") == (
                "band 2 of 5"
            )

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    kinds = [said["type"] for said in coach.heard]
    assert kinds[0] == "hello"
    assert "ack" in kinds
    handed_in = next(said for said in coach.heard if said["type"] == "submit")
    assert handed_in["text"] == ESSAY
    assert list(coach.drafts.values()) == [ESSAY]


async def test_edits_of_every_kind_leave_server_and_page_with_the_same_text() -> None:
    """Typing, deleting, pasting and characters beyond the BMP travel as splices."""
    texts = ["One 😀 two.", "One 😁 two.", "One 𝄞😁 tw", "", "a", "One two two two.", "One two."]

    def act(url: str) -> None:
        with open_page(url) as page:
            for text in texts:
                page.locator("#draft").fill(text)
                page.wait_for_timeout(400)
            page.locator("#draft").press("End")
            page.locator("#draft").press_sequentially("\nAnd three 🦉")
            page.wait_for_timeout(500)

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert list(coach.drafts.values()) == ["One two.\nAnd three 🦉"]
    edits = [said for said in coach.heard if said["type"] == "edit"]
    assert len(edits) >= len(texts)
    first = next(said for said in coach.heard if said["type"] == "draft")
    revs = [first["rev"], *(said["rev"] for said in edits)]
    assert revs == list(range(1, len(revs) + 1))


async def test_a_newer_turn_replaces_the_older() -> None:
    """What the older still says is not shown."""

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").fill(ESSAY[:400])
            page.wait_for_selector(".note.streaming")
            page.locator("#draft").fill("Quite another beginning, it was. " + ESSAY[:400])
            page.locator("#draft").press("Control+Enter")
            page.wait_for_selector("#turn.busy", state="detached")
            assert page.locator(".note .quote").first.inner_text() == (
                "Quite another beginning, it was. I"
            )

    async with open_fake_coach(FakeCoach(first_token_s=0.05, event_s=0.05)) as coach:
        await browse(act, coach.url)
    assert sum(said["type"] == "feedback" for said in coach.heard) == 2


async def test_position_in_the_line_and_errors_are_said_kindly() -> None:
    """And a turn that failed is asked again after the time the server named."""
    failed = False

    def fail_once(message: Message) -> list[Message]:
        nonlocal failed
        if message["type"] == "started" and not failed:
            failed = True
            error = {"type": "error", "code": "overloaded", "message": "x", "retry_after_ms": 1500}
            return [{**error, "request": message["request"]}]
        return [message]

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").fill(ESSAY)
            page.get_by_text("queued, position 2").wait_for()
            page.get_by_text("your text is safe").wait_for()
            page.wait_for_selector(".note.anchored")
            assert page.locator("#trouble").is_hidden()

    async with open_fake_coach(FakeCoach(queued=2, mutate=fail_once, **BRISK)) as coach:
        await browse(act, coach.url)


async def test_a_cut_connection_comes_back_with_the_draft() -> None:
    """Words typed meanwhile are in the draft that is sent again; a reload loses nothing."""

    def act(url: str, cut: trio.Event, token: trio.lowlevel.TrioToken) -> None:
        with open_page(url) as page:
            page.locator("#draft").fill(ESSAY[:300])
            page.wait_for_timeout(500)
            trio.from_thread.run_sync(cut.set, trio_token=token)
            page.wait_for_selector("#link:not([data-state=online])")
            page.locator("#draft").press_sequentially("Meanwhile, more. ")
            page.wait_for_selector("#link[data-state=online]")
            page.wait_for_timeout(500)
            page.reload()
            page.wait_for_selector("#link[data-state=online]")
            assert "Meanwhile, more." in page.locator("#draft").input_value()

    cut = trio.Event()
    async with open_fake_coach(FakeCoach(**BRISK)) as coach, trio.open_nursery() as nursery:

        async def cutter() -> None:
            await cut.wait()
            await coach.cut()

        nursery.start_soon(cutter)
        await browse(act, coach.url, cut, trio.lowlevel.current_trio_token())
    assert "Meanwhile, more." in next(iter(coach.drafts.values()))


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_it_fits_a_phone_and_a_keyboard(scheme: str) -> None:
    """No horizontal scroll at 360 px, all controls named and reachable with Tab."""

    def act(url: str) -> None:
        with open_page(url, color_scheme=scheme, **PHONE) as page:
            page.locator("#draft").fill(ESSAY + "\n" + "W" * 80)
            page.wait_for_selector(".note.anchored")
            page.wait_for_selector("#turn.busy", state="detached")
            page.click("#hand-in")
            page.wait_for_selector(".score")
            width = page.evaluate("() => document.documentElement.scrollWidth")
            assert width == 360
            reached = set()
            page.evaluate("() => document.activeElement.blur()")
            for _ in range(20):
                page.keyboard.press("Tab")
                reached.add(page.evaluate("() => document.activeElement.id"))
            assert {"assignment", "draft", "ask", "hand-in"} <= reached
            unnamed = page.evaluate(
                "() => [...document.querySelectorAll('button,select,textarea,a')]"
                ".filter(e => !(e.innerText || e.ariaLabel || e.labels?.length)).length"
            )
            assert unnamed == 0

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
