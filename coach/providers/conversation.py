"""A student and the coach about one draft: the whole draft once, then what has changed; pure.

A draft that is sent whole with every question is paid for again every time, and so are the answers
of before once the oldest is dropped: whatever a provider has cached ends where a prompt differs.
So a conversation only grows. Its first question holds the draft, each later one the sentences that
have changed since, and all that stands before the newest question is read from the cache, for a
tenth of the price. It begins anew when its cache must be gone, or when it has grown so long that
reading it costs more than beginning again.

Source of "mark the newest message of the user, and nothing before it may change": Anthropic,
"Prompt caching", multi-turn conversations.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Final

import attrs

from .marks import harmless, tagged

EARLIER_MAX: Final = 3
"""Answers of before that a conversation begins with; the drafts they were about are left out."""
TURNS_MAX: Final = 20
"""Questions of one conversation."""
STALE_PER_DRAFT: Final = 3.0
STALE_MIN: Final = 8_000
"""A conversation of more characters than this and so many drafts begins anew."""
CHANGED_SHARE_MAX: Final = 0.6
"""A draft of which more has changed is told whole: less to read, and easier to understand."""
CACHE_S: Final = 285.0
"""So long after its last question a conversation is taken to be cached; providers say 5 minutes."""
SENTENCES_MAX: Final = 64
"""More that differ are told as one change: comparing them is quadratic, in the worker's loop."""
PLACE_WORDS: Final = 5
"""A passage of fewer may stand in a draft twice."""
WORDS_SHOWN: Final = 8
"""Of either end of a passage that was replaced."""

_ASK_WHOLE: Final = "Please comment on my draft."
_ASK_NEW: Final = "Please comment on what is new."
_CHANGED: Final = "I have changed my draft."
_AS_BEFORE: Final = "My draft is as it was."
_SENTENCE: Final = re.compile(r"[^.!?…。！？\n]{0,240}(?:[.!?…。！？\n]+[\s\"'”’»)]*)?", re.DOTALL)


@attrs.frozen
class Exchange:
    """A question and its answer."""

    question: tuple[str, ...]
    """Its blocks, byte for byte as they were sent; none is empty."""
    answer: str


@attrs.frozen(kw_only=True)
class Conversation:
    """What was said about one draft. The next question is made by `ask`.

    Memory: the draft, the draft as it was when it was told whole, what has changed since, and the
    answers; about `STALE_PER_DRAFT` drafts and `STALE_MIN` characters at the most.
    """

    exchanges: tuple[Exchange, ...] = ()
    draft: str | None = None
    """As the last question has left it; None: it was not told."""
    asked_s: float = 0.0
    """When the last question was asked."""

    @classmethod
    def after(cls, answers: Sequence[tuple[str | None, str]]) -> Conversation:
        """One that goes on from earlier answers, each with its focus; the draft is not known.

        Answers without text are left out: providers refuse empty messages.
        """
        given = [
            Exchange((_question(_ASK_WHOLE, focus),), answer)
            for focus, answer in answers
            if answer.strip()
        ]
        return cls(exchanges=tuple(given[-EARLIER_MAX:]))

    def ask(self, draft: str, focus: str | None, *, now_s: float, grows: bool = True) -> Question:
        """The next question.

        Args:
          draft: the student's text; may be empty.
          focus: what the student wants to hear about, or None.
          now_s: of the clock that has timed the last one, seconds.
          grows: something is cached, so that going on is cheaper than beginning anew.
        """
        before = self.draft
        if before is None or not grows or self._is_stale(len(draft), now_s):
            start = attrs.evolve(self, exchanges=self._last_answers(), draft=None)
            blocks = (tagged(essay=draft), _question(_ASK_WHOLE, focus))
            return Question(start, blocks, draft, now_s, grows=grows)
        is_new = draft != before and not (focus or "").strip()
        told = _AS_BEFORE if draft == before else _told(before, draft)
        asked = _question(_ASK_NEW if is_new else _ASK_WHOLE, focus)
        return Question(self, (told, asked), draft, now_s, is_new=is_new)

    def _is_stale(self, draft_chars: int, now_s: float) -> bool:
        chars = sum(len(each.answer) + sum(map(len, each.question)) for each in self.exchanges)
        return (
            now_s - self.asked_s > CACHE_S
            or len(self.exchanges) >= TURNS_MAX + EARLIER_MAX
            or chars > STALE_MIN + STALE_PER_DRAFT * draft_chars
        )

    def _last_answers(self) -> tuple[Exchange, ...]:
        """The last answers, each to the bare question."""
        return tuple(
            Exchange(each.question[-1:], each.answer) for each in self.exchanges[-EARLIER_MAX:]
        )


@attrs.frozen
class Question:
    """A question that is about to be asked, or was."""

    before: Conversation
    """What stands before it in the prompt."""
    blocks: tuple[str, ...]
    """What is sent; the last is the question itself."""
    draft: str
    asked_s: float
    is_new: bool = False
    """The answer is about what has changed: earlier comments stand."""
    grows: bool = True
    """Another question will follow that begins with all of this."""

    def answered(self, answer: str) -> Conversation:
        """The conversation with its answer; without text in it, as if it had not been asked."""
        if not answer.strip():
            return self.before
        return Conversation(
            exchanges=(*self.before.exchanges, Exchange(self.blocks, answer)),
            draft=self.draft,
            asked_s=self.asked_s,
        )


def _question(ask: str, focus: str | None) -> str:
    about = harmless(focus or "").strip()
    return f"{ask} I would like to know about: {about}" if about else ask


def _told(before: str, draft: str) -> str:
    """How a draft has become another: the sentences that differ, or all of it."""
    changes = list(_changes(before, draft))
    gone, come = (sum(map(len, texts)) for texts in zip(*changes, strict=True))
    if gone > CHANGED_SHARE_MAX * len(before) or come > CHANGED_SHARE_MAX * len(draft):
        return f"{_CHANGED} Now it reads:\n{tagged(essay=draft)}"
    parts = (tagged(was=_shown(was), essay=new.rstrip("\n")) for was, new in changes)
    return "\n".join((f"{_CHANGED} What has become of it:", *parts))


def _changes(before: str, draft: str) -> Iterator[tuple[str, str]]:
    """Passages and what they have become, in order; no passage is empty but of an empty draft.

    One of few words, or of none since something was put in, takes the sentences before it along,
    so that it can be found.
    """
    was, new = _sentences(before), _sentences(draft)
    first = next(
        (at for at, (one, other) in enumerate(zip(was, new, strict=False)) if one != other),
        min(len(was), len(new)),
    )
    last = 0
    while last < min(len(was), len(new)) - first and was[-1 - last] == new[-1 - last]:
        last += 1
    old_end, new_end = len(was) - last, len(new) - last
    spans = [(first, old_end, first, new_end)]
    if max(old_end, new_end) - first <= SENTENCES_MAX:
        matcher = SequenceMatcher(None, was[first:old_end], new[first:new_end], autojunk=False)
        spans = [
            (first + a, first + b, first + c, first + d)
            for tag, a, b, c, d in matcher.get_opcodes()
            if tag != "equal"
        ]
    for old_from, old_to, new_from, new_to in _anchored(spans, was):
        yield "".join(was[old_from:old_to]), "".join(new[new_from:new_to])


def _anchored(
    spans: Sequence[tuple[int, int, int, int]], was: Sequence[str]
) -> Iterator[tuple[int, int, int, int]]:
    """Widen those whose place would be hard to find, and join what then touches."""
    held: tuple[int, int, int, int] | None = None
    for old_from, old_to, new_from, new_to in spans:
        while old_from and len("".join(was[old_from:old_to]).split()) < PLACE_WORDS:
            old_from, new_from = old_from - 1, new_from - 1  # noqa: PLW2901  the sentence before
        if old_from == old_to and old_to < len(was):
            old_to, new_to = old_to + 1, new_to + 1  # noqa: PLW2901  at the beginning the one behind
        if held is not None and old_from <= held[1]:
            held = (held[0], max(held[1], old_to), held[2], max(held[3], new_to))
            continue
        if held is not None:
            yield held
        held = (old_from, old_to, new_from, new_to)
    if held is not None:
        yield held


def _sentences(text: str) -> list[str]:
    """A text's sentences, each with the white space behind it; together they are the text."""
    return [part for part in _SENTENCE.findall(text) if part]


def _shown(passage: str) -> str:
    """A passage, or only its ends."""
    words = passage.split()
    if len(words) <= 2 * WORDS_SHOWN + 2:
        return passage.strip()
    return f"{' '.join(words[:WORDS_SHOWN])} … {' '.join(words[-WORDS_SHOWN:])}"
