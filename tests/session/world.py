"""A session's surroundings, scripted: limits, budget, provider and queue that record all."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import msgspec
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from coach import config
from coach.budget import Ask
from coach.grading import Grade, Status, Submission, SubmissionState, load_rubric
from coach.providers import Completion, Prompt, Sink, Usage
from coach.session import Authority, Route, Services, Sessions, serve_session

AUTHORITY = Authority("k" * 32, token_s=3600, leeway_s=0)


@attrs.define
class Ledger:
    """What was reserved and how each reservation ended: the settled amount, or None (refunded)."""

    open: int = 0
    ended: list[object] = attrs.field(factory=list)


@attrs.define
class Held:
    """A reservation or an admission."""

    settled: object = None

    def settle(self, spent: object) -> None:
        self.settled = spent

    def observe(self, headers: Mapping[str, str]) -> None:
        pass


@attrs.define
class World:
    """The scripted parts. `script` is what the provider does for each request."""

    script: Callable[[Prompt, Sink], Awaitable[Completion]]
    line: list[tuple[int, float]] = attrs.field(factory=list)
    limits: Ledger = attrs.field(factory=Ledger)
    budget: Ledger = attrs.field(factory=Ledger)
    streams_open: int = 0
    refuse: Exception | None = None
    submitted: list[Submission] = attrs.field(factory=list)
    submit_s: float = 0.0
    states: dict[str, SubmissionState] = attrs.field(factory=dict)
    sessions: Sessions = attrs.field(
        factory=lambda: Sessions(connections_per_user=2, ping_s=20.0, drain_s=5.0)
    )

    name = "scripted"
    model = "script-1"

    @asynccontextmanager
    async def reserve(self, **_: object) -> AsyncIterator[Held]:
        await trio.lowlevel.checkpoint()
        if self.refuse is not None:
            raise self.refuse
        async with _held(self.limits) as held:
            yield held

    @asynccontextmanager
    async def admit(
        self, _ask: Ask, *, on_position: Callable[[int, float], None], **_: object
    ) -> AsyncIterator[Held]:
        for position, eta_s in self.line:
            on_position(position, eta_s)
            await trio.sleep(eta_s)
        async with _held(self.budget) as held:
            yield held

    async def stream(self, prompt: Prompt, sink: Sink, **_: object) -> Completion:
        self.streams_open += 1
        try:
            return await self.script(prompt, sink)
        finally:
            self.streams_open -= 1

    async def submit(self, submission: Submission) -> SubmissionState:
        await trio.sleep(self.submit_s)
        self.submitted.append(submission)
        return self.states.get(submission.id) or state(submission)

    async def get(self, _org: str, submission: str) -> SubmissionState | None:
        await trio.lowlevel.checkpoint()
        return self.states.get(submission)

    def services(self, **server: object) -> Services:
        return Services(
            settings=config.Settings(server=config.Server(**server)),  # type: ignore[arg-type]
            worker="w-test",
            authority=AUTHORITY,
            limits=cast("Any", self),
            routes=[
                Route(provider=cast("Any", self), budget=cast("Any", self), output_tokens_max=100)
            ],
            queue=cast("Any", self),
            rubric=load_rubric(None),
        )

    @asynccontextmanager
    async def student(self, user: str = "ana", **server: object) -> AsyncIterator[Client]:
        """A student connected to a session of this world; has said hello."""
        async with self.connected(**server) as client:
            token, _ = AUTHORITY.issue(user=user, org="school", role="student")
            await client.send(type="hello", token=token)
            client.welcome = await client.receive()
            yield client

    @asynccontextmanager
    async def connected(self, **server: object) -> AsyncIterator[Client]:
        """A WebSocket to a session of this world, before hello."""
        near, far = (
            trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair()
        )
        async with trio.open_nursery() as served, trio.open_nursery() as nursery:
            served.start_soon(
                serve_session, Wired(far, far.socket), self.services(**server), self.sessions
            )
            websocket = await wrap_client_stream(nursery, near, "localhost", "/ws")
            yield Client(websocket, near)
            await trio.aclose_forcefully(near)
            nursery.cancel_scope.cancel()  # its reader may wait for a message to be taken

    @property
    def balanced(self) -> bool:
        """Nothing is reserved, streaming or registered."""
        return not (self.limits.open or self.budget.open or self.streams_open or len(self.sessions))


@attrs.frozen
class Wired:
    """A connection as the edge hands it over."""

    stream: trio.SocketStream
    socket: trio.socket.SocketType


@attrs.define
class Client:
    """A bare client of coach.v1 that checks the numbering of what it gets."""

    websocket: WebSocketConnection
    stream: trio.SocketStream
    seq: int = 0
    welcome: dict[str, Any] = attrs.field(factory=dict)

    async def send(self, **message: object) -> None:
        await self.websocket.send_message(msgspec.json.encode(message).decode())

    async def receive(self) -> dict[str, Any]:
        message: dict[str, Any] = msgspec.json.decode(await self.websocket.get_message())
        if message["type"] != "welcome":
            self.seq += 1
            assert message["seq"] == self.seq, message
        return message

    async def ask(self, request: str, *, draft: str = "d", text: str = "The sea was calm.") -> None:
        await self.send(type="draft", draft=draft, rev=int(request[1:]), text=text)
        await self.send(type="feedback", request=request, draft=draft)

    async def until(self, *types: str) -> list[dict[str, Any]]:
        """Everything up to and including the first message of one of `types`."""
        got = [await self.receive()]
        while got[-1]["type"] not in types:
            got.append(await self.receive())
        return got


def says(
    *deltas: str, pause_s: float = 0.0, usage: Usage | None = None
) -> Callable[[Prompt, Sink], Awaitable[Completion]]:
    """A provider's script: the deltas, then a proper end."""
    total = usage or Usage(input=50, cache_write=0, cache_read=10, output=len(deltas))

    async def script(_prompt: Prompt, sink: Sink) -> Completion:
        await trio.sleep(pause_s)
        sink.on_start("script-1", total)
        for text in deltas:
            sink.on_delta(text)
            await trio.sleep(pause_s)
        return Completion(
            text="".join(deltas), usage=total, stop_reason="end_turn", model="script-1"
        )

    return script


def state(
    submission: Submission, status: Status = "queued", grade: Grade | None = None
) -> SubmissionState:
    """A submission's state as the queue would report it."""
    return SubmissionState(
        id=submission.id,
        user=submission.user,
        org=submission.org,
        status=status,
        grade=grade,
    )


@asynccontextmanager
async def _held(ledger: Ledger) -> AsyncIterator[Held]:
    held = Held()
    ledger.open += 1
    try:
        yield held
    finally:
        ledger.open -= 1
        ledger.ended.append(held.settled)
