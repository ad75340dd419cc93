"""One request and its response at the level of HTTP: what the pool's callers hand in and get."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import attrs

from ..errors import CoachError, ProviderUnavailable

Header = tuple[bytes, bytes]
LossKind = Literal["unreachable", "cut", "stalled"]


class Origin(NamedTuple):
    """Where connections lead; always HTTPS."""

    host: str
    port: int

    @property
    def authority(self) -> str:
        """As it stands in `:authority`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 443 else f"{host}:{self.port}"


@attrs.frozen(kw_only=True, eq=False)
class StreamRequest:
    """An HTTP request whose body is at hand."""

    origin: Origin
    method: str
    path: str
    """With the query; begins with a slash."""
    headers: Sequence[Header]
    """Names in lower case, none of the connection's own (`host`, `connection`, …)."""
    body: bytes = b""


class Receiver(Protocol):
    """Who gets a response while it comes.

    Called from the reader task of the connection, which other streams share: both must return
    quickly. One that raises loses its own stream: it is reset, and the error leaves from the
    methods of `Stream` (a `CoachError` as it is, any other as `ReceiverFailed`).
    """

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins; informational ones (1xx) are left out."""

    def on_data(self, data: bytes) -> None:
        """All that came of the body in one wake-up; one byte or more."""


class StreamError(ProviderUnavailable):
    """A response did not come, or not whole.

    Args:
      message: what happened.
      kind: `unreachable`: not one header has come; `cut`: it broke off; `stalled`: silence for
        longer than allowed.
      unprocessed: the peer has surely not acted on the request, so that it may be sent again.
    """

    def __init__(self, message: str, *, kind: LossKind, unprocessed: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.unprocessed = unprocessed


class ReceiverFailed(CoachError):
    """A receiver raised, which is a bug; its cause is what it raised."""
