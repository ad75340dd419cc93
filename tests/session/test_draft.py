"""Drafts: splices as browsers count them, revisions, limits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.errors import BadMessage, Conflict, TooLarge
from coach.session.draft import DraftText, splice, utf16_length
from coach.session.wire import Splice

TEXT = st.text(alphabet=st.sampled_from("ab é\n中😀𝔘"), max_size=40)


def utf16(text: str) -> list[bytes]:
    """The text as a browser holds it: a list of code units."""
    data = text.encode("utf-16-le")
    return [data[i : i + 2] for i in range(0, len(data), 2)]


@st.composite
def edits(draw: st.DrawFn) -> tuple[str, list[Splice], str]:
    """A text, splices at character boundaries, and the text a browser would then hold."""
    start = text = draw(TEXT)
    splices = []
    for _ in range(draw(st.integers(0, 4))):
        low = draw(st.integers(0, len(text)))
        high = draw(st.integers(low, len(text)))
        insert = draw(TEXT)
        splices.append(Splice(len(utf16(text[:low])), len(utf16(text[low:high])), insert))
        text = text[:low] + insert + text[high:]
    return start, splices, text


@given(edits())
def test_splices_give_what_the_browser_holds(case: tuple[str, list[Splice], str]) -> None:
    start, splices, expected = case
    assert splice(start, splices) == expected


@given(TEXT, st.integers(0, 60), st.integers(0, 60), TEXT)
def test_any_single_splice_is_exact_or_refused(
    text: str, at: int, delete: int, insert: str
) -> None:
    """Also offsets that no honest client would send: the result is the browser's, or an error."""
    units = utf16(text)
    change = Splice(at, delete, insert)
    if at + delete > len(units):
        with pytest.raises(BadMessage):
            splice(text, [change])
        return
    held = b"".join([*units[:at], *utf16(insert), *units[at + delete :]])
    try:
        expected = held.decode("utf-16-le")
    except UnicodeDecodeError:
        with pytest.raises(BadMessage):
            splice(text, [change])
    else:
        assert splice(text, [change]) == expected


@given(TEXT)
def test_utf16_length_is_the_browsers(text: str) -> None:
    assert utf16_length(text) == len(utf16(text))


def test_edits_come_in_order_and_a_gap_is_a_conflict() -> None:
    draft = DraftText(chars_max=100)
    draft.edit(1, [Splice(0, 0, "Hello")])
    with pytest.raises(Conflict, match="send `draft`"):
        draft.edit(3, [Splice(0, 0, "lost")])
    draft.edit(2, [Splice(5, 0, " there")])
    assert (draft.rev, draft.text) == (2, "Hello there")


def test_a_refused_edit_changes_nothing() -> None:
    draft = DraftText(chars_max=5)
    draft.edit(1, [Splice(0, 0, "12345")])
    with pytest.raises(TooLarge):
        draft.edit(2, [Splice(0, 0, "6")])
    with pytest.raises(BadMessage):
        draft.edit(2, [Splice(5, 1, "")])
    assert (draft.rev, draft.text) == (1, "12345")


def test_the_whole_text_replaces_unless_it_is_older() -> None:
    draft = DraftText(chars_max=100)
    draft.replace(7, "seven")
    with pytest.raises(Conflict):
        draft.replace(6, "six")
    draft.edit(8, [Splice(0, 5, "eight")])
    assert draft.text == "eight"


@given(edits(), st.data())
def test_any_chop_of_the_edits_gives_the_whole(
    case: tuple[str, list[Splice], str], data: st.DataObject
) -> None:
    """One edit with all splices, or many edits with some each: the draft is the same."""
    start, splices, expected = case
    draft = DraftText(chars_max=10_000)
    draft.replace(1, start)
    while splices:
        count = data.draw(st.integers(1, len(splices)))
        draft.edit(draft.rev + 1, splices[:count])
        splices = splices[count:]
    assert draft.text == expected


@given(TEXT)
def test_typed_character_by_character_it_is_the_text(text: str) -> None:
    draft = DraftText(chars_max=100)
    for index, character in enumerate(text):
        draft.edit(index + 1, [Splice(len(utf16(text[:index])), 0, character)])
    assert draft.text == text


@pytest.mark.parametrize(
    "change",
    [Splice(1, 0, "x"), Splice(0, 1, ""), Splice(1, 1, ""), Splice(1, 2, "y")],
    ids=["between", "first half", "second half", "beyond"],
)
def test_a_surrogate_pair_cut_in_two_is_refused_and_changes_nothing(change: Splice) -> None:
    draft = DraftText(chars_max=100)
    draft.edit(1, [Splice(0, 0, "😀b")])
    with pytest.raises(BadMessage, match="surrogate"):
        draft.edit(2, [change])
    assert (draft.rev, draft.text) == (1, "😀b")


def test_what_counts_is_the_text_after_the_whole_edit() -> None:
    """A browser may delete a pair in two steps; nobody sees the text in between."""
    assert splice("a😀b", [Splice(2, 1, ""), Splice(1, 1, "")]) == "ab"


def test_the_limit_counts_characters_as_people_do() -> None:
    draft = DraftText(chars_max=3)
    draft.replace(1, "😀😀😀")
    with pytest.raises(TooLarge, match="3 characters"):
        draft.edit(2, [Splice(6, 0, "😀")])
