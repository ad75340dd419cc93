"""Server-sent events: however the bytes are chopped, the events are the same."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.providers.sse import EVENT_BYTES_MAX, EventParser, EventTooLong

LINES = st.lists(
    st.sampled_from(
        [
            b"data: one",
            b"data:two",
            b"data",
            b"data:  three",
            b"event: ping",
            b": comment",
            b"id: 7",
            b"retry",
            b"database: no",
            b"",
            "data: Grüße ✓".encode(),
        ]
    ),
    max_size=12,
)


def reference(lines: list[bytes]) -> list[bytes]:
    """The standard's algorithm, line by line."""
    found: list[bytes] = []
    data: list[bytes] = []
    for line in lines:
        if not line:
            if data:
                found.append(b"\n".join(data))
            data = []
            continue
        field, colon, value = line.partition(b":")
        if field == b"data":
            data.append(value.removeprefix(b" ") if colon else b"")
    return found


def chopped(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(
    LINES,
    st.lists(st.sampled_from([b"\n", b"\r\n", b"\r"]), min_size=14, max_size=14),
    st.booleans(),
    st.lists(st.integers(0, 2000), max_size=20),
)
def test_any_chunking_and_any_line_ends_give_the_events_of_the_standard(
    lines: list[bytes], ends: list[bytes], mark: bool, cuts: list[int]
) -> None:
    lines = [*lines, b"end", b""]  # after the last line end, nothing is pending but a lone CR's LF
    if any(a == b"\r" and b == b"\n" for a, b in pairwise(ends)):
        ends = [ends[0]] * len(ends)  # CR LF would be one line end, not two
    data = b"".join(line + end for line, end in zip(lines, ends, strict=False))
    if mark:
        data = b"\xef\xbb\xbf" + data
    parser = EventParser()
    events = [event for part in chopped(data, cuts) for event in parser.feed(part)]
    assert events == reference(lines)


def test_what_stands_unfinished_at_the_end_is_dropped() -> None:
    parser = EventParser()
    assert parser.feed(b"data: one\n\ndata: two\n") == [b"one"]


def test_an_event_without_end_is_refused() -> None:
    parser = EventParser()
    line = b"data: " + b"x" * 1000 + b"\n"
    for _ in range(EVENT_BYTES_MAX // len(line)):
        parser.feed(line)
    with pytest.raises(EventTooLong):
        parser.feed(line)
