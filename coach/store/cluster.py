"""A cluster's primaries, each with connections of its own.

https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/: a key's slot decides on
the node; MOVED says that the map is old, ASK that a slot is on its way. Whatever surely did not run
is tried again, on the right node, until `wait_s` is over.

The keys of one script or batch share a hash tag. A single reply tells of a single node, so WAITAOF
asks all of them, and SCRIPT FLUSH and the like tell all.
"""

from __future__ import annotations

import math
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, final

import attrs
import trio
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    RedisError,
    TryAgainError,
)

from .durable import NAMES as DURABLE
from .errors import NotSent
from .routing import SLOTS_COUNT, common_slot, key_in, routing_key, slot_of
from .server import MARKER, RedisStatistics, Server
from .url import Target
from .wire import TRANSPORT_ERRORS, Command, Limits, open_wire

NODE_WAIT_S: Final = 0.5
"""How long a command waits for one node before the map is read again."""
_PAUSE_S: Final = 0.01
_PAUSE_S_MAX: Final = 0.3
_EVERYWHERE: Final = frozenset(
    ("SCRIPT LOAD", "SCRIPT FLUSH", "FUNCTION LOAD", "FLUSHALL", "FLUSHDB", "CONFIG SET")
)

Address = tuple[str, int]


@final
@attrs.frozen(eq=False)
class _Node:
    server: Server
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    """Cancelled when the node has left the cluster."""

    async def run(self) -> None:
        with self.scope:
            await self.server.run()


@final
class Cluster:
    """The transport to a cluster.

    Args:
      seeds: nodes to ask for the others.
      name: what CLIENT LIST shows.
      limits: `wait_s` bounds all tries of a command together.
    """

    def __init__(self, seeds: Sequence[Target], *, name: str | None, limits: Limits) -> None:
        self._seeds = tuple(seeds)
        self._name = name
        self._limits = limits
        self._node_limits = attrs.evolve(limits, wait_s=min(limits.wait_s, NODE_WAIT_S))
        self._owners: list[Address | None] = [None] * SLOTS_COUNT
        self._nodes: dict[Address, _Node] = {}
        """Those of the map, and those a redirection named since."""
        self._version = 0
        self._refreshing = trio.Lock()
        self._closed = False
        # As many as there are new nodes.
        self._start, self._starting = trio.open_memory_channel[_Node](math.inf)

    async def request(self, command: Command) -> Any:
        """See `Transport`."""
        if command[0] in DURABLE:
            counts = await self._request_all(command)
            errors = [count for count in counts if isinstance(count, Exception)]
            if errors or command[0] == "WAIT":
                return errors[0] if errors else min(counts)
            return [min(column) for column in zip(*counts, strict=True)]
        if command[0] in _EVERYWHERE:
            replies = await self._request_all(command)
            return next((reply for reply in replies if isinstance(reply, Exception)), replies[0])
        key = routing_key(command)
        slot = None if key is None else slot_of(key)
        (reply,) = await self._redirected(slot, partial(_send, command))
        return reply

    async def request_batch(self, commands: Sequence[Command], transaction: bool) -> list[Any]:
        """See `Transport`; all keys share a hash tag."""
        slot = common_slot(commands)
        return await self._redirected(slot, partial(_send_batch, commands, transaction))

    async def scan(self, pattern: str) -> AsyncGenerator[bytes, None]:
        """See `Transport`."""
        await self._refresh()
        for address in {owner for owner in self._owners if owner}:
            async for key in self._node(address).server.scan(pattern):
                yield key

    async def run(self) -> None:
        """See `Transport`."""
        try:
            async with trio.open_nursery() as nursery:
                async for node in self._starting:
                    nursery.start_soon(node.run)
        finally:
            self._closed = True
            self._start.close()
            self._starting.close()

    def statistics(self) -> RedisStatistics:
        """See `Transport`."""
        nodes = [attrs.asdict(node.server.statistics()) for node in self._nodes.values()]
        sums = {field: sum(node[field] for node in nodes) for field in nodes[0]} if nodes else {}
        names = [field.name for field in attrs.fields(RedisStatistics)]
        return RedisStatistics(
            **dict.fromkeys(names, 0)
            | sums
            | {"connected": bool(nodes) and all(node["connected"] for node in nodes)}
        )

    # -- sending --

    async def _redirected(
        self, slot: int | None, send: Callable[[Server, bool], Awaitable[list[Any]]]
    ) -> list[Any]:
        """Send until it has run, or surely will not within `wait_s`.

        Args:
          slot: whose owner it is for; None: any node's.
          send: sends to a server, after ASKING if told so. Gives the replies.
        """
        deadline = trio.current_time() + self._limits.wait_s
        target: Address | None = None
        asking = False
        pause_s = _PAUSE_S
        while True:
            try:
                node = self._node(target) if target else await self._owner(slot)
                replies = await send(node.server, asking)
                # Nothing of a batch has run where each was refused.
                if not all(isinstance(reply, _REFUSALS) for reply in replies):
                    return replies
                raise replies[0]
            except (NotSent, *_REFUSALS) as error:
                if self._closed or trio.current_time() + pause_s > deadline:
                    raise NotSent(
                        f"refused by the cluster for {self._limits.wait_s:g} s: {error}"
                    ) from error
                asking = isinstance(error, AskError) and not isinstance(error, MovedError)
                target = (error.host, error.port) if isinstance(error, AskError) else None
                if not isinstance(error, AskError):
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, _PAUSE_S_MAX)
                if not asking and not isinstance(error, TryAgainError):
                    await self._refresh()

    async def _request_all(self, command: Command) -> list[Any]:
        if not any(self._owners):
            await self._refresh()
        replies: list[Any] = []

        async def ask(address: Address) -> None:
            try:
                replies.append(await self._node(address).server.request(command))
            except RedisError as error:
                failures.append(error)

        failures: list[RedisError] = []
        async with trio.open_nursery() as nursery:
            for address in {owner for owner in self._owners if owner}:
                nursery.start_soon(ask, address)
        if failures:
            raise failures[0]
        if not replies:
            raise NotSent("no cluster node is known")
        return replies

    # -- the map --

    async def _owner(self, slot: int | None) -> _Node:
        if not any(self._owners):
            await self._refresh()
        owners = [owner for owner in self._owners if owner]
        owner = self._owners[slot] if slot is not None else random.choice(owners or [None])  # noqa: S311  spreads load, guards nothing
        if owner is None:
            raise NotSent("no node serves this slot")
        return self._node(owner)

    def _node(self, address: Address) -> _Node:
        if self._closed:
            raise NotSent("the client is closed")
        node = self._nodes.get(address)
        if node is None:
            target = attrs.evolve(self._seeds[0], host=address[0], port=address[1])
            dial = partial(open_wire, target, name=self._name, limits=self._node_limits)
            marker = partial(self._marker, address)
            node = _Node(Server(dial, self._node_limits, marker=marker))
            self._nodes[address] = node
            self._start.send_nowait(node)
        return node

    def _marker(self, address: Address) -> str:
        owned = (at for at, owner in enumerate(self._owners) if owner == address)
        return key_in(frozenset(owned)) or MARKER

    async def _refresh(self) -> None:
        """Read the map from the first node that answers; keep the old one where none does."""
        version = self._version
        async with self._refreshing:
            if version != self._version:
                return  # somebody else just did
            known = {owner for owner in self._owners if owner}
            seeds = [(seed.host, seed.port) for seed in self._seeds]
            for address in [*random.sample(sorted(known), len(known)), *seeds]:
                owners = await self._ask_map(address)
                if owners is not None:
                    self._take(owners)
                    return

    async def _ask_map(self, address: Address) -> list[Address | None] | None:
        target = attrs.evolve(self._seeds[0], host=address[0], port=address[1])
        try:
            wire = await open_wire(target, name=self._name, limits=self._node_limits)
            try:
                with trio.fail_after(self._node_limits.connect_s_max):
                    (reply,) = await wire.request([("CLUSTER SLOTS",)])
            finally:
                wire.abort()
        except TRANSPORT_ERRORS:
            return None
        if not isinstance(reply, list) or not reply:
            return None
        owners: list[Address | None] = [None] * SLOTS_COUNT
        for first, last, (host, port, *_), *_ in reply:
            owner = (host.decode() if host else address[0], port)
            owners[first : last + 1] = [owner] * (last + 1 - first)
        return owners

    def _take(self, owners: list[Address | None]) -> None:
        self._owners = owners
        self._version += 1
        for address in set(self._nodes) - set(owners):
            self._nodes.pop(address).scope.cancel()


_REFUSALS: Final = (AskError, MovedError, TryAgainError, ClusterDownError, MasterDownError)
"""Error replies of a node that has run nothing."""


async def _send(command: Command, server: Server, asking: bool) -> list[Any]:
    if asking:
        return (await server.request_batch([("ASKING",), command], transaction=False))[1:]
    return [await server.request(command)]


async def _send_batch(
    commands: Sequence[Command], transaction: bool, server: Server, asking: bool
) -> list[Any]:
    if asking:  # covers the next command only: wait until the slot has arrived
        raise TryAgainError("the slot is on its way")
    return await server.request_batch(commands, transaction)
