"""An endpoint's cache of prefixes, for tests that are about something else."""

from __future__ import annotations

from typing import Any, cast

from coach import config
from coach.providers import Terms, Warmth


def no_warmth() -> Warmth:
    """Of an endpoint that caches nothing: nobody waits."""
    return Warmth(
        cast("Any", None),
        endpoint="e",
        model="m",
        terms=None,
        settings=config.Cache(),
        worker="w",
    )


def unshared_warmth() -> Warmth:
    """Of an endpoint that caches, and in which nobody leads."""
    return Warmth(
        cast("Any", None),
        endpoint="e",
        model="m",
        terms=Terms(
            ttl_s=300.0, tokens_min=1_024, counts_at_start=True, spares_quota=True, may_ping=False
        ),
        settings=config.Cache(single_flight=False),
        worker="w",
    )
