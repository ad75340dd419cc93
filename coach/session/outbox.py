"""What a session says: numbered, framed, written at once, and kept until the client has it.

An outbox belongs to a session and outlives its connections. While one is attached, `send` writes to
it in the very call that decoded the provider's event (writer.py); always it keeps the frame, so
that a client which comes back gets what it has missed, byte for byte.

Memory bound: `bytes_max` of frames, each counted with what Python adds to it (`FRAME_BYTES`). The
oldest go first when there are more: then what was missed cannot be said again, and `after` says so.
Once another worker has the session, it is `MOVED_BYTES_MAX`, of what that worker was not told yet:
a tenth of a second's worth, more only while Redis is away.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING, Final, final

from ..ops import metrics
from .wire import Error, ServerMessage, Welcome, encode

if TYPE_CHECKING:
    from .writer import Writer

FRAME_BYTES: Final = 48
"""What a frame takes beyond its bytes: an object's head, and its place in the deque."""
MOVED_BYTES_MAX: Final = 4_194_304
"""Of what another worker has not been told yet. An answer told from its beginning is one frame."""
_SHORT_HEADERS: Final = tuple(bytes((0x81, size)) for size in range(126))


@final
class Outbox:
    """Numbers and frames what goes to one student."""

    __slots__ = ("_bytes", "_bytes_max", "_seq", "_unacked", "_writer")

    def __init__(self, *, bytes_max: int, seq: int = 0) -> None:
        """Start without a connection.

        Args:
          bytes_max: of frames that are kept until they are acknowledged; 0: none is kept.
          seq: the last number that was used.
        """
        self._bytes_max = bytes_max
        self._bytes = 0  # of `_unacked`
        self._seq = seq
        self._unacked: deque[bytes] | tuple[()] = ()
        # the frames up to `_seq`, without a gap; an empty deque takes 760 bytes
        self._writer: Writer | None = None

    @property
    def seq(self) -> int:
        """The last number given to a message."""
        return self._seq

    @property
    def kept(self) -> int:
        """Bytes of the frames that are kept."""
        return self._bytes

    def send(self, message: ServerMessage) -> None:
        """Number `message`, keep it, and write it where a client is connected. Not a checkpoint."""
        if type(message) is Error:
            metrics.client_errors_total.labels(message.code).inc()
        self._seq += 1
        message.seq = self._seq
        frame = text_frame(encode(message))
        if self._bytes_max:
            self._keep(frame)
        if self._writer is not None:
            self._writer.write(frame)

    def _keep(self, frame: bytes) -> None:
        kept = self._unacked or deque()
        kept.append(frame)
        self._bytes += len(frame) + FRAME_BYTES
        while self._bytes > self._bytes_max:
            self._bytes -= len(kept.popleft()) + FRAME_BYTES
        self._unacked = kept

    def attach(self, writer: Writer, welcome: Welcome, *, after: int) -> None:
        """Write `welcome`, then everything after the message number `after`, then what comes.

        The caller has seen that `after` can be served. Not a checkpoint.
        """
        writer.write(text_frame(encode(welcome)))
        for frame in self.after(after) or ():
            writer.write(frame)
        self._writer = writer

    def connect(self, writer: Writer) -> None:
        """Write to `writer` from now on, without a welcome."""
        self._writer = writer

    def detach(self) -> None:
        """Write nowhere until the next `attach`."""
        self._writer = None

    def keep_for_another(self) -> None:
        """Keep what is said until another worker was told: it tells the client."""
        self._bytes_max = MOVED_BYTES_MAX

    def ack(self, seq: int) -> None:
        """The client, or the worker that has the session now, has everything up to `seq`."""
        kept = self._unacked
        if not kept:
            return
        for _ in range(min(len(kept), len(kept) - (self._seq - seq))):
            self._bytes -= len(kept.popleft()) + FRAME_BYTES
        if not kept:
            self._unacked = ()

    def after(self, seq: int) -> list[bytes] | None:
        """The frames that follow number `seq`; None where some are not kept, or it never was."""
        missing = self._seq - seq
        if not 0 <= missing <= len(self._unacked):
            return None
        return list(islice(self._unacked, len(self._unacked) - missing, None))

    def newest_after(self, seq: int) -> tuple[list[bytes], bool]:
        """What is kept of the frames that follow number `seq`, and whether that is all of them."""
        missing = min(self._seq - seq, len(self._unacked))
        newest = islice(self._unacked, len(self._unacked) - missing, None)
        return list(newest), missing == self._seq - seq


def text_frame(payload: bytes) -> bytes:
    """One unmasked, unfragmented text frame (RFC 6455 section 5.2)."""
    size = len(payload)
    if size < 126:
        return _SHORT_HEADERS[size] + payload
    if size < 65_536:
        return struct.pack("!BBH", 0x81, 126, size) + payload
    return struct.pack("!BBQ", 0x81, 127, size) + payload


def payload_of(frame: bytes) -> bytes:
    """What `text_frame` has framed."""
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]
