"""What the simulator counts, as `GET /stats` shows it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal

import attrs

SAMPLES: int = 4_096
"""Lateness is that of the last so many ticks (about 40 s at full load)."""

Kind = Literal["feedback", "judge"]
KINDS: Final[tuple[Kind, ...]] = ("feedback", "judge")


@attrs.define
class Sums:
    """Tokens of the requests of one kind that were let in, answered to their ends or not."""

    let_in: int = 0
    input_tokens: int = 0
    """Neither read from nor written to the cache."""
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    """As far as it was sent."""


@attrs.define
class Statistics:
    """Counters since the start, unless they say otherwise."""

    requests: int = 0
    """Asked of the model, however answered."""
    judge_requests: int = 0
    """Those with a JSON schema."""
    streams_open: int = 0
    """Requests being answered now."""
    streams_peak: int = 0
    streams_finished: int = 0
    """Answered to the end as intended, faults included."""
    streams_cancelled: int = 0
    """RST_STREAM by the client."""
    streams_lost: int = 0
    """Their connection went away."""
    connections_open: int = 0
    connections_peak: int = 0
    handshakes: int = 0
    handshakes_failed: int = 0
    resets_sent: int = 0
    rate_limited: int = 0
    """429s sent."""
    errors_sent: int = 0
    """Answers with any status of 400 or more, 429s included."""
    input_tokens: int = 0
    """Neither read from nor written to the cache."""
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    sums: dict[Kind, Sums] = attrs.field(factory=lambda: {kind: Sums() for kind in KINDS})
    """The same by kind of request; `/stats` has them as `feedback_input_tokens` and so on."""
    events_sent: int = 0
    """Server-sent events."""
    batches: int = 0
    batch_requests: int = 0
    """Of all batches, however they ended."""
    bytes_sent: int = 0
    """After encryption."""
    writes: int = 0
    """Send system calls."""
    late_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES), repr=False)
    # for each tick that fired: from the time it was due until its bytes were with the kernel
    ttft_s: deque[float] = attrs.field(factory=lambda: deque(maxlen=SAMPLES), repr=False)
    # for each streamed answer: the time to the first token that was drawn for it

    def opened(self) -> None:
        """A request begins to be answered."""
        self.streams_open += 1
        self.streams_peak = max(self.streams_peak, self.streams_open)

    def connected(self) -> None:
        """A connection has been accepted."""
        self.connections_open += 1
        self.connections_peak = max(self.connections_peak, self.connections_open)

    def as_json(self) -> dict[str, float]:
        """Flat: one number each; times in milliseconds, `cpu_s` is this whole process's."""
        numbers: dict[str, float] = {
            field.name: getattr(self, field.name)
            for field in attrs.fields(Statistics)
            if field.name not in ("late_s", "ttft_s", "sums")
        }
        for kind, sums in self.sums.items():
            numbers |= {f"{kind}_{name}": value for name, value in attrs.asdict(sums).items()}
        numbers["cpu_s"] = round(time.process_time(), 4)
        for name, values in (("late_ms", self.late_s), ("ttft_ms", self.ttft_s)):
            for percent, value in zip((50, 95), percentiles(values, (50, 95)), strict=True):
                numbers[f"{name}_p{percent}"] = round(value * 1_000, 3)
        return numbers


def percentiles(values: Sequence[float] | deque[float], percents: Sequence[int]) -> list[float]:
    """Nearest-rank percentiles; zeros when there are no values."""
    ordered = sorted(values)
    if not ordered:
        return [0.0 for _ in percents]
    return [ordered[max(0, -(-len(ordered) * percent // 100) - 1)] for percent in percents]
