"""A master that sentinels know: found again at every connection.

https://redis.io/docs/latest/develop/reference/sentinel-clients/: ask any sentinel for the master,
connect, and make sure by ROLE that it is one.
"""

from __future__ import annotations

from typing import Any, final

import attrs
import trio

from .errors import RedisConnectionError
from .url import SentinelTarget, Target
from .wire import TRANSPORT_ERRORS, Limits, Wire, open_wire


@final
class MasterDialer:
    """Opens connections to the master of the day."""

    def __init__(self, target: SentinelTarget, *, name: str | None, limits: Limits) -> None:
        self._target = target
        self._name = name
        self._limits = limits
        self._sentinels = list(target.sentinels)
        """The one that answered last stands first."""

    async def dial(self) -> Wire:
        """Connect to the master.

        Raises:
          RedisError: no sentinel knows it, it does not answer, or it is none (yet).
        """
        master = await self._find()
        wire = await open_wire(master, name=self._name, limits=self._limits)
        try:
            role = await self._ask(wire, "ROLE")
            if not isinstance(role, list) or role[0] != b"master":
                raise RedisConnectionError(f"{master} is no master")
        except BaseException:
            wire.abort()
            raise
        return wire

    async def _find(self) -> Target:
        problem = "none is named"
        for sentinel in tuple(self._sentinels):
            try:
                wire = await open_wire(sentinel, name=self._name, limits=self._limits)
                try:
                    address = await self._ask(
                        wire, "SENTINEL GET-MASTER-ADDR-BY-NAME", self._target.service
                    )
                finally:
                    wire.abort()
            except TRANSPORT_ERRORS as error:
                problem = str(error)
                continue
            if isinstance(address, list):
                self._sentinels.remove(sentinel)
                self._sentinels.insert(0, sentinel)
                host, port = address
                return attrs.evolve(self._target.server, host=host.decode(), port=int(port))
            problem = f"{sentinel} does not know it"
        raise RedisConnectionError(f"no sentinel knows {self._target.service!r}: {problem}")

    async def _ask(self, wire: Wire, *command: Any) -> Any:
        with trio.fail_after(self._limits.connect_s_max):
            (reply,) = await wire.request([command])
        if isinstance(reply, Exception):
            raise reply
        return reply
