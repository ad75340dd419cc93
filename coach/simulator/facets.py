"""Which facet of an essay a name is about: criteria of rubrics, what students ask for; pure."""

from __future__ import annotations

import re
from typing import Final

from .essay import FACETS, Facet

_KEYS: Final[dict[Facet, tuple[str, ...]]] = {
    # beginnings of words
    "correctness": (
        *("spell", "grammar", "punctuat", "convention", "mechanic", "correct", "accura"),
        *("mistake", "error", "comma", "typo", "orthograph", "capital"),
    ),
    "structure": (
        *("structur", "organi", "paragraph", "cohe", "order", "transition", "flow", "link"),
        *("opening", "introduc", "beginning", "ending", "conclu", "sequenc", "plan"),
    ),
    "language": (
        *("languag", "style", "vocab", "word", "voice", "sentence", "tone", "express", "fluen"),
        *("lexic", "repet", "repeat", "variety", "rhythm"),
    ),
    "content": (
        *("content", "idea", "argument", "evidence", "task", "purpose", "development", "example"),
        *("reason", "claim", "thesis", "topic", "analysis", "convinc", "detail", "message"),
    ),
}


def facet_of(name: str) -> Facet | None:
    """The facet with most words of `name`; None where it has none. Earlier in the table wins."""
    words = re.findall(r"[a-z]+", name.lower())
    hits = {facet: sum(word.startswith(_KEYS[facet]) for word in words) for facet in _KEYS}
    best = max(_KEYS, key=lambda facet: hits[facet])
    return best if hits[best] else None


assert set(_KEYS) == set(FACETS)
