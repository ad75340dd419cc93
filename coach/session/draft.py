"""A draft's text and revision, edited by splices whose offsets count UTF-16 code units.

Browsers count strings in UTF-16 code units, Python in code points. The two differ only for
characters beyond U+FFFF (emoji, rare scripts), so a draft without them is spliced directly.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import BadMessage, Conflict, TooLarge
from .wire import Splice


class DraftText:
    """One draft. A refused change leaves text and revision as they were."""

    def __init__(self, *, chars_max: int) -> None:
        self._chars_max = chars_max
        self._text = ""
        self._rev = 0

    @property
    def text(self) -> str:
        """The present text."""
        return self._text

    @property
    def rev(self) -> int:
        """The revision of `text`; 0 is the empty draft nobody has touched."""
        return self._rev

    def replace(self, rev: int, text: str) -> None:
        """Take over the whole text, as after a reconnect.

        Raises:
          Conflict: `rev` is older than what is here.
          TooLarge: the text is longer than `chars_max` code points.
        """
        if rev < self._rev:
            raise Conflict(f"draft is at rev {self._rev}, not older than {rev}")
        self._keep(rev, text)

    def edit(self, rev: int, splices: Sequence[Splice]) -> None:
        """Apply `splices` in order; the draft is then at `rev`, which must be the next one.

        Raises:
          Conflict: an edit is missing in between; the client must send the whole `draft`.
          BadMessage: a splice reaches beyond the text or cuts a surrogate pair in two.
          TooLarge: the result is longer than `chars_max` code points.
        """
        if rev != self._rev + 1:
            raise Conflict(f"draft is at rev {self._rev}, edit is for rev {rev}: send `draft`")
        self._keep(rev, splice(self._text, splices))

    def _keep(self, rev: int, text: str) -> None:
        if len(text) > self._chars_max:
            raise TooLarge(f"a draft may have {self._chars_max} characters")
        self._rev, self._text = rev, text


def splice(text: str, splices: Sequence[Splice]) -> str:
    """Return `text` after `splices`, each applied to the result of the one before.

    Raises:
      BadMessage: offsets beyond the end, or within a surrogate pair.
    """
    if _is_bmp(text) and all(_is_bmp(change.insert) for change in splices):
        for change in splices:
            end = _end(change, len(text))
            text = text[: change.at] + change.insert + text[end:]
        return text
    units = text.encode("utf-16-le")
    for change in splices:
        end = _end(change, len(units) // 2)
        insert = change.insert.encode("utf-16-le")
        units = units[: change.at * 2] + insert + units[end * 2 :]
    try:
        return units.decode("utf-16-le")
    except UnicodeDecodeError:
        raise BadMessage("a splice cuts a surrogate pair in two") from None


def utf16_length(text: str) -> int:
    """Length of `text` as browsers count it, in UTF-16 code units."""
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _end(change: Splice, length: int) -> int:
    end = change.at + change.delete
    if end > length:
        raise BadMessage(f"splice [{change.at}, {change.delete}] beyond the end at {length}")
    return end


def _is_bmp(text: str) -> bool:
    return text.isascii() or utf16_length(text) == len(text)
