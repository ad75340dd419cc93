"""Lua scripts: files of the package, called by their digest.

A script may stand behind a library, a file of functions that cannot run by itself, and that behind
another: its header says "Behind <name>.lua". They are sent as one script.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import attrs
from redis.exceptions import NoScriptError

from .client import Redis

FOLDER: Final = files(__package__) / "lua"
_BEHIND: Final = re.compile(r"\b[Bb]ehind\s+(\w+)\.lua\b")


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
    """The script `coach/store/lua/<name>.lua` behind its libraries, read once.

    Raises:
      FileNotFoundError: there is none of that name.
    """
    source = (FOLDER / f"{name}.lua").read_text(encoding="utf-8")
    library = library_of(source)
    return from_source(name, source if library is None else f"{script(library).source}\n{source}")


def library_of(source: str) -> str | None:
    """The name of the file that a script's header says it stands behind."""
    found = _BEHIND.search(source.partition("]]")[0])
    return None if found is None else found[1]


def from_source(name: str, source: str) -> Script:
    """A script from its text."""
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())
