"""What a request asks of an endpoint, and what the endpoint allows: the pure rules."""

from __future__ import annotations

from typing import Final, Literal

import attrs

Lane = Literal["interactive", "submission", "background"]

LANES: Final[tuple[Lane, ...]] = ("interactive", "submission", "background")
"""Most urgent first."""


@attrs.frozen
class Ask:
    """What one request may use, or has used: tokens. One request is implied."""

    input: int
    """Uncached input and cache writes."""
    output: int
