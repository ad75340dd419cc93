"""Simulated students: each types an essay over a real WebSocket, gets feedback, hands it in.

A class of students arrives by a schedule that is fixed before the run (open loop), so that a slow
server cannot slow the load down and hide its own slowness ("coordinated omission", G. Tene). All
randomness comes from one seed: the same seed gives the same essays, typing and pauses.

`keystrokes` decides what is typed when, `conversation` checks and measures what comes back; here
are the sockets and the clock. Memory: per student one essay and a connection, about 60 KiB.
"""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import random
import secrets
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import httpx
import msgspec
import trio
from trio_websocket import (
    ConnectionClosed,
    HandshakeError,
    WebSocketConnection,
    wrap_client_stream,
)

from ..errors import ConfigurationError
from .conversation import Conversation, Tally
from .corpus import Essay, load_essays
from .keystrokes import Thought, keystrokes

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]

SUBPROTOCOL: Final = "coach.v1"
CHARS_PER_S: Final = 4.0
"""Unhurried typing, about 50 words a minute; a short run makes its students type faster."""
ESSAY_S_MIN: Final = 30.0
"""A student with less time than this left begins no further essay."""
TYPING_SHARE: Final = (0.55, 0.75)
"""Range of the part of the remaining time that a hurried student types for."""
FEEDBACK_S_MAX: Final = 15.0
"""How long a student waits for the last feedback before handing in."""
HAND_IN_MARGIN_S: Final = 1.0
"""Every student hands in at least this long before the end."""
ACK_S: Final = 1.0
WELCOME_S_MAX: Final = 10.0
CONNECT_S_MAX: Final = 10.0
CLOSE_S_MAX: Final = 2.0
MESSAGES_WAITING_MAX: Final = 4096
"""Messages that may wait for a student's own reader; the library stops answering pings then."""
MESSAGE_BYTES_MAX: Final = 1 << 20


@attrs.frozen(kw_only=True)
class Plan:
    """What a run is told."""

    url: str = "http://127.0.0.1:8000"
    writers: int = 60
    seconds: float = 60.0
    """From the first arrival until the last essay must be handed in."""
    seed: int = 1
    ramp_s: float = 5.0
    """The students arrive evenly over this time."""
    turn_every_s: float = 9.0
    """Mean time between a student's requests for feedback."""
    grace_s: float = 30.0
    """How long after the end outstanding grades may come."""

    def __attrs_post_init__(self) -> None:
        """Check the relations between the fields.

        Raises:
          ConfigurationError: a value is out of range; one line that names it.
        """
        if self.writers < 1:
            raise ConfigurationError("writers must be 1 or more")
        if not 2 <= self.seconds <= 86_400:
            raise ConfigurationError("seconds must be between 2 and 86400")
        if not 0 <= self.ramp_s <= self.seconds / 2:
            raise ConfigurationError("the ramp must not be longer than half of the run")
        if self.turn_every_s < 1 or self.grace_s < 0:
            raise ConfigurationError("turn-every must be 1 or more, grace 0 or more")


@attrs.define
class Presence:
    """How many students are doing what just now, for whoever watches."""

    arrived: int = 0
    connected: int = 0
    typing: int = 0
    finished: int = 0


@attrs.frozen
class Report:
    """A finished run."""

    plan: Plan
    tally: Tally
    elapsed_s: float

    @property
    def ok(self) -> bool:
        """No error, and every student's essay was handed in and graded."""
        tally = self.tally
        return (
            not any(tally.errors.values())
            and tally.graded == tally.submissions >= self.plan.writers
        )

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON has it: times in milliseconds, counts as integers."""
        tally = self.tally
        return {
            "writers": self.plan.writers,
            "seconds": self.plan.seconds,
            "turns": tally.turns,
            "submissions": tally.submissions,
            "graded": tally.graded,
            "errors": {code: count for code, count in sorted(tally.errors.items()) if count},
            "ttft_ms": tally.ttft_ms.summary(),
            "event_ms": tally.event_ms.summary(),
            "score_ms": tally.score_ms.summary(),
            "started_ms": tally.started_ms.summary(),
            "completed": tally.completed,
            "superseded": tally.superseded,
            "superseded_before_text": tally.silent,
            "queued": tally.queued,
            "degraded": tally.degraded,
            "events": tally.deltas,
            "chars": tally.chars,
            "tokens": dict(tally.tokens),
            "elapsed_s": round(self.elapsed_s, 1),
            "seed": self.plan.seed,
            "url": self.plan.url,
        }


def check_loopback(url: str) -> None:
    """Refuse addresses of other machines: a load is for one's own server.

    Raises:
      ConfigurationError: not an http(s) URL, or its host is not a loopback address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{url} is not an address like http://127.0.0.1:8000")
    with contextlib.suppress(ValueError):
        if ipaddress.ip_address(host).is_loopback:
            return
    if host != "localhost":
        raise ConfigurationError(
            f"{host} is not this machine; say --allow-remote if you may put a load on it"
        )


async def check_reachable(url: str) -> None:
    """Ask the server whether it is alive, within 5 s.

    Raises:
      ConfigurationError: it is not; one line that says what was tried.
    """
    try:
        async with httpx.AsyncClient(trust_env=False, timeout=5) as client:
            response = await client.get(f"{url}/healthz")
            response.raise_for_status()
    except httpx.HTTPError as error:
        reason = str(error) or type(error).__name__
        raise ConfigurationError(
            f"no coach answers at {url} ({reason}); start one with scripts/demo"
        ) from error


async def simulate(
    plan: Plan, *, tally: Tally | None = None, presence: Presence | None = None
) -> Report:
    """Run a class of students against a server and report what they saw.

    Args:
      plan: the class.
      tally: where to count; passed in by who wants to watch.
      presence: likewise.

    Returns the report after all students have finished, at the latest `seconds + grace_s` (and a
    few seconds for closing connections) after the start. Never raises for what the server does:
    that is counted. When cancelled, connections are cut.
    """
    tally = Tally() if tally is None else tally
    presence = Presence() if presence is None else presence
    essays = load_essays()
    run = secrets.token_hex(4)
    begin_s = trio.current_time()
    end_s = begin_s + plan.seconds
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32)
    async with (
        httpx.AsyncClient(
            base_url=plan.url, trust_env=False, timeout=CONNECT_S_MAX, limits=limits
        ) as http,
        trio.open_nursery() as nursery,
    ):
        assignments = await _assignments(http)
        nursery.cancel_scope.deadline = end_s + plan.grace_s + CONNECT_S_MAX
        for index in range(plan.writers):
            rng = random.Random(f"{plan.seed}:{index}")  # noqa: S311 - load, not secrets
            student = Student(
                plan=plan,
                run=run,
                name=f"s{index}",
                rng=rng,
                shelf=rng.sample(essays, len(essays)),
                assignment=rng.choice(assignments),
                end_s=end_s,
                tally=tally,
                presence=presence,
            )
            arrival_s = begin_s + plan.ramp_s * index / plan.writers
            nursery.start_soon(student.attend, http, arrival_s)
    if nursery.cancel_scope.cancelled_caught:
        tally.errors["timeout"] += 1
    return Report(plan, tally, trio.current_time() - begin_s)


@attrs.define(eq=False, kw_only=True)
class Student:
    """One simulated student: one connection, one essay after the other until the time is up."""

    plan: Plan
    run: str
    """Differs from run to run, so that submissions of the same seed are not taken for repeats."""
    name: str
    rng: random.Random
    shelf: Sequence[Essay]
    assignment: str
    end_s: float
    tally: Tally
    presence: Presence
    _changed: trio.Event = attrs.field(factory=trio.Event)  # replaced at every message

    async def attend(self, http: httpx.AsyncClient, arrival_s: float) -> None:
        """Arrive at `arrival_s` of trio's clock, work, leave. Errors are counted, not raised."""
        await trio.sleep_until(arrival_s)
        self.presence.arrived += 1
        try:
            token = await _token(http)
            stream = await _connect(self.plan.url)
        except (httpx.HTTPError, ValueError, LookupError, TypeError):
            self.tally.errors["token_failed"] += 1
        except (OSError, trio.TooSlowError, trio.BrokenResourceError):
            self.tally.errors["connect_failed"] += 1
        else:
            async with stream:
                await self._shake_hands(stream, token)
        self.presence.finished += 1

    async def _shake_hands(self, stream: Stream, token: str) -> None:
        """Open the WebSocket on `stream`, converse, close it.

        The library's own `open_websocket_url` leaves the socket open when the server refuses.
        """
        host = urlsplit(self.plan.url).netloc
        try:
            async with trio.open_nursery() as nursery:
                with trio.fail_after(CONNECT_S_MAX):
                    socket = await wrap_client_stream(
                        nursery,
                        stream,
                        host,
                        "/ws",
                        subprotocols=[SUBPROTOCOL],
                        message_queue_size=MESSAGES_WAITING_MAX,
                        max_message_size=MESSAGE_BYTES_MAX,
                    )
                with _counted(self.presence, "connected"):
                    await self._converse(socket, token)
                with trio.move_on_after(CLOSE_S_MAX):
                    await socket.aclose()
                nursery.cancel_scope.cancel("the student leaves")
        except* (HandshakeError, trio.TooSlowError):
            self.tally.errors["connect_failed"] += 1

    async def _converse(self, socket: WebSocketConnection, token: str) -> None:
        conversation = Conversation(self.tally)
        if socket.subprotocol != SUBPROTOCOL:
            self.tally.errors["protocol_subprotocol"] += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen, socket, conversation, nursery.cancel_scope)
            try:
                await _send(socket, {"type": "hello", "token": token})
                with trio.move_on_after(WELCOME_S_MAX):
                    await self._until(lambda: conversation.welcomed)
                if conversation.welcomed:
                    nursery.start_soon(self._acknowledge, socket, conversation)
                    await self._write(socket, conversation)
                else:
                    self.tally.errors["no_welcome"] += 1
            except ConnectionClosed:
                await trio.sleep_forever()  # the listener reads to the end, then cancels
            nursery.cancel_scope.cancel("the student is done")
        conversation.close()

    async def _listen(
        self, socket: WebSocketConnection, conversation: Conversation, scope: trio.CancelScope
    ) -> None:
        try:
            while True:
                message = await socket.get_message()
                conversation.receive(message, trio.current_time())
                self._changed.set()
                self._changed = trio.Event()
        except ConnectionClosed as closed:
            reason = closed.reason
            code = "connection_lost" if reason is None else f"closed_{reason.code}"
            self.tally.errors[code] += 1
            scope.cancel("the connection was lost")

    async def _acknowledge(self, socket: WebSocketConnection, conversation: Conversation) -> None:
        said = -1
        with contextlib.suppress(ConnectionClosed):
            while True:
                await trio.sleep(ACK_S)
                if conversation.seq != said:
                    said = conversation.seq
                    await _send(socket, {"type": "ack", "seq": said})

    async def _write(self, socket: WebSocketConnection, conversation: Conversation) -> None:
        """Write essays until the time is up, then wait for what is outstanding."""
        for number, essay in enumerate(self.shelf):
            left_s = self.end_s - trio.current_time()
            if number > 0 and left_s < ESSAY_S_MIN:
                break
            hurried_s = left_s * self.rng.uniform(*TYPING_SHARE)
            unhurried_s = len(essay.text) / CHARS_PER_S
            await self._write_essay(
                socket, conversation, essay, f"d{number}", min(hurried_s, unhurried_s)
            )
        with trio.move_on_at(self.end_s + self.plan.grace_s):
            await self._until(lambda: conversation.settled)

    async def _write_essay(
        self,
        socket: WebSocketConnection,
        conversation: Conversation,
        essay: Essay,
        draft: str,
        duration_s: float,
    ) -> None:
        hand_in_s = self.end_s - HAND_IN_MARGIN_S
        request, rev = "", 0
        strokes = keystrokes(
            essay.text,
            duration_s=max(duration_s, 1.0),
            think_every_s=self.plan.turn_every_s,
            rng=self.rng,
        )
        with _counted(self.presence, "typing"):
            for number, stroke in enumerate(strokes):
                await trio.sleep(stroke.pause_s)
                if isinstance(stroke, Thought):
                    request = f"{draft}-f{number}"
                    await self._ask(socket, conversation, request, draft)
                else:
                    rev += 1
                    await _send(
                        socket,
                        {"type": "edit", "draft": draft, "rev": rev, "splices": stroke.splices},
                    )
            with trio.move_on_at(min(hand_in_s, trio.current_time() + FEEDBACK_S_MAX)):
                await self._until(lambda: conversation.turn_ended(request))
        await self._hand_in(socket, conversation, essay, f"{self.run}-{self.name}-{draft}")

    async def _ask(
        self, socket: WebSocketConnection, conversation: Conversation, request: str, draft: str
    ) -> None:
        conversation.ask(request, trio.current_time())
        await _send(
            socket,
            {
                "type": "feedback",
                "request": request,
                "draft": draft,
                "assignment": self.assignment,
            },
        )

    async def _hand_in(
        self, socket: WebSocketConnection, conversation: Conversation, essay: Essay, submission: str
    ) -> None:
        conversation.submit(submission, trio.current_time())
        await _send(
            socket,
            {
                "type": "submit",
                "submission": submission,
                "assignment": self.assignment,
                "text": essay.text,
            },
        )

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds`, asked again after every message."""
        while not holds():
            await self._changed.wait()


async def _connect(url: str) -> Stream:
    """A connection to the server, within `CONNECT_S_MAX`."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    with trio.fail_after(CONNECT_S_MAX):
        if parts.scheme == "https":
            return await trio.open_ssl_over_tcp_stream(
                parts.hostname, parts.port or 443, ssl_context=_tls(), https_compatible=True
            )
        return await trio.open_tcp_stream(parts.hostname, parts.port or 80)


async def _send(socket: WebSocketConnection, message: dict[str, Any]) -> None:
    await socket.send_message(msgspec.json.encode(message).decode())


@functools.cache
def _tls() -> ssl.SSLContext:
    """One for all students: making one takes 20 ms of CPU."""
    return ssl.create_default_context()


async def _token(http: httpx.AsyncClient) -> str:
    """A new student's token, as the writer's page gets it."""
    response = await http.post("/api/token")
    response.raise_for_status()
    return str(response.json()["token"])


async def _assignments(http: httpx.AsyncClient) -> list[str]:
    """The ids the server offers, or one of our own where it offers none."""
    try:
        response = await http.get("/api/assignments")
        response.raise_for_status()
        return [str(item["id"]) for item in response.json()] or ["essay"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return ["essay"]


@contextlib.contextmanager
def _counted(presence: Presence, name: str) -> Iterator[None]:
    """Count one student more in `name` while the block runs."""
    setattr(presence, name, getattr(presence, name) + 1)
    try:
        yield
    finally:
        setattr(presence, name, getattr(presence, name) - 1)
