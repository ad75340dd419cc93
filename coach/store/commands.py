"""redis-py's command methods (`await redis.zadd(...)`) for anything that can execute a command."""

from __future__ import annotations

from typing import Any, Final, Literal

from redis import Redis as _ReferenceClient
from redis.commands import AsyncCoreCommands
from redis.exceptions import DataError

from .wire import Command

_reference: Final = _ReferenceClient(protocol=3, legacy_responses=False)
"""Never connected: the public way to redis-py's reply callbacks and its encoder."""
_callbacks: Final[dict[str, Any]] = dict(_reference.response_callbacks)

_STATEFUL: Final = frozenset(
    (
        *("SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "MONITOR", "MULTI", "EXEC", "DISCARD", "WATCH"),
        *("SELECT", "AUTH", "HELLO", "RESET", "QUIT", "SYNC", "PSYNC", "ASKING", "READONLY"),
        *("CLIENT REPLY", "CLIENT TRACKING", "CLIENT CACHING", "SCRIPT DEBUG"),
    )
)


class Commands(AsyncCoreCommands):
    """The methods. Subclasses define `execute_command`."""

    _is_async_client: Literal[True] = True
    _event_dispatcher: Any = None

    def get_encoder(self) -> Any:
        """redis-py's encoder, which some of its methods ask for."""
        return _reference.get_encoder()


def normal(command: Command) -> Command:
    """The command with its name in capitals, which decides on the connection it gets.

    Raises:
      DataError: it would change the state of a connection that others share.
    """
    name = command[0]
    if not isinstance(name, str):
        raise DataError(f"a command's name is text, not {name!r:.40}")
    if not name.isupper():
        name, command = name.upper(), (name.upper(), *command[1:])
    if name in _STATEFUL:
        raise DataError(f"{name} changes the state of a connection that others share")
    return command


def shape(command: Command, options: dict[str, Any], reply: Any) -> Any:
    """The reply as redis-py's methods give it; an error reply is raised."""
    if isinstance(reply, Exception):
        raise reply
    callback = _callbacks.get(command[0])
    if callback is None:
        return reply
    return callback(reply, **{name: value for name, value in options.items() if name != "keys"})
