"""A server that speaks coach.v1 to one side of a test: right by default, wrong in named ways.

It serves the writer's page, tokens and WebSockets on one loopback port, with canned feedback and
grades, so that the page and the simulated students can be tested without coach, Redis or provider.
`python -m tests.support.fake_coach 8099` runs it by hand.
"""

from __future__ import annotations

import contextlib
import json
import mimetypes
import re
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_server_stream

WEB = Path(__file__).parents[2] / "coach" / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
BYTES_MAX = 262_144
LABELS = {
    "content": "Content",
    "structure": "Structure",
    "language": "Language",
    "spag": "Spelling, punctuation, grammar",
}
RUBRIC = [
    {"name": name, "label": label, "weight": 25, "bands": ["Nothing.", "A little.", "All of it."]}
    for name, label in LABELS.items()
]
Message = dict[str, Any]


@attrs.define(kw_only=True)
class FakeCoach:
    """What it answers, and what it has heard."""

    url: str = ""
    first_token_s: float = 0.2
    event_s: float = 0.05
    grade_s: float = 0.3
    queue_s: float = 0.4
    """At each position of the line."""
    queued: int = 0
    """Position announced before a turn starts; 0: none."""
    adds: bool = False
    """Answers to a draft that it has read before are about its last words, and say so."""
    mutate: Callable[[Message], list[Message]] = lambda message: [message]
    """Turns one message to the client into those really sent: the fault."""
    refuse_sockets: bool = False
    refusals: list[str] = attrs.field(factory=list)
    """Codes of the errors with which the next hellos are answered."""
    mute: bool = False
    """Hears everything and says nothing, as a network that has died silently."""
    heard: list[Message] = attrs.field(factory=list)
    drafts: dict[str, str] = attrs.field(factory=dict)
    """Of the newest connection."""
    read: set[str] = attrs.field(factory=set)
    """Drafts, by name, of which an answer was given."""
    connections: int = 0
    """How many there have been."""
    tokens: int = 0
    """How many were given away: t1, t2, …"""
    token_s: float = 1e9
    """How long each is valid."""
    _sessions: list[_Session] = attrs.field(factory=list)

    async def cut(self) -> None:
        """Break every connection, as a lost network does."""
        for session in list(self._sessions):
            await trio.aclose_forcefully(session.stream)

    def cutter(self) -> Callable[[], None]:
        """`cut` for another thread; returns when every connection is broken."""
        token = trio.lowlevel.current_trio_token()
        return lambda: trio.from_thread.run(self.cut, trio_token=token)

    def said(self, kind: str) -> list[Message]:
        """The messages of one type that clients have sent."""
        return [message for message in self.heard if message["type"] == kind]

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection: a WebSocket, or a single HTTP exchange."""
        head = b""
        with contextlib.suppress(trio.BrokenResourceError, ConnectionClosed):
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:
                    return
                head += data
            method, path, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
            if b"upgrade: websocket" in head.lower() and not self.refuse_sockets:
                await self._websocket(_Replay(stream, head))
            else:
                await stream.send_all(self._respond(method, path))
        await trio.aclose_forcefully(stream)

    def _respond(self, method: str, path: str) -> bytes:
        if (method, path) != ("POST", "/api/token"):
            return _respond(path)
        self.tokens += 1
        given = {"token": f"t{self.tokens}", "user": "u", "expires_at": time.time() + self.token_s}
        return _response("200 OK", "application/json", json.dumps(given).encode())

    async def _websocket(self, stream: _Replay) -> None:
        async with trio.open_nursery() as nursery:
            request = await wrap_server_stream(nursery, stream)
            socket = await request.accept(subprotocol="coach.v1")
            self.connections += 1
            session = _Session(self, socket, stream, nursery)
            self._sessions.append(session)
            try:
                await session.run()
            finally:
                self._sessions.remove(session)
                nursery.cancel_scope.cancel()


@attrs.define(eq=False)
class _Session:
    coach: FakeCoach
    socket: WebSocketConnection
    stream: _Replay
    nursery: trio.Nursery
    seq: int = 0
    greeted: bool = False
    drafts: dict[str, str] = attrs.field(factory=dict)
    turns: dict[str, tuple[str, trio.CancelScope]] = attrs.field(factory=dict)  # by draft

    async def run(self) -> None:
        with contextlib.suppress(ConnectionClosed):
            while True:
                text = await self.socket.get_message()
                assert len(str(text).encode()) <= BYTES_MAX, "coach closes such a connection"
                message = json.loads(text)
                self.coach.heard.append(message)
                await self.handle(message)

    async def handle(self, message: Message) -> None:
        kind, drafts = message["type"], self.drafts
        if kind == "hello" and self.coach.refusals:
            error = {"type": "error", "code": self.coach.refusals.pop(0), "message": "x", "seq": 1}
            await self.socket.send_message(json.dumps(error))
            await self.socket.aclose(1008)
        elif kind == "hello" and self.greeted:
            pass  # a newer token has no answer
        elif kind == "hello":
            self.greeted = True
            self.coach.drafts = drafts
            limits = {"message_bytes": BYTES_MAX, "draft_chars": 100_000, "drafts": 8}
            session = f"s{self.coach.connections}"
            welcome = {"type": "welcome", "session": session, "seq": 0, "replayed": 0}
            await self.socket.send_message(json.dumps({**welcome, "limits": limits}))
        elif kind == "draft":
            drafts[message["draft"]] = message["text"]
        elif kind == "edit":
            units = drafts.get(message["draft"], "").encode("utf-16-le")
            for at, delete, insert in message["splices"]:
                assert 0 <= at <= at + delete <= len(units) // 2, "splice out of range"
                units = units[: at * 2] + insert.encode("utf-16-le") + units[(at + delete) * 2 :]
            drafts[message["draft"]] = units.decode("utf-16-le")
        elif kind == "cancel":
            for request, scope in self.turns.values():
                if request == message["request"]:
                    scope.cancel()
        elif kind == "feedback":
            self.nursery.start_soon(self.turn, message["request"], message["draft"])
        elif kind == "submit":
            self.nursery.start_soon(self.grade, message["submission"], message["text"])

    async def send(self, message: Message) -> None:
        for said in [] if self.coach.mute else self.coach.mutate(message):
            self.seq += 1
            with contextlib.suppress(ConnectionClosed):
                await self.socket.send_message(json.dumps({"seq": self.seq, **said}))

    async def turn(self, request: str, draft: str) -> None:
        old = self.turns.get(draft)
        if old is not None:
            old[1].cancel()
        scope = trio.CancelScope()
        self.turns[draft] = request, scope
        with scope:
            if self.coach.queued:
                for position in range(self.coach.queued, 0, -1):
                    await self.send(
                        {"type": "queued", "request": request, "position": position, "eta_ms": 400}
                    )
                    await trio.sleep(self.coach.queue_s)
            started: Message = {
                "type": "started",
                "request": request,
                "provider": "p",
                "model": "m",
            }
            answer = feedback_on(self.drafts.get(draft, ""))
            if self.coach.adds and draft in self.coach.read:
                started["adds"] = True
                answer = feedback_on_new(self.drafts.get(draft, ""))
            await self.send(started)
            await trio.sleep(self.coach.first_token_s)
            for piece in re.findall(r"\S+\s*", answer):
                await self.send({"type": "delta", "request": request, "text": piece})
                await trio.sleep(self.coach.event_s)
            self.coach.read.add(draft)
            usage = {"input": 900, "cached": 400, "output": 90}
            await self.send(
                {"type": "done", "request": request, "usage": usage, "stop_reason": "end_turn"}
            )
        if scope.cancelled_caught:
            await self.send(
                {"type": "error", "request": request, "code": "cancelled", "message": "replaced"}
            )

    async def grade(self, submission: str, text: str) -> None:
        await self.send({"type": "grading", "submission": submission})
        await trio.sleep(self.coach.grade_s)
        await self.send({"type": "grade", "submission": submission, **grade_of(text)})


def feedback_on(draft: str) -> str:
    """Comments on the first words of `draft`, in the form the models are asked for."""
    words = draft.split()
    quotes = [" ".join(words[at : at + 6]) for at in (0, len(words) // 3, 2 * len(words) // 3)]
    names = ("Content", "Structure", "Language")
    comments = (
        "A clear opening that says at once what the piece is about, and makes one want to read on.",
        "This step comes suddenly: one linking sentence would carry the reader across.",
        "The word is used twice close together; try another one the second time.",
    )
    lines = [
        f"[{name}] «{quote}» {comment}"
        for name, quote, comment in zip(names, quotes, comments, strict=True)
    ]
    return "\n".join([*lines, "[Next step] «not in the draft» Read it aloud once, slowly."])


def feedback_on_new(draft: str) -> str:
    """A comment on the last words of `draft`."""
    return f"[Content] «{' '.join(draft.split()[-4:])}» This is new to me. Next: go on."


def grade_of(text: str) -> Message:
    """A grade whose evidence stands in `text`."""
    quote = " ".join(text.split()[:8])
    criteria = [
        {
            "name": name,
            "label": label,
            "band": 2 + index % 3,
            "band_max": 5,
            "evidence": quote,
            "reason": "The idea is developed and supported, though one example stays general.",
        }
        for index, (name, label) in enumerate(LABELS.items())
    ]
    return {
        "score": 67,
        "criteria": criteria,
        "judges": 3,
        "bands_apart": 1,
        "degraded": False,
        "calibration": 3,
        "interval": [58, 76],
        "coverage": 0.9,
        "feedback": "Link the second paragraph to the first, then check the commas.",
    }


class _Replay(trio.abc.HalfCloseableStream):
    """A stream whose first bytes have been read already."""

    def __init__(self, stream: trio.SocketStream, head: bytes) -> None:
        self._stream, self._head = stream, head

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self._head:
            head, self._head = self._head, b""
            return head
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


def _respond(path: str) -> bytes:
    path = path.partition("?")[0]
    status, kind, body = "200 OK", "application/json", b"{}"
    file = WEB / ("index.html" if path == "/" else path.removeprefix("/static/"))
    if path == "/api/rubric":
        body = json.dumps({"title": "Essay", "criteria": RUBRIC}).encode()
    elif path == "/api/assignments":
        body = json.dumps(
            [
                {"id": "argue", "title": "Take a side", "task": "Argue for or against a rule."},
                {"id": "tell", "title": "Tell a story", "task": "A day that went differently."},
            ]
        ).encode()
    elif (path == "/" or path.startswith("/static/")) and ".." not in path and file.is_file():
        kind, body = mimetypes.guess_type(file.name)[0] or "text/plain", file.read_bytes()
    elif path != "/healthz":
        status = "404 Not Found"
    return _response(status, kind, body)


def _response(status: str, kind: str, body: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"Content-Security-Policy: {CSP}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


@asynccontextmanager
async def open_fake_coach(coach: FakeCoach, *, port: int = 0) -> AsyncIterator[FakeCoach]:
    """Serve `coach` on a loopback port; everything ends with the block."""
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(port, host="127.0.0.1")
        coach.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        await nursery.start(trio.serve_listeners, coach.serve, listeners)
        yield coach
        nursery.cancel_scope.cancel()


async def _main(port: int) -> None:
    async with open_fake_coach(FakeCoach(), port=port):
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main, int(sys.argv[1]))
