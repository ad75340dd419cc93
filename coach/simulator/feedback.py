"""Feedback."""

from __future__ import annotations

from .essay import essay_of, first_words


def feedback(prompt: str) -> str:
    """Comments on the essay in the prompt."""
    essay = essay_of(prompt)
    quote = first_words(essay)
    middle = first_words(essay, len(essay) // 2)
    return (
        f"[Content] «{quote}» This opening tells the reader what the piece is about.\n"
        f"[Structure] «{middle}» Say how this follows from the paragraph before it.\n"
        f"[Language] «{quote}» Next, read this aloud and cut one word."
    )
