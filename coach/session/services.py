"""What the sessions of one worker share, lent to them by the composition root."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from .. import config
    from ..budget import EndpointBudget, UserLimits
    from ..grading import Queue, Rubric
    from ..providers import Circuit, FirstTokens, Provider
    from .auth import Authority
    from .pacer import Pacer


@attrs.frozen(kw_only=True)
class Route:
    """A provider's endpoint, and what guards it."""

    provider: Provider
    budget: EndpointBudget
    circuit: Circuit
    first_tokens: FirstTokens
    output_tokens_max: int


@attrs.frozen(kw_only=True)
class Services:
    """Everything a session reaches beyond its own socket."""

    settings: config.Settings
    worker: str
    """Name of this worker's mailbox, unique to one run of one process."""
    authority: Authority
    limits: UserLimits
    routes: Sequence[Route]
    """For feedback, in order of preference."""
    queue: Queue
    rubric: Rubric
    pacer: Pacer
