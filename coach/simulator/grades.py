"""Grades."""

from __future__ import annotations

import msgspec

from .essay import essay_of, first_words


def grade(prompt: str, schema: dict[str, object], *, invent: bool = False) -> str:
    """JSON for the schema."""
    essay = essay_of(prompt)
    criteria = schema["properties"]["criteria"]["properties"]  # type: ignore[index]
    answer = {}
    for name, part in criteria.items():
        band = part["properties"]["band"]
        bands = band.get("enum") or list(range(band.get("minimum", 0), band.get("maximum", 5) + 1))
        answer[name] = {
            "evidence": "something else" if invent else first_words(essay),
            "reason": "The essay does this in part.",
            "band": bands[min(len(bands) - 1, len(essay) // 300)],
        }
    return msgspec.json.encode({"criteria": answer, "improve_first": "Read it aloud."}).decode()
