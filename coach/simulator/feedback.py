"""Feedback on a draft as the prompt asks for it: at most five short comments, one a line.

Praise comes first, one thing to do next last. Of what is new in a draft there are one or two, and
nothing that was said before. A line is `[Criterion] «quote» comment`; the quote stands verbatim in
the draft. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .essay import Essay, Facet, measure
from .facets import facet_of
from .findings import Finding, findings, praises
from .reading import Reading, read

COMMENTS_MAX: Final = 5
WORDS_A_COMMENT: Final = 60
"""A draft gets one comment between praise and next step for so many words."""
MUCH_NEW_WORDS: Final = 40
"""Where at least so many are new, there are two comments."""
_CRITERION = re.compile(r"^[a-z0-9][a-z0-9-]{0,39} \(([^\n]{1,200}), \d+ %\)$", re.MULTILINE)
_DEFAULT_LABELS: Final[dict[Facet, str]] = {
    "content": "Content",
    "structure": "Structure",
    "language": "Language",
    "correctness": "Spelling, punctuation, grammar",
}
LABEL_CHARACTERS_MAX: Final = 40


def feedback(conversation: Sequence[tuple[str, str]], instructions: str = "") -> str:
    """Comment on the essay of a conversation.

    Args:
      conversation: role and text of each message; the last is the student's question.
      instructions: the system prompt, whose rubric gives the criteria their names.
    """
    labels = labels_in(instructions)
    reading = read(conversation)
    essay = measure(reading.essay)
    if not essay.words:
        return (
            f"[{labels['content']}] An empty page is a good place to begin. "
            "Next: write down the one thing your reader should remember."
        )
    if reading.new is None:
        comments = _comments(essay, reading.question.lower())
    else:
        comments = _comments_on_new(essay, reading)
    return "\n".join(
        f"[{labels[facet]}] «{quote}» {comment}" if quote else f"[{labels[facet]}] {comment}"
        for facet, quote, comment in comments
    )


def labels_in(instructions: str) -> dict[Facet, str]:
    """What a rubric calls what is measured here; lines `name (Label, 35 %)`."""
    labels = dict(_DEFAULT_LABELS)
    named: set[Facet] = set()
    for label in _CRITERION.findall(instructions):
        facet = facet_of(label)
        if facet is not None and facet not in named:
            named.add(facet)
            labels[facet] = re.sub(r"[\[\]]", "", label)[:LABEL_CHARACTERS_MAX].strip()
    return labels


def next_step(essay: Essay) -> str:
    """What to improve first, as a sentence to the student."""
    found = findings(essay)
    if not found:
        return "Write down the one thing your reader should remember."
    step = found[0].step
    where = f" Begin at «{found[0].quote}»." if found[0].quote else ""
    return f"{step[0].upper()}{step[1:]}{where}"


def _comments(essay: Essay, question: str) -> list[tuple[Facet, str, str]]:
    found = _asked_first(findings(essay), question)
    praise, quotes = praises(essay), set[str]()
    first = next((each for each in praise if found[0].quote != each.quote), praise[0])
    quotes |= {first.quote, found[0].quote}
    amount = min(COMMENTS_MAX - 2, len(essay.words) // WORDS_A_COMMENT)
    middle: list[Finding] = []
    for finding in found[1:]:
        if len(middle) < amount and finding.quote not in quotes:
            quotes.add(finding.quote)
            middle.append(finding)
    middle.sort(key=lambda finding: essay.text.find(finding.quote))
    comments = [(first.facet, first.quote, first.comment)]
    comments += [(finding.facet, finding.quote, finding.comment) for finding in middle]
    next_one = found[0]
    said = f"{next_one.comment} " if next_one.facet == "correctness" else ""
    comments.append((next_one.facet, next_one.quote, f"{said}Next: {next_one.step}"))
    return comments


def _comments_on_new(essay: Essay, reading: Reading) -> list[tuple[Facet, str, str]]:
    """Of what is new the weightiest, as far as it was not said."""
    spans = reading.new or ()
    words = sum(any(a <= word.start < b for a, b in spans) for word in essay.words)
    unsaid = [each for each in findings(essay) if each.comment not in reading.said]
    fresh = [each for each in unsaid if _stands_in(each.quote, essay.text, spans)]
    at = max((b for _, b in spans), default=0)
    comments = [(each.facet, each.quote, each.comment) for each in fresh[:2]]
    if not comments:
        quote = essay.quote(max(0, at - 1))
        comments = [("content", quote, "This takes your thought further.")]
    comments = comments[: 2 if words >= MUCH_NEW_WORDS else 1]
    facet, quote, comment = comments[-1]
    step = next((each.step for each in fresh[len(comments) - 1 :]), None) or "go on from here."
    comments[-1] = (facet, quote, f"{comment} Next: {step}")
    return comments


def _stands_in(quote: str, text: str, spans: Sequence[tuple[int, int]]) -> bool:
    at = text.find(quote) if quote else -1
    return at >= 0 and any(at < end and start < at + len(quote) for start, end in spans)


def _asked_first(found: Sequence[Finding], question: str) -> list[Finding]:
    """What the student asked about comes before what weighs more."""
    asked = set(re.findall(r"[a-z\-]+", question)) - _NOT_ASKED
    if not asked:
        return list(found)
    facet = facet_of(" ".join(sorted(asked)))

    def rank(finding: Finding) -> float:
        named = bool(asked & set(finding.topic.split()))
        return finding.weight + 2.0 * named + 1.0 * (finding.facet == facet)

    return sorted(found, key=rank, reverse=True)


_NOT_ASKED: Final = frozenset(
    ("please", "comment", "on", "my", "draft", "i", "would", "like", "to", "know", "about", "words")
)
