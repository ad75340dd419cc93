"""The page's pure functions, run in the browser's own engine: splices, quotes, streamed notes."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tests.support.browser import browse, needs_chromium, open_page
from tests.support.fake_coach import FakeCoach, open_fake_coach

pytestmark = [pytest.mark.real_time, needs_chromium]

CALL = """async ([module, name, calls]) => {
  const functions = await import(`/static/${module}`);
  return calls.map((args) => functions[name](...args));
}"""


async def call(module: str, name: str, calls: list[list[Any]]) -> list[Any]:
    """What the function `name` of `module` returns for each argument list of `calls`."""

    def act(url: str) -> list[Any]:
        with open_page(url) as page:
            results: list[Any] = page.evaluate(CALL, [module, name, calls])
            return results

    async with open_fake_coach(FakeCoach()) as coach:
        return await browse(act, coach.url)


async def test_a_splice_makes_one_text_of_the_other_and_cuts_no_pair() -> None:
    """For 2,000 pairs of texts over an alphabet in which surrogate pairs share their halves."""
    rng = random.Random(3)
    alphabet = "ab \n😀😁𝄞é"
    pairs = [
        ["".join(rng.choices(alphabet, k=rng.randrange(8))) for _ in range(2)] for _ in range(2_000)
    ]
    for (before, after), splice in zip(
        pairs, await call("editor.js", "splice", pairs), strict=True
    ):
        if splice is None:
            assert before == after
            continue
        at, delete, insert = splice
        units = before.encode("utf-16-le")
        assert 0 <= at <= at + delete <= len(units) // 2
        insert.encode("utf-8")  # no half of a pair
        made = units[: at * 2] + insert.encode("utf-16-le") + units[(at + delete) * 2 :]
        assert made.decode("utf-16-le") == after


async def test_a_range_moves_with_the_text_around_it() -> None:
    """Where a change does not touch it, the same words stand in it afterwards."""
    rng = random.Random(4)
    calls: list[list[Any]] = []
    texts: list[tuple[str, str]] = []
    for _ in range(500):
        text = "".join(rng.choices("abc \n", k=30))
        start, at = rng.randrange(20), rng.randrange(25)
        end, delete = start + rng.randrange(1, 10), rng.randrange(5)
        insert = "".join(rng.choices("xyz", k=rng.randrange(4)))
        calls.append([[start, end], [at, delete, insert]])
        texts.append((text, text[:at] + insert + text[at + delete :]))
    kept = 0
    for (before, after), (span, change), found in zip(
        texts, calls, await call("editor.js", "moved", calls), strict=True
    ):
        is_touched = change[0] < span[1] and change[0] + change[1] > span[0]
        if found is None:
            assert is_touched or change[0] <= span[0] <= change[0] + change[1]
            continue
        kept += 1
        assert not is_touched
        assert after[found[0] : found[1]] == before[span[0] : span[1]]
    assert kept > 100


async def test_what_two_tabs_wrote_is_one_text_in_both_with_the_words_of_both() -> None:
    """Whoever merges; also where both wrote at one place, or one deleted what the other changed."""
    rng = random.Random(5)

    def edited(text: str, alphabet: str) -> tuple[str, str]:
        at, delete = rng.randrange(len(text) + 1), rng.randrange(6)
        insert = "".join(rng.choices(alphabet, k=rng.randrange(5)))
        return text[:at] + insert + text[at + delete :], insert

    calls, inserts = [], []
    for _ in range(1_000):
        before = "".join(rng.choices("abc \n", k=rng.randrange(25)))
        (mine, ours), (theirs, others) = edited(before, "MNO"), edited(before, "123")
        calls += [[before, mine, theirs], [before, theirs, mine], [before, before, theirs]]
        inserts.append((ours, others))
    found = await call("editor.js", "merged", calls)
    for (ours, others), at in zip(inserts, range(0, len(found), 3), strict=True):
        text, same, untouched = found[at : at + 3]
        assert text == same
        assert ours in text
        assert others in text
        assert untouched == calls[at][2]


DRAW = r"""async ([edits]) => {
  const { Underlines } = await import("/static/editor.js");
  const [kept, fresh] = [0, 1].map(() => document.createElement("div"));
  const underlines = new Underlines(kept);
  const different = [];
  edits.forEach(([text, ranges], step) => {
    underlines.draw(text, ranges);
    fresh.replaceChildren();
    new Underlines(fresh).draw(text, ranges);
    const shown = [...kept.children].map((p) => p.textContent.replace(/^\u200b$/, "")).join("\n");
    if (kept.innerHTML !== fresh.innerHTML || shown !== text) different.push(step);
  });
  const first = [...kept.children][0];
  underlines.draw(...edits.at(-1));
  return { different, same: first === kept.children[0] };
}"""


async def test_underlines_drawn_step_by_step_are_those_drawn_at_once() -> None:
    """And they are the text itself, line by line, whatever the ranges are."""
    rng = random.Random(5)
    edits: list[Any] = []
    for _ in range(300):
        text = "".join(rng.choices("ab \n", weights=(4, 4, 2, 1), k=rng.randrange(60)))
        ranges = [
            {"start": at, "end": at + rng.randrange(1, 12), "ink": "content", "key": f"n{index}"}
            for index, at in enumerate(rng.choices(range(50), k=rng.randrange(4)))
        ]
        edits.append([text, ranges])

    def act(url: str) -> Any:
        with open_page(url) as page:
            return page.evaluate(DRAW, [edits])

    async with open_fake_coach(FakeCoach()) as coach:
        drawn = await browse(act, coach.url)
    assert drawn == {"different": [], "same": True}


async def test_pieces_make_the_whole_and_fit_into_messages() -> None:
    """Whatever stands at a border: no pair is cut, and JSON's escapes are allowed for."""
    texts = ["", "a", "x" * 39_999 + "😀" * 30_000, "\x01" * 40_001, "学" * 100_000]
    for text, cut in zip(
        texts, await call("editor.js", "pieces", [[text] for text in texts]), strict=True
    ):
        assert "".join(cut) == text
        for piece in cut:
            assert len(json.dumps(piece, ensure_ascii=False).encode()) < 250_000


async def test_words_are_counted_as_students_count_them() -> None:
    """Apostrophes and hyphens join; scripts without spaces count by characters."""
    cases = {
        "": 0,
        "It doesn't matter – at all.": 5,
        "a well-known 3rd place": 4,
        "今天我们学习写作。": 8,
        "هذه جملة قصيرة": 3,
        "नमस्ते दुनिया": 2,
    }
    counts = await call("editor.js", "countWords", [[text] for text in cases])
    assert counts == list(cases.values())


async def test_words_counted_edit_by_edit_are_those_counted_at_once() -> None:
    """Wherever an edit cuts or joins words, and whatever stood there before."""
    rng = random.Random(6)
    texts = [""]
    for _ in range(400):
        text = texts[-1]
        at, delete = rng.randrange(len(text) + 1), rng.randrange(6)
        insert = "".join(rng.choices("ab-’ \n.今😀", k=rng.randrange(8)))
        texts.append(text[:at] + insert + text[at + delete :])
    step_by_step = await call("editor.js", "countWords", [[text] for text in texts])
    # from nothing each time: then all of it is around the change
    at_once = await call(
        "editor.js", "countWords", [[each] for text in texts for each in ("", text)]
    )
    assert step_by_step == at_once[1::2]
    assert max(step_by_step) > 30


async def test_quotes_are_found_as_models_write_them() -> None:
    """White space and marks may differ; what is not there is not found."""
    text = 'He said "it doesn\'t\nmatter" – and left. (Really?)'
    cases: dict[str, str | None] = {
        "it doesn’t matter": "it doesn't\nmatter",
        "“it doesn't matter”": '"it doesn\'t\nmatter"',
        "matter” - and": 'matter" – and',
        "and left…": "and left",
        "(Really?)": "(Really?)",
        "HE SAID": "He said",
        "he never said": None,
        "": None,
        ".*": None,
    }
    found = await call("editor.js", "locate", [[quote, text] for quote in cases])
    spans = [None if span is None else text[span[0] : span[1]] for span in found]
    assert spans == list(cases.values())


async def test_streamed_feedback_grows_without_flicker() -> None:
    """However far it has come: what was complete stays, no half bracket or quote is ever shown."""
    whole = (
        "[Content] «the ball is not your enemy» A line worth keeping.\n"
        "- [Structure] “So we went” Say how you got there.\n"
        "\n"
        "[Spelling] General care.\n"
        "A line of its own.\n"
        "[Next step] Read it aloud [slowly]."
    )
    prefixes = [whole[:end] for end in range(len(whole) + 1)]
    results = await call("feedback.js", "parseFeedback", [[prefix, False] for prefix in prefixes])
    final = (await call("feedback.js", "parseFeedback", [[whole, True]]))[0]
    assert [(note["criterion"], note["quote"]) for note in final] == [
        ("Content", "the ball is not your enemy"),
        ("Structure", "So we went"),
        ("Spelling", ""),
        ("", ""),
        ("Next step", ""),
    ]
    for prefix, notes in zip(prefixes, results, strict=True):
        for index, note in enumerate(notes):
            assert note["criterion"] == final[index]["criterion"], prefix
            assert note["quote"] == final[index]["quote"], prefix
            assert final[index]["comment"].startswith(note["comment"]), prefix
            if note["complete"]:
                assert note == final[index]


async def test_a_reader_is_asked_only_when_there_is_something_new() -> None:
    """A few words or a comma are not; a sentence is."""
    text = "The first thing I learned from my uncle was patience"
    cases = [
        (["", "Too short."], False),
        (["", text], True),
        ([text, text], False),
        ([text, text + "  \n"], False),
        ([text, text + " and"], False),
        ([text, text + "."], True),
        ([text, text + " and after that I learned to lose"], True),
    ]
    assert await call("editor.js", "isMeaningful", [args for args, _ in cases]) == [
        expected for _, expected in cases
    ]
