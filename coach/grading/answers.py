"""What a judge answered, checked against the rubric and the essay. Pure.

A judge may be wrong about an essay, but not about what stands in it: every evidence quote must be
found there. Quotes are compared with white space, quotation marks, dashes and invisible characters
made equal, since models retype them; letters, case and word order must be the essay's own.
"""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final

import attrs
import msgspec

from .records import Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rubric import Rubric

ANSWER_BYTES_MAX: Final = 65_536
EVIDENCE_CHARS_MAX: Final = 400
REASON_CHARS_MAX: Final = 600
PROBLEMS_MAX: Final = 8

_QUOTES: Final = dict.fromkeys(map(ord, "“”„‟«»″〝〞＂"), '"') | dict.fromkeys(
    map(ord, "‘’‚‛‹›′`´＇"), "'"
)
_DASHES: Final = dict.fromkeys(map(ord, "‐‑‒–—―−"), "-")
_INVISIBLE: Final = dict.fromkeys(map(ord, "\u00ad\u200b\u200c\u200d\u2060\ufeff"))
_TABLE: Final = {**_QUOTES, **_DASHES, **_INVISIBLE, ord("…"): "..."}
_SPACE: Final = re.compile(r"\s+")


class Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A judge on one criterion."""

    band: int
    evidence: str
    reason: str


class Answer(msgspec.Struct, frozen=True):
    """A judge's checked answer, as the record keeps it for later attempts."""

    criteria: dict[str, Judgement]
    """By criterion: exactly the rubric's, in its order."""
    improve_first: str
    usage: Usage = Usage()
    """What it took to get it, a repair included."""
    provider: str = ""
    """Where it was asked, which need not be the judge's own endpoint."""
    model: str = ""
    """What answered, as the provider says."""


class _Said(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    criteria: dict[str, Judgement]
    improve_first: str


@attrs.frozen
class Problem:
    """What is wrong with an answer."""

    told: str
    """To the judge: a sentence of ours. What the judge has said, an essay may have put into its
    mouth, and here it would stand outside the essay's tags."""
    said: str = ""
    """To operators: what the judge has said."""

    def __str__(self) -> str:
        """For operators."""
        return f"{self.told} ({self.said})" if self.said else self.told


class InvalidAnswer(Exception):
    """The answer cannot be used."""

    def __init__(self, problems: Sequence[Problem], *, evidence_missing: bool = False) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)
        self.evidence_missing = evidence_missing
        """A quote does not stand in the essay."""


def check_answer(text: str, rubric: Rubric, essay: str) -> Answer:
    """Read a judge's JSON.

    Args:
      text: what the judge wrote, the JSON alone.
      rubric: whose criteria must be answered, all of them and no others, bands in range.
      essay: where the evidence must stand.

    Raises:
      InvalidAnswer: it is not usable; with everything that is wrong with it, up to a bound.
    """
    if len(text.encode("utf-8", "replace")) > ANSWER_BYTES_MAX:
        raise InvalidAnswer([Problem("The answer is far too long.")])
    try:
        said = msgspec.json.decode(text, type=_Said)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        unreadable = Problem("The answer is not JSON of the schema.", str(error))
        raise InvalidAnswer([unreadable]) from None
    haystack = normalise(essay)
    names = [criterion.name for criterion in rubric.criteria]
    problems = [
        Problem("There is no such criterion as one that was judged.", repr(name[:40]))
        for name in said.criteria
        if name not in names
    ]
    evidence_missing = False
    criteria: dict[str, Judgement] = {}
    for criterion in rubric.criteria:
        judgement = said.criteria.get(criterion.name)
        if judgement is None:
            problems.append(Problem(f"Criterion {criterion.name} is missing."))
            continue
        if not 0 <= judgement.band <= criterion.band_max:
            problems.append(
                Problem(
                    f"Criterion {criterion.name}: band {judgement.band} is not one of "
                    f"0 to {criterion.band_max}."
                )
            )
        if (problem := _evidence_problem(judgement.evidence, haystack)) is not None:
            evidence_missing = True
            told = f"Criterion {criterion.name}: {problem}"
            problems.append(Problem(told, repr(judgement.evidence[:120])))
        criteria[criterion.name] = msgspec.structs.replace(
            judgement,
            evidence=judgement.evidence.strip(),
            reason=judgement.reason.strip()[:REASON_CHARS_MAX],
        )
    if problems:
        raise InvalidAnswer(problems[:PROBLEMS_MAX], evidence_missing=evidence_missing)
    return Answer(criteria=criteria, improve_first=said.improve_first.strip()[:REASON_CHARS_MAX])


def kept_answer(data: bytes, rubric: Rubric) -> Answer | None:
    """Read what `Queue.save` kept; None where it is not for this rubric (it changed since)."""
    try:
        answer = msgspec.json.decode(data, type=Answer)
    except msgspec.DecodeError:
        return None
    fits = list(answer.criteria) == [criterion.name for criterion in rubric.criteria] and all(
        0 <= answer.criteria[criterion.name].band <= criterion.band_max
        for criterion in rubric.criteria
    )
    return answer if fits else None


def normalise(text: str) -> str:
    """Make equal what models retype: white space, quotation marks, dashes, invisible characters.

    Idempotent. Composed and decomposed letters become the same (NFC).
    """
    # Twice, since dropping an invisible character may bring together what composes.
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).translate(_TABLE))
    return _SPACE.sub(" ", text).strip()


def stands_in(quote: str, essay: str) -> bool:
    """Whether the essay holds the quote, both made equal by `normalise`."""
    return _evidence_problem(quote, normalise(essay)) is None


def _evidence_problem(quote: str, haystack: str) -> str | None:
    if len(quote) > EVIDENCE_CHARS_MAX:
        return "the evidence is too long; quote one passage of at most 40 words."
    needle = normalise(quote)
    if not any(map(str.isalnum, needle)):
        return "the evidence is empty; copy a passage from the essay."
    # Judges like to put their quote in quotation marks, or to end it with an ellipsis.
    for candidate in (needle, needle.strip("\"'").strip(), needle.strip("\"'. ")):
        if candidate and candidate in haystack:
            return None
    return "the evidence does not stand in the essay."
