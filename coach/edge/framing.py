"""Cuts what a client sends into HTTP/1.1 requests, head by head, and says where each one goes.

No sockets and no clock in here. The grammar is h11's, which is hypercorn's too: edge and hypercorn
cannot disagree about where a request ends, which is what request smuggling lives on. What h11
tolerates but two parsers may read differently is refused: bare line feeds in a head, and a length
given twice (RFC 9112 sections 2.2 and 6.3).

Memory bound: `head_bytes_max` and what was received since the last call, twice (h11 holds a copy).
"""

from __future__ import annotations

import re
from typing import Final, Literal, final

import attrs
import h11

WEBSOCKET_PATH: Final = b"/ws"
_DECODED: Final = (b"connection", b"sec-websocket-protocol", b"sec-websocket-extensions")
_BARE_LINE_FEED: Final = re.compile(rb"(?<!\r)\n")
_HOST: Final = re.compile(
    rb"(?:[\w~-]{1,63}(?:\.[\w~-]{1,63})*\.?|\[[0-9A-Fa-f:.%\w]+\])?(?::\d{0,5})?"
)
"""In ASCII and of labels as DNS has them: frameworks break on others, or take two for one."""
_ABSOLUTE_FORM: Final = re.compile(rb"\Ahttps?://[^/?]*", re.IGNORECASE)

Destination = Literal["http", "websocket"]


class Refusal(Exception):
    """A request that the edge answers itself, with an error; the connection ends then.

    `str(refusal)` is the body of the answer.
    """

    def __init__(
        self, status: int, message: str, *, headers: tuple[tuple[bytes, bytes], ...] = ()
    ) -> None:
        """Answer with `status` and `message`, one line in ASCII, and further `headers`."""
        super().__init__(message)
        self.status = status
        self.headers = headers


@final
@attrs.frozen
class Head:
    """A request's head; header names are lower case and keep their order."""

    method: bytes
    target: bytes
    version: bytes
    headers: tuple[tuple[bytes, bytes], ...]

    def get(self, name: bytes) -> bytes:
        """The values of header `name`, joined by commas (RFC 9110 section 5.3); empty if none."""
        return b", ".join(value for key, value in self.headers if key == name)

    def has(self, *names: bytes) -> bool:
        """Whether any header of these names is there."""
        return any(key in names for key, _ in self.headers)

    @property
    def path(self) -> bytes:
        """The target without authority and query; still percent-encoded."""
        return self.origin_form.partition(b"?")[0]

    @property
    def origin_form(self) -> bytes:
        """The target without authority (RFC 9112 section 3.2): what servers are asked as a rule."""
        target, is_absolute = _ABSOLUTE_FORM.subn(b"", self.target, count=1)
        return b"/" + target if is_absolute and not target.startswith(b"/") else target

    @property
    def wants_websocket(self) -> bool:
        """Whether this is an upgrade request in the sense of RFC 6455 section 4.1."""
        return b"upgrade" in _tokens(self.get(b"connection")) and b"websocket" in _tokens(
            self.get(b"upgrade")
        )

    def encode(self, *, upgrade: bool) -> bytes:
        """The head on the wire again, in canonical form.

        Args:
          upgrade: False leaves the upgrade headers out, as a server may (RFC 9110 section 7.8):
            hypercorn would otherwise switch to cleartext HTTP/2, or to its own WebSockets.
        """
        dropped = () if upgrade else (b"upgrade", b"http2-settings")
        lines = [b"%b %b HTTP/%b" % (self.method, self.origin_form, self.version)]
        lines += [b"%b: %b" % header for header in self.headers if header[0] not in dropped]
        return b"\r\n".join([*lines, b"", b""])


def destination(head: Head) -> Destination:
    """Who serves this request.

    Raises:
      Refusal: nobody does.
    """
    if head.version not in (b"1.0", b"1.1"):
        raise Refusal(505, "this port speaks HTTP/1.1")
    if head.method == b"CONNECT":
        raise Refusal(501, "this is no proxy")
    if not head.origin_form.startswith(b"/") and head.target != b"*":
        raise Refusal(400, "the target is no path")
    if not _HOST.fullmatch(head.get(b"host")):
        raise Refusal(400, "the Host header names no host")
    if head.has(b"transfer-encoding") and (head.has(b"content-length") or head.version == b"1.0"):
        raise Refusal(400, "the length of the body is given twice")
    if head.wants_websocket:
        if head.path != WEBSOCKET_PATH:
            raise Refusal(404, "there is no WebSocket here, but at /ws")
        if head.method != b"GET" or head.version != b"1.1" or _has_body(head):
            raise Refusal(400, "a WebSocket is asked for by GET, HTTP/1.1, without a body")
        if not _is_readable(head):
            raise Refusal(400, "a WebSocket is asked for in ASCII, and of a host")
        return "websocket"
    if head.path == WEBSOCKET_PATH:
        raise Refusal(
            426,
            "this is a WebSocket; does a proxy on the way drop the Upgrade header?",
            headers=((b"upgrade", b"websocket"),),
        )
    return "http"


@final
class Requests:
    """The requests of one connection, one after the other.

    Call `receive_data` with what has come, and `next_head` until it gives a head; then `read_body`
    until `body_ended`; then `start_next`. What a client has pipelined stays in here meanwhile.
    """

    def __init__(self, *, head_bytes_max: int) -> None:
        """Expect the first request."""
        self._head_bytes_max = head_bytes_max
        self._unread = bytearray()  # received, and neither in a head nor read as body
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=head_bytes_max)
        self._malformed = False  # the body: its end cannot be known any more
        self.body_ended = False
        """Whether `read_body` has given the last of the present request's body."""

    def __len__(self) -> int:
        """Bytes that were received and not read yet."""
        return len(self._unread)

    def receive_data(self, data: bytes | bytearray) -> None:
        """Take what the client has sent; not empty."""
        assert data
        self._unread += data
        self._parser.receive_data(bytes(data))

    def next_head(self) -> Head | None:
        """The present request's head; None while it is incomplete.

        Raises:
          Refusal: it is malformed (400, 501) or too large (431).
        """
        try:
            event = self._parser.next_event()
        except h11.RemoteProtocolError as error:
            raise _refusal(error) from error
        if event is h11.NEED_DATA:
            return None
        assert isinstance(event, h11.Request)
        size = len(self._unread) - len(self._parser.trailing_data[0])
        if size > self._head_bytes_max:
            raise Refusal(431, "the request's head is too large")
        if _BARE_LINE_FEED.search(self._unread, 0, size):
            raise Refusal(400, "lines end with CR LF")
        del self._unread[:size]
        return Head(event.method, event.target, event.http_version, tuple(event.headers))

    def read_body(self) -> bytes:
        """What has come of the body and was not read yet, as it was on the wire.

        A malformed body never ends: everything goes to hypercorn, which answers and closes.
        """
        size = len(self._unread)
        if not self._malformed and not self.body_ended:
            try:
                self._parse_body()
            except h11.RemoteProtocolError:
                self._malformed = True
        if self.body_ended:
            size -= len(self._parser.trailing_data[0])
        data = bytes(self._unread[:size])
        del self._unread[:size]
        return data

    def start_next(self) -> None:
        """Expect the next request, in what was received already and what will be."""
        assert self.body_ended
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=self._head_bytes_max)
        self.body_ended = False
        if self._unread:
            self._parser.receive_data(bytes(self._unread))

    def take_rest(self) -> bytes:
        """Everything received and not read: the first bytes of another protocol."""
        rest = bytes(self._unread)
        self._unread.clear()
        return rest

    def _parse_body(self) -> None:
        while True:
            event = self._parser.next_event()
            if isinstance(event, h11.EndOfMessage):
                self.body_ended = True
                return
            if event is h11.NEED_DATA:
                return


def _refusal(error: h11.RemoteProtocolError) -> Refusal:
    if error.error_status_hint == 431:
        return Refusal(431, "the request's head is too large")
    return Refusal(error.error_status_hint, "this is not an HTTP/1.1 request")


def _tokens(value: bytes) -> list[bytes]:
    return [token.strip().lower() for token in value.split(b",")]


def _is_readable(head: Head) -> bool:
    """Whether wsproto can decode what it decodes of an upgrade: it breaks on it else."""
    try:
        head.get(b"host").decode("idna")
    except UnicodeError:
        return False
    return all(value.isascii() for name, value in head.headers if name in _DECODED)


def _has_body(head: Head) -> bool:
    return head.has(b"transfer-encoding") or head.get(b"content-length") not in (b"", b"0")
