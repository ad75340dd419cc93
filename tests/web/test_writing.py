"""Writing in a real browser: two tabs, input methods, the clipboard, other scripts, and tokens."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest

from tests.support.browser import browse, needs_chromium, open_context, open_page, until
from tests.support.fake_coach import FakeCoach, open_fake_coach

from .test_access import violations
from .test_page import BRISK, ESSAY, draft_of, send_in, until_drafted, write_and_be_read

pytestmark = [pytest.mark.real_time, needs_chromium]

ARABIC = (
    "انقطعت الكهرباء في المساء، فخرج الناس إلى الشارع. كانت السماء مليئة بالنجوم، "
    "ولم أكن قد رأيتها من قبل. جلست جدتي وحكت لنا قصة قديمة عن القرية التي ولدت فيها."
)
PASTE = """async () => {
  const types = { "text/html": "<p>A <b>bold</b> word</p>", "text/plain": "A bold word" };
  await navigator.clipboard.write([new ClipboardItem(Object.fromEntries(
    Object.entries(types).map(([type, text]) => [type, new Blob([text], { type })])))]);
}"""


def value(page: Any) -> str:
    """What stands on the paper."""
    return str(page.locator("#draft").input_value())


async def test_two_tabs_that_write_at_once_do_not_fight() -> None:
    """Both end with the words of both, and each says so; what one hands in, the other shows."""

    def act(url: str) -> None:
        with open_context() as context:
            tabs = [context.new_page(), context.new_page()]
            for tab in tabs:
                tab.goto(url)
                tab.wait_for_selector("#link[data-state=online]")
            first, second = tabs
            first.locator("#draft").fill(ESSAY)
            until(first, lambda: value(second) == ESSAY)
            for tab, at, words in ((first, 0, "Before it. "), (second, len(ESSAY), " And after.")):
                tab.evaluate(
                    """([at, words]) => {
                      draft.setRangeText(words, at, at, "end");
                      draft.dispatchEvent(new InputEvent("input"));
                    }""",
                    [at, words],
                )
            both = f"Before it. {ESSAY} And after."
            until(first, lambda: value(first) == value(second) == both)
            for tab in tabs:
                tab.wait_for_function("() => kept.textContent === 'kept for both tabs'")
            kept = first.evaluate("() => localStorage[`coach.draft.${assignment.value}`]")
            assert json.loads(kept) == both
            until(first, lambda: len(coach.said("hello")) == 2 and draft_of(coach) == both)
            first.bring_to_front()
            send_in(first)
            for tab in tabs:
                tab.wait_for_selector(".score")
                assert tab.get_by_role("button", name="Handed in").is_disabled()

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert [said["text"] for said in coach.said("submit")] == [f"Before it. {ESSAY} And after."]


async def test_what_input_methods_and_the_clipboard_bring_arrives_as_it_stands_there() -> None:
    """Half a character is never sent, nor changed under the hand; formats stay behind."""
    half: list[str] = []

    def act(url: str) -> None:
        with open_context(permissions=["clipboard-read", "clipboard-write"]) as context:
            page, other = context.new_page(), context.new_page()
            for tab in (other, page):
                tab.goto(url)
                tab.wait_for_selector("#link[data-state=online]")
            page.locator("#draft").fill("東京。")
            until(page, lambda: value(other) == draft_of(coach) == "東京。")
            page.locator("#draft").press("Control+End")
            keys = context.new_cdp_session(page)
            for typed in ("に", "にほ", "にほん"):
                keys.send(
                    "Input.imeSetComposition",
                    {"text": typed, "selectionStart": len(typed), "selectionEnd": len(typed)},
                )
            until(page, lambda: "にほん" in value(page))
            other.locator("#draft").fill("大阪と東京。")
            page.wait_for_timeout(600)  # longer than edits and keeping wait
            assert value(page) == "東京。にほん"
            half.extend(text for text in [draft_of(coach)] if "に" in text)
            keys.send("Input.insertText", {"text": "日本"})
            until_drafted(page, coach, "大阪と東京。日本")
            assert value(page) == "大阪と東京。日本"
            page.evaluate(PASTE)
            page.locator("#draft").press("Control+End")
            page.locator("#draft").press("Control+v")
            until_drafted(page, coach, "大阪と東京。日本A bold word")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert half == []


async def test_arabic_runs_from_right_to_left_and_nothing_moves_that_should_not() -> None:
    """Text, underlines and quotes, in the dark, on a phone of who wants no motion."""
    found: list[str] = []

    def act(url: str) -> None:
        with open_page(
            url,
            reduced_motion="reduce",
            color_scheme="dark",
            viewport={"width": 390, "height": 844},
        ) as page:
            page.locator("#draft").fill(ARABIC)
            page.locator("#draft").press("Control+Enter")
            page.wait_for_selector(".note")
            assert page.evaluate("() => document.getAnimations().length") == 0
            page.wait_for_selector("#turn.busy", state="detached")
            for what in ("#draft", ".note.anchored .quote"):
                direction = "(element) => getComputedStyle(element).direction"
                assert page.locator(what).first.evaluate(direction) == "rtl"
            begins = page.locator("#underlines mark").first.evaluate(
                "(mark) => draft.getBoundingClientRect().right - mark.getClientRects()[0].right"
            )
            assert begins == pytest.approx(0, abs=2)
            assert page.evaluate("() => document.documentElement.scrollWidth") == 390
            found.extend(violations(page))

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert found == []


async def test_a_token_is_replaced_before_it_ends() -> None:
    """On the same connection, which goes on; nothing is said about it."""

    def act(url: str) -> None:
        with open_page(url, clock=True) as page:
            page.clock.fast_forward(470_000)
            page.wait_for_timeout(100)
            assert len(coach.said("hello")) == 1
            page.clock.fast_forward(20_000)
            until(page, lambda: len(coach.said("hello")) == 2)
            write_and_be_read(page, ESSAY)
            assert page.locator("#trouble").is_hidden()

    async with open_fake_coach(FakeCoach(token_s=600, **BRISK)) as coach:
        await browse(act, coach.url)
    assert [said["token"] for said in coach.said("hello")] == ["t1", "t2"]
    assert (coach.connections, coach.tokens) == (1, 2)


async def test_a_student_of_a_school_brings_a_token_in_the_address() -> None:
    """It does not stay there, and no other is asked for while it is good."""
    claims = json.dumps({"sub": "ana", "exp": time.time() + 3_600}).encode()
    token = f"e30.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.x"

    def act(url: str) -> None:
        with open_page(f"{url}/#token={token}") as page:
            assert "token" not in page.url
            page.reload()
            page.wait_for_selector("#link[data-state=online]")

    async with open_fake_coach(FakeCoach(**BRISK)) as coach:
        await browse(act, coach.url)
    assert [said["token"] for said in coach.said("hello")] == [token, token]
    assert coach.tokens == 0
