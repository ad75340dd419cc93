"""What the sessions of one worker share, lent to them by the composition root."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

import attrs

from ..budget import Ungoverned

if TYPE_CHECKING:
    from .. import config
    from ..budget import EndpointBudget, LocalLimits, UserLimits
    from ..grading import AtOnce, Queue, Rubric
    from ..ops import Costs, Flag, Flags
    from ..providers import Circuit, FirstTokens, Provider, Pseudonyms, Warmth
    from .auth import Authority
    from .pacer import Pacer

UNGOVERNED: Final = Ungoverned()


@attrs.frozen(kw_only=True)
class Route:
    """A provider's endpoint, and what guards it."""

    provider: Provider
    budget: EndpointBudget | Ungoverned
    circuit: Circuit
    warmth: Warmth
    first_tokens: FirstTokens
    output_tokens_max: int
    unpooled: Provider
    """The same endpoint over a connection for each request; for whom the flag `pool` is off."""

    def without(self, off: Collection[Flag]) -> Route:
        """The same without the parts of coach that are off."""
        route = self
        if "pool" in off:
            route = attrs.evolve(route, provider=self.unpooled)
        if "backpressure" in off:
            route = attrs.evolve(route, budget=UNGOVERNED)
        return route


@attrs.frozen(kw_only=True)
class Services:
    """Everything a session reaches beyond its own socket."""

    settings: config.Settings
    worker: str
    """Name of this worker's mailbox, unique to one run of one process."""
    authority: Authority
    limits: UserLimits
    local_limits: LocalLimits
    """For whom the flag `shared_limits` is off."""
    routes: Sequence[Route]
    """For feedback, in order of preference."""
    queue: Queue
    at_once: AtOnce
    """For whom the flag `queue` is off."""
    rubric: Rubric
    costs: Costs
    pacer: Pacer
    flags: Flags
    pseudonyms: Pseudonyms

    @property
    def converses(self) -> bool:
        """Questions build on what the preferred provider has cached of the ones before."""
        return self.settings.cache.conversations and self.routes[0].warmth.terms is not None

    def limits_of(self, user: str) -> UserLimits | LocalLimits:
        """The limits by which a user is counted."""
        return self.limits if self.flags.is_on("shared_limits", user) else self.local_limits
