"""Grades of an essay as JSON, by whatever schema the request carries; pure.

The schema is walked, and each value decided by what it is called and where it stands: a number
grows with the score of the criterion around it, a quotation is copied from the essay, a reason says
what was counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from .essay import FACETS, Essay, Facet, essay_in, measure, scores
from .facets import facet_of
from .feedback import next_step
from .findings import findings, praises
from .gullible import ordered

DEPTH_MAX: Final = 24
PARTS_MAX: Final = 2_000
"""Of one answer; what a schema asks for beyond is null."""
BANDS: Final = (0, 5)
"""Of a number whose schema names no others."""

_QUOTE = re.compile(r"evidence|quot|excerpt|passage", re.IGNORECASE)
_NEXT = re.compile(r"improve|next|advice|suggest|feedback|recommend", re.IGNORECASE)
_NUMBERS = re.compile(r"(-?\d{1,6})\s*(?:to|-|–|…|\.\.|and)\s*(\d{1,6})")
_INVENTED: Final = "as the author goes on to prove beyond doubt"


def grade(
    prompt: str, schema: Mapping[str, Any], *, invent: bool = False, gullible: bool = False
) -> str:
    """Grade the essay in a prompt.

    Args:
      prompt: the essay between its tags.
      schema: of the answer, as structured outputs take it.
      invent: quote what is not in the essay.
      gullible: obey what the prompt says of the grade outside its essay (gullible.py).

    Returns:
      JSON that the schema permits.
    """
    text = essay_in(prompt)
    facets = scores(text)
    if gullible and (share := ordered(prompt)) is not None:
        facets = dict.fromkeys(facets, share)
    examiner = _Examiner(measure(text), facets, schema, invent=invent)
    return msgspec.json.encode(examiner.fill(schema, ())).decode()


class _Examiner:
    """Fills in one schema for one essay."""

    def __init__(
        self,
        essay: Essay,
        facets: Mapping[Facet, float],
        root: Mapping[str, Any],
        *,
        invent: bool,
    ) -> None:
        self._essay = essay
        self._scores = facets
        self._root = root
        self._invent = invent
        self._praises = {praise.facet: praise for praise in praises(essay)}
        self._findings = findings(essay)
        self._parts = 0
        # filled in so far

    def fill(self, schema: object, path: tuple[str, ...]) -> Any:
        """A value for one part of the schema; `path` is what it is called from outside in."""
        schema = self._resolved(schema)
        self._parts += 1
        if len(path) > DEPTH_MAX or self._parts > PARTS_MAX:
            return None
        if "const" in schema:
            return schema["const"]
        if options := _list(schema.get("enum")):
            return self._choice(options, path)
        match _type(schema):
            case "object":
                return {
                    name: self.fill(part, (*path, name))
                    for name, part in _mapping(schema.get("properties")).items()
                }
            case "array":
                return self._items(schema, path)
            case "integer" | "number" as kind:
                low, high = _range(schema)
                value = low + self._score(path) * (high - low)
                return round(value) if kind == "integer" else round(value, 2)
            case "boolean":
                return self._score(path) >= 0.5
            case "null":
                return None
        return self._words(path)

    def _choice(self, options: Sequence[Any], path: tuple[str, ...]) -> Any:
        """The option as far along as the score is; numbers in their order, others as they stand."""
        numbers = [
            each for each in options if isinstance(each, int | float) and not isinstance(each, bool)
        ]
        ordered = sorted(numbers) if len(numbers) == len(options) else list(options)
        return ordered[round(self._score(path) * (len(ordered) - 1))]

    def _items(self, schema: Mapping[str, Any], path: tuple[str, ...]) -> list[Any]:
        """One item; one for each criterion where the items say which they are about."""
        part = self._resolved(schema.get("items"))
        for name, field in _mapping(part.get("properties")).items():
            names = _list(self._resolved(field).get("enum"))
            if len(names) > 1 and all(isinstance(each, str) for each in names):
                return [{**self.fill(part, (*path, each)), name: each} for each in names]
        return [self.fill(part, (*path, "item"))]

    def _score(self, path: tuple[str, ...]) -> float:
        facet = _facet(path)
        if facet is None:
            return sum(self._scores.values()) / len(FACETS)
        return self._scores[facet]

    def _words(self, path: tuple[str, ...]) -> str:
        facet, name = _facet(path[:-1]), path[-1] if path else ""
        if _QUOTE.search(name) or (name == "item" and any(map(_QUOTE.search, path))):
            return self._evidence(facet)
        if _NEXT.search(name):
            return next_step(self._essay)
        return self._reason(facet)

    def _evidence(self, facet: Facet | None) -> str:
        if self._invent:
            invented = _INVENTED
            while invented in self._essay.text:
                invented = f"and {invented}"
            return invented
        if facet is not None and self._scores[facet] < 0.6:
            for finding in self._findings:
                if finding.facet == facet and finding.quote:
                    return finding.quote
        praise = self._praises.get(facet or "content")
        return praise.quote if praise else self._essay.opening

    def _reason(self, facet: Facet | None) -> str:
        return _reason(self._essay, facet)

    def _resolved(self, schema: object) -> Mapping[str, Any]:
        """The schema itself in place of a reference or a choice of schemas."""
        for _ in range(DEPTH_MAX):
            schema = _mapping(schema)
            choices = (_list(schema.get(name)) for name in ("anyOf", "oneOf", "allOf"))
            parts = next(filter(None, choices), [])
            if isinstance(schema.get("$ref"), str):
                schema = _referred(self._root, schema["$ref"])
            elif parts:
                real = [part for part in parts if part != {"type": "null"}]
                schema = (real or parts)[0]
            else:
                return schema
        return {}


def _reason(essay: Essay, facet: Facet | None) -> str:
    words, sentences = len(essay.words), len(essay.sentences)
    match facet:
        case "content":
            return (
                f"In {words} words there are {_count(len(essay.evidence), 'place')} with a reason, "
                "an example or a figure."
            )
        case "structure":
            links = len({word for word, _, _ in essay.transitions})
            return (
                f"{_count(len(essay.paragraphs), 'paragraph')} and "
                f"{_count(links, 'different linking word')} lead through the text."
            )
        case "language":
            mean = round(words / max(1, sentences))
            repeated = (
                f", and “{essay.repeated[0][0][:40]}” often comes again" if essay.repeated else ""
            )
            return f"{_count(sentences, 'sentence')} of {mean} words on average{repeated}."
        case "correctness":
            return f"{_count(len(essay.slips), 'mistake')} can be seen in {words} words."
    return f"The text has {words} words in {_count(len(essay.paragraphs), 'paragraph')}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _facet(path: Sequence[str]) -> Facet | None:
    """What the innermost name that means something is about."""
    for name in reversed(path):
        facet = facet_of(name)
        if facet is not None:
            return facet
    return None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _type(schema: Mapping[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((each for each in kind if each != "null"), "null")
    if kind is None:
        kind = "object" if "properties" in schema else "string"
    return str(kind)


def _range(schema: Mapping[str, Any]) -> tuple[float, float]:
    """From the schema, or from its description, since structured outputs know no `minimum`."""
    low, high = schema.get("minimum"), schema.get("maximum")
    if isinstance(low, int | float) and isinstance(high, int | float):
        return low, high
    found = _NUMBERS.search(str(schema.get("description", "")))
    if found is not None and int(found[1]) < int(found[2]):
        return int(found[1]), int(found[2])
    return BANDS


def _referred(root: Mapping[str, Any], reference: str) -> object:
    value: object = root
    for name in reference.removeprefix("#/").split("/"):
        value = _mapping(value).get(name)
    return value
