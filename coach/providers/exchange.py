"""One request and its response at the level of HTTP: what the pool's callers hand in and get."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple, Protocol

import attrs

from ..errors import CoachError, ProviderUnavailable

Header = tuple[bytes, bytes]
LossKind = Literal["unreachable", "cut", "stalled"]

_METHOD: Final = re.compile(r"[A-Z]+")
_PATH: Final = re.compile(r"/[\x21-\x7e]*")
_NAME: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE: Final = re.compile(
    rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?"
)
OF_CONNECTION: Final = frozenset(
    [b"host", b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"]
)
"""Headers that an HTTP/2 request must not have (RFC 9113 section 8.2.2), or has as `:authority`."""


class Origin(NamedTuple):
    """Where connections lead."""

    host: str
    port: int
    secure: bool = True
    """HTTPS; else HTTP/1.1 in the clear, as a model server on this machine speaks it."""

    @property
    def scheme(self) -> bytes:
        """As it stands in `:scheme`."""
        return b"https" if self.secure else b"http"

    @property
    def authority(self) -> str:
        """As it stands in `:authority`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.secure else 80) else f"{host}:{self.port}"


@attrs.frozen(kw_only=True, eq=False)
class StreamRequest:
    """An HTTP request whose body is at hand.

    Raises:
      ValueError: it cannot be sent as it is. Found out here, it costs no connection.
    """

    origin: Origin
    method: str
    path: str
    """With the query; begins with a slash."""
    headers: Sequence[Header]
    """Names in lower case, none of OF_CONNECTION."""
    body: bytes = b""

    def __attrs_post_init__(self) -> None:
        """Check every character."""
        if not _METHOD.fullmatch(self.method) or not _PATH.fullmatch(self.path):
            raise ValueError(f"{self.method!r} {self.path!r} is not a request")
        for name, value in self.headers:
            if not _NAME.fullmatch(name) or name in OF_CONNECTION or not _VALUE.fullmatch(value):
                raise ValueError(f"the header {name!r} cannot be sent")  # its value may be secret


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
