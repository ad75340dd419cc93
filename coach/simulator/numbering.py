"""Deltas that say which they are, so that who reads them knows what is missing; pure.

A mark stands before each delta's text: the answer's id, the delta's number, and how many there are.
However deltas were joined on their way, the reader sees each once and in order, or counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import attrs

MARK: Final = re.compile(r"\u2039([\w-]+)\.(\d+)/(\d+)\u203a")


def numbered(pieces: Sequence[str], answer: str) -> tuple[str, ...]:
    """The pieces of `answer`, each with its mark."""
    many = len(pieces)
    return tuple(
        f"\u2039{answer}.{number}/{many}\u203a{piece}" for number, piece in enumerate(pieces)
    )


@attrs.define
class Reader:
    """Reads one answer, in however many parts."""

    lost: int = 0
    """Deltas that should have come before one that has come, or before the end."""
    doubled: int = 0
    """Deltas that came again, or belong to another answer."""
    _answer: str | None = None
    _next: int = 0
    _many: int = 0

    def read(self, text: str) -> None:
        """The next part of the answer. Text without marks is not counted."""
        for answer, number, many in MARK.findall(text):
            if self._answer is None:
                self._answer, self._many = answer, int(many)
            if answer != self._answer or int(number) < self._next:
                self.doubled += 1
                continue
            self.lost += int(number) - self._next
            self._next = int(number) + 1

    def begin_anew(self) -> None:
        """What was read is void; another answer, or the same from its beginning, follows."""
        self._answer, self._next, self._many = None, 0, 0

    def end(self) -> None:
        """The answer is complete, it was said."""
        self.lost += self._many - self._next
        self._next = self._many
