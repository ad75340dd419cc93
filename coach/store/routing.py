"""Which key decides where in a cluster a command goes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from redis.crc import key_slot
from redis.exceptions import DataError

from .wire import Command

SLOTS_COUNT: Final = 16_384

_COUNT_AT: Final = dict.fromkeys(
    ("EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO", "FCALL", "FCALL_RO", "BZMPOP", "BLMPOP"), 2
) | dict.fromkeys(("ZUNION", "ZINTER", "ZDIFF", "LMPOP", "ZMPOP", "SINTERCARD", "ZINTERCARD"), 1)
"""Commands that say how many keys they have, and where they say it; the keys follow."""

_KEYLESS: Final = frozenset(
    ("PING", "ECHO", "INFO", "TIME", "DBSIZE", "PUBLISH", "KEYS", "COMMAND", "LASTSAVE", "ROLE")
)
_SUBCOMMANDS_WITH_KEY: Final = ("XGROUP ", "XINFO ", "OBJECT ", "MEMORY USAGE")


def routing_key(command: Command) -> Any:
    """The first key of a command; None where it has none."""
    name = command[0]
    if name in _COUNT_AT:
        at = _COUNT_AT[name]
        return command[at + 1] if int(command[at]) else None
    if name in ("XREAD", "XREADGROUP"):
        streams_at = next(at for at, part in enumerate(command) if part in ("STREAMS", b"STREAMS"))
        return command[streams_at + 1]
    if name in _KEYLESS or len(command) < 2:
        return None
    if " " in name and not name.startswith(_SUBCOMMANDS_WITH_KEY):
        return None
    return command[1]


def slot_of(key: Any) -> int:
    """The slot a key lies in; what stands between braces decides, if anything does."""
    if isinstance(key, int | float):
        key = str(key)
    return key_slot(key.encode() if isinstance(key, str) else bytes(key))


def common_slot(commands: Iterable[Command]) -> int | None:
    """The slot of all keys of a batch; None where there are no keys.

    Raises:
      DataError: they lie in several slots.
    """
    keys = [key for key in map(routing_key, commands) if key is not None]
    slots = {slot_of(key) for key in keys}
    if len(slots) > 1:
        raise DataError("the keys of one batch must share their hash tag")
    return slots.pop() if slots else None


def key_in(slots: frozenset[int]) -> str | None:
    """A short key that lies in one of some slots; None where there are none."""
    if not slots:
        return None
    return next(key for number in range(10**6) if slot_of(key := f"sync:{number}") in slots)
