"""Server-sent events, incrementally: bytes in, the data of whole events out; pure.

Only data is of interest: providers repeat the name of an event in its JSON. Any chunking gives the
same events. Lines may end with LF, CR or CRLF, data may have several lines, comments and other
fields are skipped, and what stands unfinished at the end is dropped, as the standard wants it.

Memory: at most EVENT_BYTES_MAX and what one call brings.

Source: WHATWG HTML, "Server-sent events", "Parsing an event stream".
"""

from __future__ import annotations

from typing import Final, final

EVENT_BYTES_MAX: Final = 262_144
_BOM: Final = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """An event does not end within EVENT_BYTES_MAX."""


@final
class EventParser:
    """The events of one response."""

    __slots__ = ("_after_cr", "_begun", "_rest")

    def __init__(self) -> None:
        self._rest = b""  # the unfinished event, its lines ended by LF
        self._after_cr = False  # an LF that comes next belongs to the CR before it
        self._begun = False  # the first event has been split off, and with it the BOM

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the data of every event that they complete, in order.

        Raises:
          EventTooLong: the stream is not worth reading any further.
        """
        if self._after_cr or b"\r" in data:
            data = self._with_lf(data)
        blocks = (self._rest + data if self._rest else data).split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > EVENT_BYTES_MAX:
            raise EventTooLong(f"an event is longer than {EVENT_BYTES_MAX} bytes")
        if blocks and not self._begun:
            self._begun = True
            blocks[0] = blocks[0].removeprefix(_BOM)
        found = []
        for block in blocks:
            event = _data_of(block)
            if event is not None:
                found.append(event)
        return found

    def _with_lf(self, data: bytes) -> bytes:
        if self._after_cr and data:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        self._after_cr = data.endswith(b"\r") or (self._after_cr and not data)
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(block: bytes) -> bytes | None:
    """The data of an event's lines; None where it has none."""
    at = block.find(b"\ndata")
    if (
        at >= 0
        and block.startswith(b": ", at + 5)
        and block.find(b"\n", at + 7) < 0
        and not block.startswith(b"data")
    ):
        return block[at + 7 :]  # the usual shape: a name, then one line of data
    lines = []
    for line in block.split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None
