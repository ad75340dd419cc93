"""A session's surroundings, scripted: limits, budget, provider, queue and mailbox."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import attrs
import msgspec
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from coach import config
from coach.budget import Ask, LocalLimits, Patience
from coach.errors import Conflict
from coach.grading import (
    Failure,
    Grade,
    Receiver,
    Status,
    Submission,
    SubmissionState,
    load_rubric,
)
from coach.ops import Costs, Flag, Flags
from coach.providers import (
    Completion,
    Conversation,
    Estimator,
    FirstTokens,
    Prompt,
    Pseudonyms,
    Question,
    Sink,
    Usage,
)
from coach.session import (
    Authority,
    Pacer,
    Route,
    Services,
    Sessions,
    open_sessions,
    serve_session,
)
from coach.session.auth import Identity
from coach.session.resume import Claim, Kept, Tail, claim_of
from coach.store import ConnectionLost
from tests.support.costs import new_costs
from tests.support.warmth import no_warmth, unshared_warmth

AUTHORITY = Authority("k" * 32, token_s=3600, leeway_s=0)
ANA = Identity("ana", "school", "student", 0.0)
GRADE = Grade(score=71, criteria=(), judges=1, degraded=False, feedback="Shorten it.")


@attrs.define
class Ledger:
    """What was reserved and how each reservation ended: the settled amount, or None (refunded)."""

    open: int = 0
    ended: list[object] = attrs.field(factory=list)


@attrs.define
class Held:
    """A reservation or an admission."""

    settled: object = None
    tokens: int = 1_000_000
    """Of a reservation: what may be used."""
    gate_s: float | None = None

    def settle(self, spent: object) -> None:
        self.settled = spent

    def observe(self, headers: Mapping[str, str]) -> None:
        pass

    def close_gate(self, retry_after_s: float) -> None:
        self.gate_s = retry_after_s


@attrs.define
class ScriptedCircuit:
    """A breaker that lets everybody in, or nobody but who has nowhere else to go."""

    shut: bool = False
    told: list[str] = attrs.field(factory=list)
    """How each leave ended: "ok", "fault", "nothing", and "held" before it."""

    async def ask(self) -> ScriptedLeave | None:
        return None if self.shut else ScriptedLeave(self.told)

    def bypass(self) -> ScriptedLeave:
        return ScriptedLeave(self.told)


@attrs.define
class ScriptedLeave:
    told: list[str]
    ended: bool = False

    def succeeded(self) -> None:
        self._end("ok")

    def failed(self, *, is_fault: bool, hold_s: float | None = None) -> None:
        if hold_s is not None:
            self.told.append("held")
        self._end("fault" if is_fault else "nothing")

    def dropped(self) -> None:
        self._end("nothing")

    def _end(self, how: str) -> None:
        if not self.ended:
            self.ended = True
            self.told.append(how)


@attrs.define(eq=False)
class FakeRecords:
    """`Records` without Redis, as the scripts have it; letters arrive at once."""

    sessions: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    tails: dict[str, list[bytes]] = attrs.field(factory=dict)
    workers: dict[str, Sessions] = attrs.field(factory=dict)
    dead: set[str] = attrs.field(factory=set)
    """Workers whose mail nobody reads."""
    on_post: Callable[[str], Awaitable[object]] | None = None
    """Awaited with the kind of a letter before it arrives."""
    trip_s: float = 0.001
    away: bool = False
    trips: int = 0

    async def _trip(self) -> None:
        self.trips += 1
        await trio.sleep(self.trip_s)
        if self.away:
            raise ConnectionLost("no redis")

    async def keep(
        self,
        session: str,
        *,
        worker: str,
        epoch: int,
        fields: Mapping[str, str | bytes],
        said: Sequence[bytes],
        tail: Tail,
        parted: bool,
    ) -> Kept:
        await self._trip()
        record = self.sessions.setdefault(session, {"epoch": epoch, "worker": worker})
        if record.get("revoked"):
            return "revoked"
        if record["epoch"] != epoch or record["worker"] not in {worker, ""}:
            return "moved"
        record["worker"] = "" if parted else worker
        record |= {k: v.encode() if isinstance(v, str) else v for k, v in fields.items()}
        if tail != "append":
            self.tails.pop(session, None)
        self.tails.setdefault(session, []).extend(said)
        return "kept"

    async def claim(
        self, session: str, *, digest: str, identity: Identity | None, worker: str, then: str
    ) -> Claim | None:
        await self._trip()
        record = self.sessions.get(session)
        if record is None or record.get("revoked"):
            return None
        if digest.encode() not in {record["token"], record["previous"]}:
            return None
        if identity is not None and identity.user.encode() != record["user"]:
            return None
        holder = record["worker"]
        record["epoch"] += 1
        record |= {"worker": worker, "token": then.encode(), "previous": digest.encode()}
        fields = {k: v for k, v in record.items() if k not in {"epoch", "worker"}}
        return claim_of(holder, record["epoch"], fields, tuple(self.tails.get(session, ())))

    async def post(self, to: str, *letters: Mapping[str, str | bytes]) -> None:
        await self._trip()
        if self.on_post is not None:
            await self.on_post(str(letters[0]["kind"]))
        if to in self.dead or to not in self.workers:
            return
        for letter in letters:
            self.workers[to]._deliver(
                {k.encode(): v if isinstance(v, bytes) else v.encode() for k, v in letter.items()}
            )


@attrs.define(eq=False)
class FakeInbox:
    """`Inbox` without Redis."""

    essays: dict[tuple[str, str], list[str]] = attrs.field(factory=dict)
    places: dict[tuple[str, str], set[str]] = attrs.field(factory=dict)
    away: Exception | None = None

    async def expect(self, org: str, user: str, submission: str) -> None:
        await self._trip()
        waiting = self.essays.setdefault((org, user), [])
        if submission not in waiting:
            waiting.append(submission)

    async def told(self, org: str, user: str, *submissions: str) -> None:
        await self._trip()
        waiting = self.essays.get((org, user), [])
        waiting[:] = [each for each in waiting if each not in submissions]

    async def come(self, org: str, user: str, worker: str) -> list[str]:
        await self._trip()
        self.places.setdefault((org, user), set()).add(worker)
        return list(self.essays.get((org, user), ()))

    async def leave(self, org: str, user: str, worker: str) -> None:
        await self._trip()
        self.places.get((org, user), set()).discard(worker)

    async def _trip(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            raise self.away


@attrs.define
class World:
    """The scripted parts. `script` is what the provider does for each request."""

    script: Callable[[Prompt, Sink], Awaitable[Completion]]
    line: list[tuple[int, float]] = attrs.field(factory=list)
    """Positions told, and how long each lasts."""
    settle_s: float = 0.0
    """How long giving back takes, as a round trip to Redis does."""
    on_admitted: Callable[[], None] = lambda: None
    """Called in the moment of an admission."""
    limits: Ledger = attrs.field(factory=Ledger)
    budget: Ledger = attrs.field(factory=Ledger)
    gates: list[float] = attrs.field(factory=list)
    full: Exception | None = None
    """Why the budget takes nobody in."""
    circuit: ScriptedCircuit = attrs.field(factory=ScriptedCircuit)
    first_tokens: FirstTokens = attrs.field(factory=lambda: FirstTokens(s_min=1.0, s_max=5.0))
    others: list[World] = attrs.field(factory=list)
    """Further providers, in order of preference; each keeps its own budget."""
    streams_open: int = 0
    streams: int = 0
    refuse: Exception | None = None
    submitted: list[Submission] = attrs.field(factory=list)
    submit_s: float = 0.0
    states: dict[str, SubmissionState] = attrs.field(factory=dict)
    """Where the queue answers otherwise than `queued`."""
    away: Exception | None = None
    """Why the queue cannot be asked."""
    graded_at_once: list[tuple[Submission, set[Flag]]] = attrs.field(factory=list)
    """Without the queue, and the flags that were off."""
    grading_open: int = 0
    grade_s: float = 0.2
    """How long that takes; beyond 8, as long again, and the student is told."""
    no_grade: Exception | None = None
    """Why it comes to nothing."""
    inbox: FakeInbox = attrs.field(factory=FakeInbox)
    mailed: list[tuple[Receiver, str, bytes]] = attrs.field(factory=list)
    """To all of somebody's sessions, in whichever worker."""
    caches: bool = False
    """The provider keeps what it has read of a prompt."""
    records: Any = attrs.field(factory=FakeRecords)
    """In place of Redis; worlds that share it are workers of one coach."""
    worker: str = "w-test"
    session: config.Session = attrs.field(factory=lambda: config.Session(detached_s=0))
    """By default a session ends with its connection."""
    _open: Sessions | None = None  # while somebody is connected, or `at_home` lasts

    rollout: config.Rollout = attrs.field(factory=config.Rollout)
    own_limits: config.Limits = attrs.field(factory=config.Limits)
    """What the worker counts for itself."""
    costs: Costs = attrs.field(factory=new_costs)
    wanted: list[Mapping[str, object]] = attrs.field(factory=list)
    """What was to be reserved in the limits."""
    tokens_lent: int = 1_000_000
    """What they lend, whatever was wanted."""
    patiences: list[object] = attrs.field(factory=list)
    """How long each admission might wait for Redis."""
    estimator: Estimator = attrs.field(factory=Estimator)
    _left: int = 0  # sessions that were open when the worker ended
    name: str = "scripted"
    model: str = "script-1"

    @asynccontextmanager
    async def reserve(self, **wanted: object) -> AsyncIterator[Held]:
        await trio.lowlevel.checkpoint()
        self.wanted.append(wanted)
        if self.refuse is not None:
            raise self.refuse
        async with self._held(self.limits) as held:
            held.tokens = self.tokens_lent
            yield held

    @asynccontextmanager
    async def admit(
        self,
        _ask: Ask,
        *,
        on_position: Callable[[int, float], None],
        patience: Patience,
        **_: object,
    ) -> AsyncIterator[Held]:
        await trio.lowlevel.checkpoint()
        self.patiences.append(patience)
        if self.full is not None:
            raise self.full
        for position, eta_s in self.line:
            on_position(position, eta_s)
            await trio.sleep(eta_s)
        async with self._held(self.budget) as held:
            self.on_admitted()
            yield held

    @asynccontextmanager
    async def _held(self, ledger: Ledger) -> AsyncIterator[Held]:
        held = Held()
        ledger.open += 1
        try:
            yield held
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.settle_s)
            ledger.open -= 1
            ledger.ended.append(held.settled)
            if held.gate_s is not None:
                self.gates.append(held.gate_s)

    async def stream(self, prompt: Prompt, sink: Sink, **_: object) -> Completion:
        self.streams += 1
        self.streams_open += 1
        try:
            return await self.script(prompt, sink)
        finally:
            self.streams_open -= 1

    async def submit(self, submission: Submission) -> SubmissionState:
        await trio.sleep(self.submit_s)
        known = {earlier.id: earlier.text for earlier in self.submitted}
        if known.get(submission.id, submission.text) != submission.text:
            raise Conflict("this submission id was used for another text")
        self.submitted.append(submission)
        return self.states.get(submission.id) or state(submission)

    async def get(self, _org: str, submission: str) -> SubmissionState | None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            raise self.away
        if submission in self.states:
            return self.states[submission]
        return next((state(known) for known in self.submitted if known.id == submission), None)

    async def mail_all(self, receiver: Receiver, org: str, payload: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.mailed.append((receiver, org, payload))

    async def grade(
        self, submission: Submission, *, off: Collection[Flag], on_late: Callable[[], None]
    ) -> Grade:
        """At once, without the queue."""
        self.graded_at_once.append((submission, set(off)))
        self.grading_open += 1
        try:
            await trio.sleep(self.grade_s)
            if self.grade_s > 8:
                on_late()
                await trio.sleep(self.grade_s)
            if self.no_grade is not None:
                raise self.no_grade
        finally:
            self.grading_open -= 1
        return GRADE

    def services(self, **server: object) -> Services:
        return Services(
            settings=config.Settings(
                server=config.Server(
                    **{"connections_per_user": 2, "drain_s": 5.0, **server}  # type: ignore[arg-type]
                ),
                session=self.session,
            ),
            worker=self.worker,
            authority=AUTHORITY,
            limits=cast("Any", self),
            local_limits=LocalLimits(self.own_limits),
            routes=[
                Route(
                    provider=cast("Any", world),
                    budget=cast("Any", world),
                    circuit=cast("Any", world.circuit),
                    warmth=unshared_warmth() if world.caches else no_warmth(),
                    first_tokens=world.first_tokens,
                    output_tokens_max=100,
                    unpooled=cast("Any", world),
                )
                for world in (self, *self.others)
            ],
            queue=cast("Any", self),
            at_once=cast("Any", self),
            rubric=load_rubric(None),
            costs=self.costs,
            pacer=Pacer(0),
            flags=Flags(self.rollout),
            pseudonyms=Pseudonyms("k"),
        )

    @asynccontextmanager
    async def student(self, user: str = "ana", **server: object) -> AsyncIterator[Client]:
        """A student connected to a session of this world; has said hello."""
        async with self.connected(**server) as client:
            await client.hello(user)
            yield client

    @asynccontextmanager
    async def connected(self, **server: object) -> AsyncIterator[Client]:
        """A WebSocket to a session of this world, before hello."""
        near, far = wire_pair()
        async with self.at_home(**server) as sessions, trio.open_nursery() as served:
            served.start_soon(serve_session, far, sessions._services, sessions)
            async with open_client(near) as client:
                yield client

    @asynccontextmanager
    async def at_home(self, **server: object) -> AsyncIterator[Sessions]:
        """The worker of this world; entered again, the same one."""
        if self._open is not None:
            yield self._open
            return
        services = self.services(**server)
        async with open_sessions(services, self.records, services.settings) as sessions:
            if isinstance(self.records, FakeRecords):
                self.records.workers[self.worker] = sessions
            self._open = sessions
            try:
                yield sessions
                with trio.move_on_after(10):
                    while any(session.is_over for session in sessions._by_id.values()):  # noqa: ASYNC110
                        await trio.sleep(0.1)
            finally:
                self._open = None
        self._left = len(sessions)

    async def serve(self, connection: Wired, **server: object) -> None:
        """`serve_session`, on this world's worker."""
        async with self.at_home(**server) as sessions:
            await serve_session(connection, sessions._services, sessions)

    @property
    def sessions(self) -> Sessions:
        """The registry, while somebody is connected."""
        assert self._open is not None
        return self._open

    @property
    def balanced(self) -> bool:
        """Nothing is reserved or streaming, and no session is registered."""
        held = self.limits.open or self.budget.open or self.streams_open or self.grading_open
        left = self._left if self._open is None else len(self._open)
        return not (held or left)

    @property
    def session_id(self) -> str:
        """The only session's."""
        (name,) = self.sessions._by_id
        return name


@attrs.frozen
class Wired:
    """A connection as the edge hands it over."""

    stream: trio.SocketStream

    tls: None = None

    @property
    def socket(self) -> trio.socket.SocketType:
        return self.stream.socket


def wire_pair() -> tuple[trio.SocketStream, Wired]:
    """The student's end of a connection, and the server's."""
    near, far = (trio.SocketStream(trio.socket.from_stdlib_socket(s)) for s in socket.socketpair())
    return near, Wired(far)


@asynccontextmanager
async def open_client(stream: trio.SocketStream) -> AsyncIterator[Client]:
    """A WebSocket client at the student's end; closes it in the end, without ceremony."""
    async with trio.open_nursery() as nursery:
        try:
            websocket = await wrap_client_stream(nursery, stream, "localhost", "/ws")
            yield Client(websocket, stream)
        finally:
            await trio.aclose_forcefully(stream)
            nursery.cancel_scope.cancel()  # its reader may wait for a message to be taken


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

    async def hello(self, user: str = "ana", **more: object) -> dict[str, Any]:
        token, _ = AUTHORITY.issue(user=user, org="school", role="student")
        await self.send(type="hello", token=token, **more)
        self.welcome = await self.receive()
        if self.welcome["type"] == "welcome":
            self.seq = self.welcome["seq"]
        return self.welcome

    async def ask(self, request: str, *, draft: str = "d", text: str = "The sea was calm.") -> None:
        await self.send(type="draft", draft=draft, rev=int(request[1:]), text=text)
        await self.send(type="feedback", request=request, draft=draft)

    async def submit(self, submission: str = "s1", *, text: str = "An essay.") -> None:
        await self.send(type="submit", submission=submission, assignment="a", text=text)

    async def until(self, *types: str) -> list[dict[str, Any]]:
        """Everything up to and including the first message of one of `types`."""
        got = [await self.receive()]
        while got[-1]["type"] not in types:
            got.append(await self.receive())
        return got

    async def until_closed(self) -> tuple[list[dict[str, Any]], int]:
        """Everything that still comes, and the close code."""
        await trio.lowlevel.checkpoint()
        got = []
        try:
            while True:
                got.append(await self.receive())
        except ConnectionClosed as closed:
            return got, closed.reason.code if closed.reason is not None else 0


@attrs.define
class Mailbox:
    """Redis as the mailbox sees it: one stream, which can be away."""

    entries: list[tuple[bytes, dict[bytes, bytes]]] = attrs.field(factory=list)
    away: bool = False
    asked: int = 0
    _posted: trio.Event = attrs.field(factory=trio.Event)

    def post(self, **fields: str | bytes) -> None:
        entry = {
            name.encode(): value if isinstance(value, bytes) else value.encode()
            for name, value in fields.items()
        }
        self.entries.append((b"%d-0" % (len(self.entries) + 1), entry))
        self._posted.set()

    async def xread(self, streams: Mapping[str, bytes], *, count: int, block: int) -> object:
        ((key, last),) = streams.items()
        assert key == "mail:w-test"
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if self.away:
            raise ConnectionLost("no redis")
        seen = int(last.partition(b"-")[0])
        if len(self.entries) == seen:
            self._posted = trio.Event()
            with trio.move_on_after(block / 1000):
                await self._posted.wait()
        news = self.entries[seen : seen + count]
        return {key.encode(): [news]} if news else {}


def asked(draft: str) -> Question:
    """The first question about a draft."""
    return Conversation().ask(draft, None, now_s=0.0)


def says(
    *deltas: str, pause_s: float = 0.0, usage: Usage | None = None
) -> Callable[[Prompt, Sink], Awaitable[Completion]]:
    """A provider's script: the deltas, then a proper end."""
    total = usage or Usage(input=50, cache_write=0, cache_read=10, output=len(deltas))

    async def script(_prompt: Prompt, sink: Sink) -> Completion:
        await trio.sleep(pause_s)
        sink.on_start("script-1", attrs.evolve(total, output=1))
        for text in deltas:
            sink.on_delta(text)
            await trio.sleep(pause_s)
        return Completion(
            text="".join(deltas), usage=total, stop_reason="end_turn", model="script-1"
        )

    return script


def state(
    submission: Submission,
    status: Status = "queued",
    *,
    grade: Grade | None = None,
    failure: Failure | None = None,
) -> SubmissionState:
    """A submission's state as the queue would report it."""
    return SubmissionState(
        id=submission.id,
        user=submission.user,
        org=submission.org,
        status=status,
        grade=grade,
        failure=failure,
    )
