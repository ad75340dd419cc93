"""A simulator without sockets, on a clock that the test moves; and a request for it."""

from __future__ import annotations

import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import httpx

from coach.simulator.account import Account
from coach.simulator.authority import CA_NAME
from coach.simulator.dialect import Dialect
from coach.simulator.exchange import Work
from coach.simulator.faults import FaultName, Rule
from coach.simulator.messages import Messages
from coach.simulator.provider import Provider
from coach.simulator.service import Service
from coach.simulator.settings import Settings

HEADERS = {
    b"x-api-key": b"test",
    b"anthropic-version": b"2023-06-01",
    b"authorization": b"Bearer test",
}
"""For both protocols."""
EXACT: dict[str, Any] = {"ttft_ms": 200.0, "ttft_jitter_ms": 0, "judge_jitter_ms": 0}
"""Latencies without chance."""
SCHEMA = {
    "type": "object",
    "properties": {"content": {"type": "integer", "enum": [0, 1, 2, 3, 4, 5]}},
    "required": ["content"],
    "additionalProperties": False,
}
WALL_S = 1_700_000_000.0


def question(
    text: str = "A short text of mine.", *, system: Any = "Be kind.", **more: Any
) -> dict[str, Any]:
    """The body of `POST /v1/messages`, streamed unless `more` says otherwise."""
    return {
        "model": "sim-1",
        "max_tokens": 500,
        "stream": True,
        "system": system,
        "messages": [{"role": "user", "content": f"<essay>\n{text}\n</essay>\nPlease comment."}],
        **more,
    }


def judged(**more: Any) -> dict[str, Any]:
    """A request for JSON, not streamed."""
    output = {"format": {"type": "json_schema", "schema": SCHEMA}}
    return question(**{"stream": False, "output_config": output, **more})


@attrs.define(eq=False)
class FakeExchange:
    """An exchange that writes down what happened to it."""

    method: bytes = b"POST"
    path: bytes = b"/v1/messages"
    headers: dict[bytes, bytes] = attrs.field(factory=lambda: dict(HEADERS))
    body: bytes = b""
    too_large: bool = False
    work: Work | None = None
    status: int = 0
    answer_headers: dict[str, str] = attrs.field(factory=dict)
    data: bytes = b""
    done: list[str] = attrs.field(factory=list)
    """`start`, `end` and the ways to break off, in their order."""

    def start(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        self.status = status
        self.answer_headers = {name.decode(): value.decode() for name, value in headers}
        self.done.append("start")

    def write(self, data: bytes) -> None:
        assert self.done == ["start"]
        self.data += data

    def end(self) -> None:
        self.done.append("end")

    def refuse(self) -> None:
        self.done.append("refuse")

    def reset(self) -> None:
        self.done.append("reset")

    def abort(self) -> None:
        self.done.append("abort")

    def go_away(self) -> None:
        self.done.append("go_away")

    @property
    def json(self) -> Any:
        """The body of an answer in one piece."""
        return json.loads(self.data)

    @property
    def events(self) -> list[tuple[str, Any]]:
        """Name and data of each event of a stream so far; data that is not JSON is None."""
        return events_in(self.data)

    @property
    def names(self) -> list[str]:
        """Of the events, deltas as one."""
        names: list[str] = []
        for name, _ in self.events:
            if names[-1:] != [name]:
                names.append(name)
        return names


class Bench:
    """A service, and time."""

    def __init__(
        self,
        faults: dict[FaultName, Rule] | None = None,
        *,
        dialect: Dialect | None = None,
        **settings: Any,
    ) -> None:
        self.now = 1_000.0
        self.account = Account(
            Settings(**{**EXACT, **settings}),
            faults or {},
            dialect=dialect or Messages(),
            clock=lambda: self.now,
            wall=lambda: WALL_S + self.now,
        )
        self.changes: list[Settings] = []
        self.service = Service(self.account, on_change=self.changes.append)

    def ask(
        self,
        body: dict[str, Any] | bytes | None = None,
        *,
        method: str = "POST",
        path: str | None = None,
        headers: dict[bytes, bytes] = HEADERS,
        too_large: bool = False,
    ) -> FakeExchange:
        """Send a request; the answer comes as time passes."""
        body = question() if body is None else body
        exchange = FakeExchange(
            method=method.encode(),
            path=(path or self.account.dialect.path).encode(),
            headers=dict(headers),
            body=body if isinstance(body, bytes) else json.dumps(body).encode(),
            too_large=too_large,
        )
        self.service.receive(exchange)
        return exchange

    def run(self, seconds: float) -> None:
        """Let time pass, firing every timer when it is due."""
        until = self.now + seconds
        while (due := self.account.wheel.next_s()) <= until:
            self.now = max(self.now, due)
            self.service.tick(self.now)
        self.now = until

    def stats(self) -> dict[str, float]:
        """`GET /stats`."""
        numbers: dict[str, float] = self.ask(b"", method="GET", path="/stats").json
        return numbers

    def control(self, **changes: Any) -> FakeExchange:
        """`POST /control`."""
        return self.ask(changes, path="/control", headers={})


def client_of(provider: Provider, data_dir: Path, **options: Any) -> httpx.AsyncClient:
    """An HTTP/2 client that trusts the simulator."""
    context = ssl.create_default_context(cafile=str(data_dir / CA_NAME))
    headers = {name.decode(): value.decode() for name, value in HEADERS.items()}
    return httpx.AsyncClient(
        **{
            "base_url": provider.url,
            "verify": context,
            "http2": True,
            "headers": headers,
            **options,
        }
    )


def events_in(data: bytes) -> list[tuple[str, Any]]:
    """Server-sent events, each with its name and data; data that is not JSON is None."""
    events = []
    for block in data.decode().split("\n\n")[:-1]:
        name, _, value = block.removeprefix("event: ").partition("\ndata: ")
        try:
            events.append((name, json.loads(value)))
        except json.JSONDecodeError:
            events.append((name, None))
    return events


def text_of(events: list[tuple[str, Any]]) -> str:
    """What the deltas say."""
    deltas = (data["delta"] for name, data in events if name == "content_block_delta" and data)
    return "".join(delta["text"] for delta in deltas)
