"""Feedback on a draft as the prompt asks for it: at most five short comments, one a line.

Praise comes first, one thing to do next last. A line is `[Criterion] «quote» comment`; the quote
stands verbatim in the draft. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from .essay import Essay, Facet, measure, parts_of
from .facets import facet_of
from .findings import Finding, findings, praises

COMMENTS_MAX: Final = 5
WORDS_A_COMMENT: Final = 60
"""A draft gets one comment between praise and next step for so many words."""
_CRITERION = re.compile(r"^[a-z0-9][a-z0-9-]{0,39} \(([^\n]{1,200}), \d+ %\)$", re.MULTILINE)
_DEFAULT_LABELS: Final[dict[Facet, str]] = {
    "content": "Content",
    "structure": "Structure",
    "language": "Language",
    "correctness": "Spelling, punctuation, grammar",
}
LABEL_CHARACTERS_MAX: Final = 40


def feedback(prompt: str, instructions: str = "") -> str:
    """Comment on the essay in a prompt.

    Args:
      prompt: the essay between its tags, then what the student wants to know.
      instructions: the system prompt, whose rubric gives the criteria their names.
    """
    labels = labels_in(instructions)
    text, question = parts_of(prompt)
    essay = measure(text)
    if not essay.words:
        return (
            f"[{labels['content']}] An empty page is a good place to begin. "
            "Next: write down the one thing your reader should remember."
        )
    return "\n".join(
        f"[{labels[facet]}] «{quote}» {comment}" if quote else f"[{labels[facet]}] {comment}"
        for facet, quote, comment in _comments(essay, question.lower())
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
