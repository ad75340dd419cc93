"""Lua scripts: files of the package, called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import attrs
from redis.exceptions import NoScriptError

from .client import Redis

FOLDER: Final = files(__package__) / "lua"


@attrs.frozen
class Script:
    """A script in `coach/store/lua`; call it with a client, keys and arguments."""

    name: str
    source: str = attrs.field(repr=False)
    sha: str = attrs.field(repr=False)

    async def __call__(
        self,
        redis: Redis,
        keys: Sequence[str | bytes],
        args: Sequence[str | bytes | int | float] = (),
    ) -> Any:
        """Run it: one round trip; two where the server does not know it yet.

        A server that was restarted or told SCRIPT FLUSH answers NOSCRIPT, which means that
        nothing ran: then the source is sent, and runs at once.

        Args:
          redis: where.
          keys: all it touches, with one hash tag.
          args: its ARGV.

        Raises:
          ResponseError: the script refused ("COACH_BADARG name", …); the message is the script's.
          NotSent, ConnectionLost: as for every command.
        """
        try:
            return await redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.execute_command("EVAL", self.source, len(keys), *keys, *args)


@cache
def script(name: str) -> Script:
    """The script `coach/store/lua/<name>.lua`, read once.

    Raises:
      FileNotFoundError: there is none of that name.
    """
    return from_source(name, (FOLDER / f"{name}.lua").read_text(encoding="utf-8"))


def from_source(name: str, source: str) -> Script:
    """A script from its text."""
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
