"""The writer's page in a real browser, against a server that answers as it is told.

Pauses for thought are skipped by the browser's own clock; nothing sleeps for long.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import trio

from coach.simulator.corpus import load_essays
from tests.support.browser import (
    LOST_CONNECTION,
    browse,
    needs_chromium,
    open_context,
    open_page,
    until,
)
from tests.support.fake_coach import FakeCoach, Message, open_fake_coach

pytestmark = [pytest.mark.real_time, needs_chromium]

ESSAY = next(essay for essay in load_essays() if essay.name == "cricket-with-my-uncle").text
PHONE: dict[str, Any] = {
    "viewport": {"width": 360, "height": 740},
    "is_mobile": True,
    "has_touch": True,
}
BRISK: dict[str, Any] = {"first_token_s": 0.05, "event_s": 0.005, "grade_s": 0.3}
ASK = "Control+Enter"


def write_and_be_read(page: Any, text: str) -> None:
    """Replace the draft by `text` and wait for the whole feedback."""
    page.locator("#draft").fill(text)
    page.locator("#draft").press(ASK)
    page.wait_for_selector(".note.anchored")
    page.wait_for_selector("#turn.busy", state="detached")


def hand_in(page: Any) -> None:
    """Hand the draft in, which is asked back, and wait for its grade."""
    send_in(page)
    page.wait_for_selector(".score")


def send_in(page: Any) -> None:
    """Hand the draft in, and say yes."""
    page.click("#hand-in")
    page.click("#sure button[value=yes]")


def draft_of(coach: FakeCoach) -> str:
    """The text as the server has it."""
    return next(iter(coach.drafts.values()), "")


def until_drafted(page: Any, coach: FakeCoach, text: str) -> None:
    """Wait until the server has the same text."""
    until(page, lambda: draft_of(coach) == text)


async def test_a_student_writes_is_read_hands_in_and_is_graded() -> None:
    """Notes come by themselves after a pause; quotes that stand in the text are underlined."""

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").press_sequentially("Ünïcode 😀 first. ")
            page.locator("#draft").fill(ESSAY)
            page.wait_for_selector(".note")
            page.wait_for_selector("#turn.busy", state="detached")
            assert page.locator(".note").count() == 4
            assert page.locator(".note.anchored").count() == 3
            marks = page.locator("#underlines mark").all_text_contents()
            assert marks[0] == " ".join(ESSAY.split()[:6])
            assert page.locator("#words").inner_text() == str(len(ESSAY.split()))
            page.click("#hand-in")
            asked = page.locator("#sure").inner_text()
            assert f"“Take a side”, {len(ESSAY.split())} words" in asked
            assert " ".join(ESSAY.split()[:6]) in asked
            assert "Content; Structure; Language and Spelling, punctuation, grammar" in asked
            page.click("#sure button[value=no]")
            assert not coach.said("submit")
            send_in(page)
            page.get_by_text("has arrived and is safe").wait_for()
            page.wait_for_selector(".score")
            assert page.locator(".score strong").inner_text() == "67"
            assert page.locator(".interval").inner_text() == (
                "In 90 of 100 cases a teacher's score lies between 58 and 76."
            )
            assert page.locator(".agreement").inner_text() == (
                "The judges are never more than one band apart."
            )
            assert page.locator(".criterion-row").count() == 4
            assert page.locator(".criterion-row .band").first.get_attribute("aria-label") == (
                "band 2 of 5"
            )
            until(page, lambda: coach.said("ack"))

    async with open_fake_coach(FakeCoach(**{**BRISK, "grade_s": 1.5})) as coach:
        await browse(act, coach.url)
    assert coach.heard[0]["type"] == "hello"
    assert [said["text"] for said in coach.said("submit")] == [ESSAY]
    assert coach.drafts == {"desk": ESSAY}


async def test_edits_of_every_kind_leave_server_and_page_with_the_same_text() -> None:
    """Typing, deleting, pasting and characters beyond the BMP travel as splices."""
    texts = ["One 😀 two.", "One 😁 two.", "One 𝄞😁 tw", "", "One two."]

    def act(url: str) -> None:
        with open_page(url) as page:
            for text in texts:
                page.locator("#draft").fill(text)
                until_drafted(page, coach, text)
            page.locator("#draft").press("End")
            page.locator("#draft").press_sequentially("\nAnd three 🦉")
            until_drafted(page, coach, "One two.\nAnd three 🦉")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    edits = coach.said("edit")
    assert len(edits) >= len(texts)
    revs = [said["rev"] for said in [*coach.said("draft"), *edits]]
    assert revs == list(range(1, len(revs) + 1))


async def test_a_text_larger_than_a_message_travels_in_pieces() -> None:
    """It is drafted in full, also after a reconnect; handed in, it is refused in kind words."""
    text = "学习写作😀" * 16_600

    def act(url: str, cut: Callable[[], None]) -> None:
        with open_page(url, tolerate=LOST_CONNECTION) as page:
            page.locator("#draft").fill(text)
            until_drafted(page, coach, text)
            cut()
            until_drafted(page, coach, text)
            send_in(page)
            page.get_by_text("longer than coach can grade").wait_for()
            assert page.locator("#hand-in").is_enabled()

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url, coach.cutter())
    assert coach.connections == 2
    assert not coach.said("submit")


async def test_notes_whose_words_stand_stay_below_new_ones() -> None:
    """Until their words are edited away; a general one goes. So it is after a reload as well."""
    more = f"{ESSAY[:400]} The wind had turned by then."

    def act(url: str) -> None:
        with open_page(url) as page:
            write_and_be_read(page, ESSAY[:400])
            before = page.locator(".note .comment").all_text_contents()
            page.locator("#draft").fill(more)
            page.locator("#draft").press(ASK)
            page.get_by_text("This is new to me.").wait_for()
            page.wait_for_selector("#turn.busy", state="detached")
            notes = page.locator(".note .comment").all_text_contents()
            assert notes == ["This is new to me. Next: go on.", *before[:3]]
            assert page.locator("#underlines mark").count() == 4
            page.reload()
            page.wait_for_selector(".note.anchored")
            assert page.locator(".note .comment").all_text_contents() == notes
            page.locator("#draft").fill(more.replace(ESSAY[:20], "Other words"))
            assert page.locator(".note.gone").count() == 1
            page.locator("#draft").press(ASK)
            page.wait_for_selector("#turn.busy")
            page.wait_for_selector("#turn.busy", state="detached")
            assert page.locator(".note .comment").all_text_contents() == [
                notes[0],
                *notes[:1],
                *notes[2:],
            ]

    async with open_fake_coach(FakeCoach(**BRISK, adds=True)) as coach:
        await browse(act, coach.url)


async def test_a_newer_turn_replaces_the_older() -> None:
    """What the older still says is not shown."""

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").fill(ESSAY[:400])
            page.locator("#draft").press(ASK)
            page.wait_for_selector(".note")
            write_and_be_read(page, "Quite another beginning, it was. " + ESSAY[:400])
            assert page.locator(".note .quote").first.inner_text() == (
                "Quite another beginning, it was. I"
            )

    async with open_fake_coach(FakeCoach(first_token_s=0.05, event_s=0.015)) as coach:
        await browse(act, coach.url)
    assert len(coach.said("feedback")) == 2


async def test_a_turn_is_stopped_and_what_has_come_stays() -> None:
    """The server hears of it, and does not read the same text again by itself."""

    def act(url: str) -> None:
        with open_page(url) as page:
            page.locator("#draft").fill(ESSAY[:400])
            page.get_by_role("button", name="Read it now").click()
            page.wait_for_selector(".note .comment:not(:empty)")
            page.get_by_role("button", name="Stop").click()
            page.get_by_role("button", name="Read it now").wait_for()
            assert page.locator(".note").count() >= 1
            assert page.locator(".note.streaming").count() == 0
            until(page, lambda: coach.said("cancel"))

    async with open_fake_coach(FakeCoach(first_token_s=0.05, event_s=0.2)) as coach:
        await browse(act, coach.url)
    assert coach.said("cancel")[0]["request"] == coach.said("feedback")[0]["request"]


async def test_position_in_the_line_and_errors_are_said_kindly() -> None:
    """A turn that failed is asked again after the time the server named, and not before."""
    failed_at: list[float] = []

    def fail_once(message: Message) -> list[Message]:
        if message["type"] != "started" or failed_at:
            return [message]
        failed_at.append(trio.current_time())
        error = {"type": "error", "code": "overloaded", "message": "x", "retry_after_ms": 20_000}
        return [{**error, "request": message["request"]}]

    def act(url: str) -> None:
        with open_page(url, clock=True) as page:
            page.locator("#draft").fill(ESSAY)
            page.locator("#draft").press(ASK)
            page.get_by_text("queued, position 2 · about 1 s").wait_for()
            page.get_by_text("your text is safe").wait_for()
            assert page.locator(".note").count() == 0
            page.locator("#draft").fill(ESSAY + " Typing on does not make it impatient.")
            page.clock.fast_forward(15_000)
            page.wait_for_timeout(100)
            assert len(coach.said("feedback")) == 1
            page.clock.fast_forward(12_000)
            page.wait_for_selector(".note.anchored")
            assert page.locator("#trouble").is_hidden()

    async with open_fake_coach(
        FakeCoach(queued=2, queue_s=0.8, mutate=fail_once, **BRISK)
    ) as coach:
        await browse(act, coach.url)
    assert len(coach.said("feedback")) == 2


async def test_a_place_in_the_line_counts_down_and_another_model_is_told() -> None:
    """What the first one had begun goes; the answer is the other's, whole."""
    seen: list[str] = []
    moved: list[Message] = []

    def move_on(message: Message) -> list[Message]:
        if message["type"] != "delta" or moved:
            return [message]
        moved.append(message)
        restarted = {
            "type": "restarted",
            "request": message["request"],
            "provider": "second",
            "reason": "cut",
        }
        return [{**message, "text": "[Content] «never shown» It goes."}, restarted, message]

    def act(url: str) -> None:
        with open_page(url) as page:
            page.evaluate(
                """() => {
                  window.said = [];
                  const turn = document.getElementById("turn");
                  new MutationObserver(() => window.said.push(turn.textContent))
                    .observe(turn, { childList: true, characterData: true, subtree: true });
                }"""
            )
            write_and_be_read(page, ESSAY)
            seen.extend(page.evaluate("() => window.said"))
            assert "never shown" not in page.locator("#notes").text_content()
            page.clock.fast_forward(3_000)  # what is read out comes at its own pace
            page.wait_for_function("() => announce.textContent.includes('another model')")

    async with open_fake_coach(FakeCoach(queued=3, queue_s=0.3, mutate=move_on, **BRISK)) as coach:
        await browse(act, coach.url)
    places = [text.split(" ·")[0] for text in seen if text.startswith("queued")]
    assert [place for at, place in enumerate(places) if place not in places[:at]] == [
        f"queued, position {position}" for position in (3, 2, 1)
    ]
    assert "switched to another model…" in seen


async def test_what_can_not_be_read_is_not_asked_for_again_and_again() -> None:
    """Only a changed text is worth another try."""

    def refuse(message: Message) -> list[Message]:
        if message["type"] != "started":
            return []
        error = {"type": "error", "code": "too_large", "message": "x"}
        return [{**error, "request": message["request"]}]

    def act(url: str) -> None:
        with open_page(url, clock=True) as page:
            page.locator("#draft").fill(ESSAY)
            page.locator("#draft").press(ASK)
            page.get_by_text("longer than coach can read").wait_for()
            page.clock.fast_forward(600_000)
            page.wait_for_timeout(100)
            assert len(coach.said("feedback")) == 1

    async with open_fake_coach(FakeCoach(mutate=refuse, **BRISK)) as coach:
        await browse(act, coach.url)


async def test_a_cut_connection_comes_back_with_the_draft_and_the_question() -> None:
    """Words typed meanwhile are in the draft that is sent again; a reload loses nothing."""

    def act(url: str, cut: Callable[[], None]) -> None:
        with open_page(url, tolerate=LOST_CONNECTION) as page:
            page.locator("#draft").fill(ESSAY[:300])
            page.locator("#draft").press(ASK)
            page.wait_for_selector(".note")
            coach.refuse_sockets = True
            cut()
            page.wait_for_selector("#link[data-state=reconnecting]")
            page.get_by_text("waiting for the connection…").wait_for()
            page.locator("#draft").press_sequentially("Meanwhile, more. ")
            coach.refuse_sockets = False
            page.wait_for_selector("#link[data-state=online]")
            page.wait_for_selector("#turn.busy", state="detached")
            assert "Meanwhile, more." in draft_of(coach)
            assert page.locator(".note").count() == 4
            asked = len(coach.said("feedback"))
            page.reload()
            page.wait_for_selector("#link[data-state=online]")
            assert "Meanwhile, more." in page.locator("#draft").input_value()
            assert page.locator(".note").count() == 4
            assert len(coach.said("feedback")) == asked == 2

    async with open_fake_coach(FakeCoach(first_token_s=0.05, event_s=0.02)) as coach:
        await browse(act, coach.url, coach.cutter())


async def test_a_network_that_died_silently_is_left() -> None:
    """Where no answer comes, the page does not go on believing that it is connected."""

    def act(url: str) -> None:
        with open_page(url, clock=True, tolerate=LOST_CONNECTION) as page:
            coach.mute = True
            page.locator("#draft").fill(ESSAY)
            page.locator("#draft").press(ASK)
            until(page, lambda: coach.said("feedback"))
            page.clock.fast_forward(16_000)
            page.wait_for_selector("#link[data-state=reconnecting]")
            coach.mute = False
            page.clock.fast_forward(1_000)
            page.wait_for_selector(".note.anchored")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert coach.connections == 2


async def test_a_door_that_stays_shut_is_told_and_tried_again() -> None:
    """Coach is busy: it says so. The token kept here is no good: a newer one is asked for."""

    def act(url: str) -> None:
        student = {"name": "coach.student", "value": '{"token":"old","expires_at":4102444800}'}
        kept = {"cookies": [], "origins": [{"origin": url, "localStorage": [student]}]}
        with open_context(storage_state=kept) as context:
            context.clock.install()
            page = context.new_page()
            page.goto(url)
            page.get_by_text("coach is busy").wait_for()
            until(page, lambda: not coach.refusals or page.clock.fast_forward(1_000))
            page.clock.fast_forward(1_000)
            page.wait_for_selector("#link[data-state=online]")

    refusals = ["overloaded", "unauthenticated"]
    async with open_fake_coach(FakeCoach(refusals=refusals, **BRISK)) as coach:
        await browse(act, coach.url)
    assert [said["token"] for said in coach.said("hello")] == ["old", "old", "t1"]


async def test_an_essay_handed_in_is_handed_in_until_it_is_graded() -> None:
    """Under one id, through a lost connection and a reload; the grade is there on return."""

    def act(url: str, cut: Callable[[], None]) -> None:
        with open_page(url, tolerate=LOST_CONNECTION) as page:
            page.locator("#draft").fill(ESSAY)
            coach.mute = True
            send_in(page)
            page.get_by_text("Handing in…").wait_for()
            until(page, lambda: coach.said("submit"))
            cut()
            page.reload()
            page.get_by_text("Handing in…").wait_for()
            coach.mute = False
            cut()
            page.wait_for_selector(".score")
            page.reload()
            page.wait_for_selector(".score")
            assert page.get_by_role("button", name="Handed in").is_disabled()
            page.locator("#draft").press_sequentially("More. ")
            page.get_by_role("button", name="Hand in").wait_for()

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url, coach.cutter())
    assert len({said["submission"] for said in coach.said("submit")}) == 1


async def test_a_note_about_words_that_are_gone_fades() -> None:
    """It says so; a note whose quote never stood in the text is a general one without a quote."""

    def act(url: str) -> None:
        with open_page(url) as page:
            write_and_be_read(page, ESSAY)
            general = page.locator(".note").nth(3)
            assert general.locator(".quote").is_hidden()
            page.locator("#draft").fill("Nothing of it is left.")
            assert page.locator(".note.gone").count() == 3
            assert page.locator(".note.gone .quote:disabled").count() == 3
            assert page.locator("#underlines mark").count() == 0
            page.locator("#draft").fill(ESSAY)
            assert page.locator(".note.gone").count() == 0
            page.locator(".note .quote").nth(1).click()
            words = page.locator("#underlines mark.here, #underlines mark[data-key=shown]")
            assert words.first.inner_text() == page.locator(".note .quote").nth(1).inner_text()

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)


async def test_each_assignment_has_its_own_draft() -> None:
    """Changing between them at once loses no word, and two tabs on one draft are one draft."""

    def act(url: str) -> None:
        with open_context() as context:
            page, other = context.new_page(), context.new_page()
            for tab in (page, other):
                tab.goto(url)
                tab.wait_for_selector("#link[data-state=online]")
            page.bring_to_front()
            page.locator("#draft").fill("An argument.")
            page.select_option("#assignment", "tell")
            assert page.locator("#draft").input_value() == ""
            page.locator("#draft").fill("A story.")
            page.select_option("#assignment", "argue")
            assert page.locator("#draft").input_value() == "An argument."
            until(page, lambda: other.locator("#draft").input_value() == "An argument.")
            other.bring_to_front()
            other.locator("#draft").fill("An argument, from the other tab.")
            other.close(run_before_unload=True)
            page.bring_to_front()
            page.reload()
            page.wait_for_selector("#link[data-state=online]")
            assert page.locator("#draft").input_value() == "An argument, from the other tab."

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)


async def test_what_was_said_earlier_is_folded_away_and_comes_back_with_the_page() -> None:
    """Each assignment has its own; a quote that still stands in the text can be shown there."""

    def act(url: str) -> None:
        with open_page(url) as page:
            write_and_be_read(page, ESSAY)
            assert page.locator("#earlier").is_hidden()
            write_and_be_read(page, "A new beginning stands before it. " + ESSAY)
            page.reload()
            page.wait_for_selector("#link[data-state=online]")
            page.click("#earlier summary")
            assert page.locator("#earlier summary").inner_text() == "1 earlier reading"
            said = page.locator("#earlier > ol > li")
            assert f"{len(ESSAY.split())} words" in said.inner_text()
            assert said.locator(".quote:enabled").count() == 3
            said.locator(".quote").first.click()
            shown = page.locator("#underlines mark[data-key=shown]").inner_text()
            assert shown == " ".join(ESSAY.split()[:6])
            page.select_option("#assignment", "tell")
            assert page.locator("#earlier").is_hidden()

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)


async def test_what_is_typed_before_the_script_has_come_stays() -> None:
    """On a slow network the paper is there first."""

    def act(url: str) -> None:
        with open_context() as context:
            page = context.new_page()
            waiting: list[Any] = []
            # Playwright sets an attribute on the handler, which a bound method refuses.
            page.route("**/static/main.js", lambda route: waiting.append(route))  # noqa: PLW0108
            page.goto(url, wait_until="commit")
            page.locator("#draft").fill("Early bird.")
            waiting[0].continue_()
            page.wait_for_selector("#link[data-state=online]")
            assert page.locator("#draft").input_value() == "Early bird."
            until_drafted(page, coach, "Early bird.")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)


async def test_those_who_hear_the_page_are_told_at_their_own_pace() -> None:
    """The live region changes at most every 3 s, and says each note once."""

    def act(url: str) -> None:
        with open_page(url, clock=True) as page:
            page.evaluate(
                "() => { window.said = []; new MutationObserver(() => window.said.push("
                "[performance.now(), announce.textContent])).observe(announce, "
                "{ childList: true }); }"
            )
            write_and_be_read(page, ESSAY)
            page.clock.fast_forward(3_000)
            page.wait_for_function("() => window.said.map((s) => s[1]).join().includes('aloud')")
            said = page.evaluate("() => window.said")
            times = [moment for moment, _ in said]
            assert all(b - a > 2_900 for a, b in pairwise(times))
            assert " ".join(words for _, words in said).count("A clear opening") == 1

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)


async def test_it_fits_a_phone_and_a_keyboard() -> None:
    """No horizontal scroll at 360 px, all controls named, large enough and reached by Tab."""

    def act(url: str) -> None:
        with open_page(url, **PHONE) as page:
            write_and_be_read(page, ESSAY + "\n" + "W" * 80)
            page.locator("#draft").press("Control+Home")
            page.wait_for_selector("#peek .comment:not(:empty)")
            hand_in(page)
            assert page.locator("#peek").is_hidden()
            width = page.evaluate("() => document.documentElement.scrollWidth")
            assert width == 360
            reached = set()
            page.evaluate("() => document.activeElement.blur()")
            page.locator("#draft").press_sequentially("More. ")
            for _ in range(24):
                page.keyboard.press("Tab")
                reached.add(page.evaluate("() => document.activeElement.id"))
            assert {"assignment", "draft", "ask", "hand-in", "to-notes"} <= reached
            small = page.evaluate(
                "() => [...document.querySelectorAll('button,select,textarea,a')].filter(e => "
                "e.offsetHeight && (e.offsetHeight < 24 || e.offsetWidth < 24)).map(e => e.id)"
            )
            assert small == ["skip"] or small == []
            unnamed = page.evaluate(
                "() => [...document.querySelectorAll('button,select,textarea,a')]"
                ".filter(e => !(e.innerText || e.ariaLabel || e.labels?.length || e.hidden)).length"
            )
            assert unnamed == 0

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
