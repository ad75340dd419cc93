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
