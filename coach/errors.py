"""Every error coach raises on purpose, by who has to act on it.

Each class carries the wire code (DESIGN: protocol `coach.v1`) that a client sees when the error
ends a request. Rooms add subclasses of their own beside the code that raises them.
"""

from __future__ import annotations

from typing import ClassVar, Literal, TypeVar, cast

E = TypeVar("E", bound=BaseException)

Code = Literal[
    "bad_message",
    "too_large",
    "unauthenticated",
    "rate_limited",
    "overloaded",
    "provider_unavailable",
    "cancelled",
    "interrupted",
    "conflict",
    "forbidden",
    "internal",
]


class CoachError(Exception):
    """Base of every expected (operating) error; `str(error)` is fit for the one who must act."""

    code: ClassVar[Code] = "internal"
    retry_after_s: float | None = None
    """Seconds after which the same request may succeed, where that is known."""


def first_error(error: BaseExceptionGroup[E]) -> E:
    """The first of an exception group's leaves, however deep."""
    first: BaseException = error
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return cast("E", first)


class ConfigurationError(CoachError):
    """The operator must change a setting; the message is one line that says which and how."""


class BadMessage(CoachError):
    """The client sent something that is not the protocol."""

    code = "bad_message"


class TooLarge(CoachError):
    """The client sent more than a limit ever allows; the message names the limit."""

    code = "too_large"


class Unauthenticated(CoachError):
    """No valid token: the client must get a new one."""

    code = "unauthenticated"


class Forbidden(CoachError):
    """A valid token, but not for this."""

    code = "forbidden"


class Conflict(CoachError):
    """The request contradicts what the server already holds."""

    code = "conflict"


class RateLimited(CoachError):
    """The user's or the org's own limit is reached."""

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float | None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Overloaded(CoachError):
    """Coach itself, or its Redis, cannot take this now."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ProviderUnavailable(CoachError):
    """No provider could answer."""

    code = "provider_unavailable"

    def __init__(self, message: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
