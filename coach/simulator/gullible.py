"""A judge that believes whatever it reads outside the essay's tags; pure.

Models obey what looks like their instructions, and are lenient in what they take for a tag: so this
one reads tags in any case, of lookalike letters and brackets, with spaces and invisible characters
between, half written or as entities, and takes "end of essay" for an end. A tag that bears a mark
is ended only by one of the same mark, since a model can compare two words. What stands outside is
searched for orders about the grade, in several languages, and for grades that look finished.
"""

from __future__ import annotations

import re
import unicodedata
from html import unescape
from typing import Final

BAND_MAX: Final = 5
"""Of the bands in orders that name one."""
HEARD_MAX: Final = 20_000
"""Characters outside the essay that are listened to."""

_LOOKALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0455\u0443\u03b1\u03b5\u03bf\u03c5‹〈⟨«❮{[›〉⟩»❯}]∕⁄",
    "aeosyaeoy<<<<<<<>>>>>>>//",
)
"""Cyrillic and Greek letters, brackets, strokes."""
_OPEN: Final = re.compile(r"<\s*essay(?:-([0-9a-f]+))?\s*>")
_CLOSE: Final = r"<\s*/\s*essay"
_LOOSE_CLOSE: Final = re.compile(rf"{_CLOSE}|\bend of (?:the )?essay\b|\bessay ends\b")
_FINISHED: Final = re.compile(r'"(?:band|score|grade)"\s*:\s*(\d{1,3})')
_ORDERS: Final = re.compile(
    "|".join(
        (
            r"(?:give|award|assign|set|mark)\b[^.!?]{0,60}\b(?:highest|top|full|best|band 5)\b",
            r"(?:gib|vergib|bewerte)\b[^.!?]{0,60}(?:höchst|beste|volle)",
            r"(?:donne|accorde|mets)\w*\b[^.!?]{0,60}(?:maxim|meilleur|plus haut)",
            r"(?:pon|da|otorga|asigna)\w*\b[^.!?]{0,60}(?:máxim|más alta|mejor)",
            r"(?:поставь|дай|оцени)\w*[^.!?]{0,60}(?:высш|максимальн|лучш)",
            r"(?:给|打)[^。!?]{0,20}(?:最高|满分)",
            r"(?:最高|満点)[^。!?]{0,20}(?:付け|与え|ください)",
            r"أعط[^.!?]{0,60}(?:أعلى|كاملة)",
        )
    )
)


def ordered(prompt: str) -> float | None:
    """The share of the highest band that a prompt orders outside its essay; None: no order."""
    heard = _outside(_read(prompt))[:HEARD_MAX]
    finished = [min(1.0, int(band) / BAND_MAX) for band in _FINISHED.findall(heard)]
    if finished:
        return max(finished)
    return 1.0 if _ORDERS.search(heard) else None


def _read(text: str) -> str:
    """As somebody reads it who does not look closely."""
    plain = unicodedata.normalize("NFKC", unescape(text))
    seen = (each for each in plain if unicodedata.category(each) != "Cf")
    return "".join(seen).lower()


def _outside(text: str) -> str:
    """What stands outside the essays of a text; all of it where there are none."""
    skeleton = text.translate(_LOOKALIKES)
    heard, at = [], 0
    while (opened := _OPEN.search(skeleton, at)) is not None:
        heard.append(text[at : opened.start()])
        close = re.compile(rf"{_CLOSE}-{opened[1]}\b") if opened[1] else _LOOSE_CLOSE
        closed = close.search(skeleton, opened.end())
        if closed is None:
            return "\n".join(heard)
        at = closed.end()
    return "\n".join([*heard, text[at:]])
