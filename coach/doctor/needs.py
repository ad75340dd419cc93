"""What a number of writers needs; pure arithmetic on figures that were measured.

The figures are those of docs/benchmarks.md and docs/architecture.md, on one core of a 2-core
machine, rounded up: a faster machine needs less.
"""

from __future__ import annotations

import math
from typing import Final

import attrs

from .. import config
from ..ops import health

WORKER_BYTES: Final = 90 * 1024 * 1024
"""A worker that does nothing."""
SESSION_BYTES: Final = 37 * 1024
"""An idle session, its WebSocket included."""
DRAFT_BYTES: Final = 48 * 1024
"""A draft, what is under way for it, and what may wait for a phone."""
ACCEPTING: Final = 96
"""Connections that come or go beside those of writers: pages, health checks, metrics."""
TURN_S: Final = 30.0
"""Between two turns of one writer."""
ANSWER_EVENTS: Final = 100
"""Pieces of text of one turn's answer."""
EVENT_CPU_S: Final = 36e-6
"""Of a worker, to bring one of them to the student."""
TURN_CPU_S: Final = 4e-3
"""Of a worker, for all else about a turn: the draft, the prompt, admission, the way there."""
TURN_COMMANDS: Final = 4
"""Scripts in Redis: two before a turn's request leaves, two after its answer."""
GRADE_COMMANDS: Final = 24
INPUT_TOKENS: Final = 1_600
OUTPUT_TOKENS: Final = 300
"""Of a turn."""
LOAD: Final = 0.6
"""Share of a core that is planned with: the rest is for bursts."""


@attrs.frozen(kw_only=True)
class Needs:
    """What so many writers need, each asking every TURN_S and submitting once an hour."""

    writers: int
    workers: int
    """Processes, so that none uses more than LOAD of a core."""
    files: int
    """File descriptors of one worker."""
    memory_bytes: int
    """Of all workers."""
    redis_commands_per_s: int
    requests_per_minute: int
    """To providers, grading by three judges included."""
    input_tokens_per_minute: int
    output_tokens_per_minute: int


def needs_of(writers: int, settings: config.Settings) -> Needs:
    """The needs of `writers` (1 or more) under these settings."""
    turns_per_s = writers / TURN_S
    cpu = turns_per_s * (TURN_CPU_S + ANSWER_EVENTS * EVENT_CPU_S)
    workers = max(1, math.ceil(cpu / LOAD))
    grades_per_s = writers / 3_600
    requests = 60 * (turns_per_s + 3 * grades_per_s)
    return Needs(
        writers=writers,
        workers=workers,
        files=files_needed(math.ceil(writers / max(workers, settings.server.workers)), settings),
        memory_bytes=max(workers, settings.server.workers) * WORKER_BYTES
        + writers * (SESSION_BYTES + DRAFT_BYTES),
        redis_commands_per_s=math.ceil(turns_per_s * TURN_COMMANDS + grades_per_s * GRADE_COMMANDS),
        requests_per_minute=math.ceil(requests),
        input_tokens_per_minute=math.ceil(requests * INPUT_TOKENS),
        output_tokens_per_minute=math.ceil(requests * OUTPUT_TOKENS),
    )


def files_needed(sessions: int, settings: config.Settings) -> int:
    """File descriptors of a worker with so many sessions: sockets of students and providers."""
    return sessions + health.files_reserved(settings) + ACCEPTING
