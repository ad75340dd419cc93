"""An endpoint's cache of prefixes, for tests that are about something else."""

from __future__ import annotations

from typing import Any, cast

from coach import config
from coach.providers import Warmth


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
