"""What a run of simulated students is told."""

from __future__ import annotations

from typing import Any, Final

import attrs

from ..errors import ConfigurationError
from .arrivals import WRITERS_MAX, evenly

SECONDS_MAX: Final = 86_400
ORGS_MAX: Final = 1_000


@attrs.frozen(kw_only=True)
class Plan:
    """The class, the server, and how long it takes."""

    url: str = "http://127.0.0.1:8000"
    writers: int = 60
    seconds: float = 60.0
    """From the first arrival until the last essay must be handed in."""
    seed: int = 1
    ramp_s: float = 5.0
    """The students arrive evenly over this time, where `arrivals` does not say otherwise."""
    turn_every_s: float = 9.0
    """Mean time between a student's requests for feedback."""
    grace_s: float = 30.0
    """How long after the end outstanding grades may come."""
    arrivals: tuple[float, ...] = ()
    """When each student arrives, seconds from the beginning; as many as `writers`."""
    time_scale: float = 1.0
    """How much faster the students live: their typing, thinking and pauses, not the server."""
    begun: float = 0.0
    """Share of the first essay that is there when a student arrives."""
    long_pauses: float = 0.0
    """Share of students who put their work aside for 5 to 10 minutes."""
    flaky: float = 0.0
    """Share of students whose phone loses its network now and then."""
    online_s: float = 60.0
    """Mean time between two losses of a flaky phone's network, before the time scale."""
    offline_s: tuple[float, float] = (1.0, 20.0)
    """Range of how long the network is away, before the time scale."""
    half_open: float = 0.0
    """Share of losses of which the server hears nothing: the connection only stands there."""
    persistent: bool = False
    """They come back whatever has ended the connection, as the writer's page does."""
    orgs: int = 1
    """Schools they come from; the second is half as large as the first, the third a third, …"""
    secret: str | None = attrs.field(default=None, repr=False)
    """HS256 key to sign tokens with; None: the server's open mode gives them, all of one org."""
    part: tuple[int, int] = (0, 1)
    """Of several processes with the same plan: this one has every `part[1]`-th student."""

    def __attrs_post_init__(self) -> None:
        """Check the relations between the fields.

        Raises:
          ConfigurationError: a value is out of range; one line that names it.
        """
        if not 1 <= self.writers <= WRITERS_MAX:
            raise ConfigurationError(f"writers must be between 1 and {WRITERS_MAX}")
        if not 2 <= self.seconds <= SECONDS_MAX:
            raise ConfigurationError(f"seconds must be between 2 and {SECONDS_MAX}")
        if not self.arrivals and not 0 <= self.ramp_s <= self.seconds / 2:
            raise ConfigurationError("the ramp must not be longer than half of the run")
        if self.arrivals and len(self.arrivals) != self.writers:
            raise ConfigurationError("there must be as many arrivals as writers")
        if self.arrivals and max(self.arrivals) > self.seconds - 2:
            raise ConfigurationError(
                "seconds: the last student arrives less than 2 s before the end"
            )
        if self.turn_every_s < 1 or self.grace_s < 0:
            raise ConfigurationError("turn-every must be 1 or more, grace 0 or more")
        if not 0.01 <= self.time_scale <= 1_000:
            raise ConfigurationError("time-scale must be between 0.01 and 1000")
        shares = (self.begun, self.long_pauses, self.flaky, self.half_open)
        if not all(0 <= share <= 1 for share in shares):
            raise ConfigurationError("long-pauses, flaky and half-open are shares, between 0 and 1")
        if self.online_s <= 0 or not 0 <= self.offline_s[0] <= self.offline_s[1]:
            raise ConfigurationError("online must be above 0, offline a range from 0 on")
        if not 1 <= self.orgs <= ORGS_MAX:
            raise ConfigurationError(f"orgs must be between 1 and {ORGS_MAX}")
        if self.orgs > 1 and self.secret is None:
            raise ConfigurationError("orgs: the server's open mode knows one; give its --secret")

    def arrivals_s(self) -> tuple[float, ...]:
        """When each student arrives, seconds from the beginning, in the order of their numbers."""
        return self.arrivals or evenly(self.writers, self.ramp_s)

    def as_dict(self) -> dict[str, Any]:
        """Everything that JSON may show: without the secret, and who is who."""
        shown = attrs.asdict(self)
        del shown["secret"], shown["arrivals"], shown["part"]
        return shown
