"""Measuring an essay."""

from __future__ import annotations

import re


def essay_of(prompt: str) -> str:
    """The essay in a prompt: between the last `<essay>` and the `</essay>` after it."""
    start = prompt.rfind("<essay>")
    if start < 0:
        return prompt
    start += len("<essay>")
    end = prompt.find("</essay>", start)
    return prompt[start : end if end >= 0 else len(prompt)].strip("\n")


def first_words(essay: str, at: int = 0) -> str:
    """Up to eight words."""
    found = re.search(r"\S+(?:[^\S\n]+\S+){0,7}", essay[at:])
    return found.group() if found else ""
