"""Reads a conversation about a draft as its prompt explains it; pure.

The student tells the whole draft, `<essay-mark>…</essay-mark>`, and later what has changed in it:
pairs of `<was-mark>` with a passage, perhaps only its ends, and `<essay-mark>` with what stands
there now. What was changed is put together here to the draft as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

import attrs

_TAG: Final = re.compile(r"<((?:essay|was)(?:-[0-9a-f]{1,32})?)>")
_LEFT_OUT: Final = " … "
_NEW: Final = re.compile(r"\bwhat is new\b", re.IGNORECASE)

TAGGED_MAX: Final = 200
"""Passages of one message that are read; each may cost as much as the essay is long."""

Span = tuple[int, int]


@attrs.frozen
class Reading:
    """What a conversation is about, when its last message has been read."""

    essay: str
    question: str
    """What stands behind the essay in the last message."""
    new: tuple[Span, ...] | None
    """Where the essay has changed with the last message; None: comments on all of it are wanted."""
    said: str
    """All answers so far."""


def read(conversation: Sequence[tuple[str, str]]) -> Reading:
    """Read a conversation; one without any tags is taken to end with the essay itself.

    Args:
      conversation: role and text of each message.
    """
    essay, question, told = "", "", False
    new: list[Span] = []
    for role, text in conversation:
        if role != "user":
            continue
        new.clear()
        question, was = text, None
        for name, content, end in islice(_tagged(text), TAGGED_MAX):
            told, question = True, text[end:]
            if name.startswith("was"):
                was = content
            elif was is None:
                essay = content.strip("\n")
                new[:] = [(0, len(essay))]
            else:
                essay = _replaced(essay, was, content, new)
                was = None
    if not told:
        essay, question = question.strip("\n"), ""
    said = "\n".join(text for role, text in conversation if role == "assistant")
    return Reading(essay, question, tuple(new) if _NEW.search(question) else None, said)


def _tagged(text: str) -> Iterator[tuple[str, str, int]]:
    """Name and content of each pair of tags, and where it ends."""
    at, unclosed = 0, set[str]()
    while (found := _TAG.search(text, at)) is not None:
        name, at = found[1], found.end()
        close = f"</{name}>"
        end = -1 if name in unclosed else text.find(close, at)
        if end < 0:
            unclosed.add(name)
            continue
        content, at = text[at:end], end + len(close)
        yield name, content.removeprefix("\n").removesuffix("\n"), at


def _replaced(essay: str, was: str, now: str, new: list[Span]) -> str:
    """The essay with a passage replaced, and where the new one stands; behind the one before."""
    at = new[-1][1] if new else 0
    start, end = _place_of(was, essay, at)
    now = now.strip() if end < len(essay) else now
    new.append((start, start + len(now)))
    return essay[:start] + now + essay[end:]


def _place_of(was: str, essay: str, at: int) -> Span:
    """Where a passage stands, from `at` on; the end of the essay where it does not."""
    ends = (map(re.escape, part.split()) for part in was.split(_LEFT_OUT, 1))
    pattern = ".*?".join(r"\s+".join(words) for words in ends)
    found = re.compile(pattern, re.DOTALL).search(essay, at) if was.strip() else None
    return found.span() if found is not None else (len(essay), len(essay))
