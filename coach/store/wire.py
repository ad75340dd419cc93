"""One greeted connection to one server: bytes out, replies in.

RESP3 (https://redis.io/docs/latest/develop/reference/protocol-spec/), packed and parsed by
hiredis; error replies become redis-py's exceptions and are returned, not raised, since one of a
batch may fail alone.
"""

from __future__ import annotations

import math
import select
import socket
import ssl
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

import attrs
import hiredis
import trio
from redis.connection import DefaultParser
from redis.exceptions import DataError, RedisError

from .errors import RedisConnectionError
from .url import Target

RECEIVE_BYTES_MAX: Final = 65_536

Command = Sequence[Any]
"""A command's name and arguments; the name may hold its subcommand ("CLIENT ID")."""

NO_REPLY: Final[Any] = object()
"""What the parser gives while the next reply is not complete."""

TRANSPORT_ERRORS: Final = (
    OSError,
    ssl.SSLError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    trio.TooSlowError,
    hiredis.ProtocolError,
    RedisError,
)
"""What may come out of a connection that is of no more use."""


@attrs.frozen(kw_only=True)
class Limits:
    """Bounds on waiting and on memory."""

    wait_s: float = 5.0
    """How long a command may wait for a connection before it is given up as not sent."""
    connect_s_max: float = 2.0
    """From the first packet to the answered greeting."""
    stall_s_max: float = 5.0
    """Silence while answers are due, after which the connection is given up."""
    backoff_s: float = 0.05
    """First pause between two attempts to connect; doubles up to `backoff_s_max`."""
    backoff_s_max: float = 0.5
    calls_max: int = 20_000
    """Commands that may wait for a connection or for their reply."""
    blocking_max: int = 256
    """Blocking commands at a time; each has a connection of its own."""
    idle_max: int = 16
    """Connections kept for the next blocking command."""


def pack(command: Command) -> bytes:
    """A command as it goes over the wire.

    Raises:
      DataError: an argument is no str, bytes, int or float, or is text that UTF-8 cannot hold.
    """
    name = command[0]
    if " " in name:
        command = (*name.split(), *command[1:])
    try:
        packed: bytes = hiredis.pack_command(tuple(command))
    except (TypeError, UnicodeEncodeError) as error:
        raise DataError(f"cannot send {name}: {error}") from None
    return packed


class Wire:
    """An open connection. One task at a time writes, one at a time reads.

    Args:
      stream: what commands and replies go through.
      close: closes what lies below it, at once; whoever reads or writes then gets an error.
      has_input: whether a read would not wait.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        close: Callable[[], object],
        has_input: Callable[[], bool],
    ) -> None:
        self._stream = stream
        self._close = close
        self._has_input = has_input
        self._parser = hiredis.Reader(
            protocolError=RedisConnectionError,
            replyError=DefaultParser.parse_error,
            notEnoughData=NO_REPLY,
        )
        self.client_id = 0
        """What CLIENT UNBLOCK takes."""

    async def send(self, data: bytes) -> None:
        """Write packed commands."""
        await self._stream.send_all(data)

    async def receive(self) -> None:
        """Read what there is, at least a byte; then ask `reply_nowait`.

        Raises:
          RedisConnectionError: the server closed the connection.
        """
        data = await self._stream.receive_some(RECEIVE_BYTES_MAX)
        if not data:
            raise RedisConnectionError("closed by the server")
        self._parser.feed(bytes(data))

    def reply_nowait(self) -> Any:
        """The next complete reply, an exception for an error reply, or `NO_REPLY`."""
        return self._parser.gets()

    async def reply(self) -> Any:
        """Wait for the next reply; cancelling loses none. Server pushes are dropped."""
        while True:
            reply = self.reply_nowait()
            if reply is NO_REPLY:
                await self.receive()
            elif type(reply) is not hiredis.PushNotification:
                return reply

    async def request(self, commands: Iterable[Command]) -> list[Any]:
        """Send commands and wait for the reply to each. Not for connections that are shared."""
        packed = [pack(command) for command in commands]
        await self.send(b"".join(packed))
        return [await self.reply() for _ in packed]

    def is_stale(self) -> bool:
        """True when an idle connection has something to read: its end, most likely."""
        return self._has_input()

    def abort(self) -> None:
        """Close now; whoever reads or writes gets `ClosedResourceError`. Not a checkpoint."""
        self._close()


async def open_wire(
    target: Target,
    *,
    name: str | None,
    limits: Limits,
    greeting: Sequence[Command] = (),
) -> Wire:
    """Connect and greet.

    Args:
      target: where, and as whom.
      name: what CLIENT LIST shows.
      limits: `connect_s_max` bounds the whole.
      greeting: further commands that must succeed before the connection is of use.

    Raises:
      RedisConnectionError: nobody there, too slow, or not ready; the message says which.
      RedisError: the server refused the greeting.
    """
    try:
        with trio.fail_after(limits.connect_s_max):
            wire = await _dial(target)
            await greet(wire, target, name=name, greeting=greeting)
    except trio.TooSlowError as error:
        raise RedisConnectionError(f"{target}: no answer in {limits.connect_s_max:g} s") from error
    except OSError as error:
        raise RedisConnectionError(f"{target}: {error.strerror or error}") from error
    except (trio.BrokenResourceError, hiredis.ProtocolError) as error:
        # A stream's error says what happened in its cause: a certificate that is not trusted, say.
        raise RedisConnectionError(f"{target}: {error.__cause__ or error}") from error
    return wire


async def greet(
    wire: Wire, target: Target, *, name: str | None, greeting: Sequence[Command] = ()
) -> None:
    """Log in, and make sure that the server can answer; closes the connection if it cannot.

    The last command is a PING, which a server that still loads its data refuses: so nothing else
    is ever sent to one.

    Raises:
      RedisError: the server refused a command, or what answers is no Redis of version 6 or later.
    """
    ready = False
    try:
        commands = [*_greeting(target, name), *greeting, ("PING",)]
        replies = await wire.request(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        if not isinstance(replies[0], dict) or b"id" not in replies[0]:
            raise RedisConnectionError(f"{target} is no Redis: it answered {replies[0]!r:.100}")
        wire.client_id = replies[0][b"id"]
        ready = True
    finally:
        if not ready:
            wire.abort()


def _greeting(target: Target, name: str | None) -> list[Command]:
    hello: list[Any] = ["HELLO", 3]
    if target.password is not None:
        hello += ["AUTH", target.username or "default", target.password]
    if name is not None:
        hello += ["SETNAME", name]
    return [hello, ("SELECT", target.db)] if target.db else [hello]


async def _dial(target: Target) -> Wire:
    if target.path is not None:
        raw = await trio.open_unix_socket(target.path)
    else:
        raw = await trio.open_tcp_stream(target.host, target.port)
        _keep_alive(raw.socket)
    stream: trio.abc.Stream = raw
    if target.tls is not None:
        stream = trio.SSLStream(raw, target.tls, server_hostname=target.host)
    return Wire(stream, close=raw.socket.close, has_input=partial(_has_input, raw))


def _has_input(raw: trio.SocketStream) -> bool:
    poller = select.poll()
    poller.register(raw.socket.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def _keep_alive(sock: trio.socket.SocketType) -> None:
    # A blocking command may rightly wait for ever; only the kernel can tell that its server's
    # host is gone: 5 s idle and 3 probes 2 s apart, or 10 s without an acknowledgement.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        "TCP_KEEPIDLE": 5,
        "TCP_KEEPINTVL": 2,
        "TCP_KEEPCNT": 3,
        "TCP_USER_TIMEOUT": 10_000,
    }
    for option, value in options.items():
        if hasattr(socket, option):  # which of them there are depends on the system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def backoff_s(attempt: int, limits: Limits, jitter: float) -> float:
    """The pause before the next attempt to connect.

    Args:
      attempt: how many have failed in a row, from 1.
      limits: first and longest pause.
      jitter: 0..1, spreads clients that lost the same server.
    """
    pause_s = min(limits.backoff_s * math.ldexp(1.0, min(attempt, 32) - 1), limits.backoff_s_max)
    return pause_s * (0.5 + 0.5 * jitter)
