"""The HTTP/2 core against a real `h2` server: any chopping of the bytes gives the same events."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coach.providers import http2
from coach.providers.exchange import Header, StreamError
from coach.providers.http2 import Http2Connection, Http2Stream
from coach.providers.stream import STREAM_WINDOW, ConnectionFailed

REQUEST: list[Header] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"provider.test"),
    (b":path", b"/v1"),
]


@attrs.define(eq=False)
class Notes:
    """A handler that notes what it is told."""

    notes: list[Any] = attrs.field(factory=list)
    active_at: float = 0.0
    on_data: Callable[[bytes], None] = lambda data: None
    raise_at: str | None = None
    calls: int = 0

    def __attrs_post_init__(self) -> None:
        self.on_data = self._on_data

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        self.notes.append((status, list(headers)))
        if self.raise_at == "head":
            raise ZeroDivisionError

    def _on_data(self, data: bytes) -> None:
        self.calls += 1
        if not self.notes or not isinstance(self.notes[-1], bytearray):
            self.notes.append(bytearray())
        self.notes[-1] += data
        if self.raise_at == "data":
            raise ZeroDivisionError

    def on_closed(self, error: Exception | None) -> None:
        self.notes.append(error)

    @property
    def end(self) -> Any:
        return self.notes[-1]


@attrs.define(eq=False)
class Pair:
    """A client and a server, whose bytes are carried by hand."""

    client: Http2Connection = attrs.field(factory=Http2Connection)
    server: h2.connection.H2Connection = attrs.field(
        factory=lambda: h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    )
    events: list[h2.events.Event] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.client.begin()
        self.server.initiate_connection()
        self.to_server()
        self.to_client()
        self.to_server()

    def to_server(self) -> list[h2.events.Event]:
        events = []
        while data := self.client.take_output():
            events += self.server.receive_data(data)
            self.client.drained()
        self.events += events
        return events

    def to_client(self, cuts: Sequence[int] = ()) -> None:
        data = self.server.data_to_send()
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for a, b in pairwise(edges):
            if a < b:
                self.client.receive(data[a:b], 1.0)

    def ask(self, body: bytes = b"", **fields: Any) -> tuple[Http2Stream, Notes]:
        notes = Notes(**fields)
        return self.client.open(REQUEST, body, notes), notes


def raw(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload
    )


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("head"), st.integers(0, 3)),
        st.tuples(st.just("data"), st.integers(0, 3), st.binary(max_size=60), st.integers(0, 20)),
        st.tuples(st.just("trailers"), st.integers(0, 3)),
        st.tuples(st.just("end"), st.integers(0, 3)),
        st.tuples(st.just("reset"), st.integers(0, 3)),
        st.tuples(st.just("ping"), st.integers(0, 3)),
        st.tuples(st.just("settings"), st.integers(0, 3)),
        st.tuples(st.just("early"), st.integers(0, 3)),
    ),
    max_size=40,
)


def play(pair: Pair, steps: Sequence[tuple[Any, ...]]) -> None:
    """Let the server do what it may of these steps."""
    server = pair.server
    begun: set[int] = set()
    over: set[int] = set()
    for name, number, *rest in steps:
        stream = 2 * number + 1
        if name == "ping":
            server.ping(b"01234567")
        elif name == "settings":
            code = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
            server.update_settings({code: 50 + number})
        elif stream in over:
            continue
        elif name == "reset":
            server.reset_stream(stream, 2)
            over.add(stream)
        elif name == "early" and stream not in begun:
            server.send_headers(stream, [(":status", "103"), ("link", "x")])
        elif name == "head" and stream not in begun:
            server.send_headers(stream, [(":status", "200"), ("x-long", "v" * 300)])
            begun.add(stream)
        elif stream not in begun:
            continue
        elif name == "data":
            server.send_data(stream, rest[0], pad_length=rest[1] or None)
        elif name in ("end", "trailers"):
            over.add(stream)
            if name == "end":
                server.end_stream(stream)
            else:
                server.send_headers(stream, [("x-trailer", "1")], end_stream=True)


def run(steps: Sequence[tuple[Any, ...]], cuts: Sequence[int]) -> list[list[Any]]:
    pair = Pair()
    asked = [pair.ask() for _ in range(4)]
    pair.to_server()
    play(pair, steps)
    pair.to_client(cuts)
    return [
        [str(note) if isinstance(note, Exception) else note for note in notes.notes]
        for _, notes in asked
    ]


@settings(max_examples=150, deadline=None)
@given(STEPS, st.lists(st.integers(0, 5000), max_size=40))
def test_any_chunking_gives_the_same_events(steps: list[tuple[Any, ...]], cuts: list[int]) -> None:
    assert run(steps, cuts) == run(steps, ())


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_comes_ends_the_connection_at_worst(data: st.DataObject) -> None:
    """Hostile frames: ConnectionFailed with GOAWAY, or nothing; never another error."""
    pair = Pair()
    for _ in range(3):
        pair.ask(b"body")
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    pair.to_client()
    frame = st.builds(
        raw,
        st.integers(0, 12),
        st.integers(0, 255),
        st.sampled_from([0, 1, 2, 3, 5, 7, 99, 2**31 + 1]),
        st.one_of(st.binary(max_size=30), st.sampled_from([bytes(4), bytes(8), b"\x88"])),
    )
    hostile = b"".join(data.draw(st.lists(frame, max_size=8))) + data.draw(st.binary(max_size=20))
    try:
        pair.client.receive(hostile or b"\0", 1.0)
    except ConnectionFailed:
        assert b"\x07" in pair.client.take_output()  # GOAWAY
        pair.client.abandon("it broke the protocol")
        assert not pair.client.streams


def test_settings_must_come_first() -> None:
    client = Http2Connection()
    client.begin()
    with pytest.raises(ConnectionFailed, match="SETTINGS"):
        client.receive(raw(6, 0, 0, bytes(8)), 1.0)


def test_data_of_one_wake_up_is_handed_on_at_once() -> None:
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    for _ in range(10):
        pair.server.send_data(1, b"ab")
    pair.to_client()
    assert notes.notes == [(200, []), b"ab" * 10]
    assert notes.calls == 1


def test_bodies_wait_for_the_windows_of_stream_and_connection() -> None:
    pair = Pair()
    body = bytes(200_000)
    asked = [pair.ask(body)[0] for _ in range(2)]
    received = {1: 0, 3: 0}
    while True:
        events = pair.to_server()
        if not events:
            break
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                received[event.stream_id] += len(event.data)
                pair.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        pair.to_client()
    assert received == {1: 200_000, 3: 200_000}
    assert all(not stream.body for stream in asked)
    assert sum(isinstance(event, h2.events.StreamEnded) for event in pair.events) == 2


def test_windows_are_given_back_padding_included() -> None:
    pair = Pair()
    pair.ask()
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    for _ in range(3_000):  # 48 MB, three times the stream's window
        pair.server.send_data(1, bytes(16_000), pad_length=200)
        pair.to_client()
        pair.to_server()
    window = pair.server.local_flow_control_window(1)
    assert window >= STREAM_WINDOW - http2.CREDIT_STEP - 2**15


def test_whoever_holds_its_bytes_is_sent_no_more_than_a_window() -> None:
    pair = Pair()
    stream = pair.client.open(REQUEST, b"", Notes(), hold=True)
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    sent = 0
    while (room := pair.server.local_flow_control_window(1)) > 0:
        pair.server.send_data(1, bytes(min(room, 16_384)))
        sent += min(room, 16_384)
        pair.to_client()
        pair.to_server()
    assert sent == STREAM_WINDOW
    pair.client.consumed(stream, sent)
    pair.to_server()
    assert pair.server.local_flow_control_window(1) == STREAM_WINDOW


def test_data_for_streams_that_were_reset_is_counted_and_dropped() -> None:
    pair = Pair()
    stream, notes = pair.ask()
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    for _ in range(65):
        pair.server.send_data(1, bytes(16_384))
    pair.client.reset(stream)
    pair.to_client()
    assert notes.notes == []
    assert any(isinstance(event, h2.events.StreamReset) for event in pair.to_server())
    assert pair.server.outbound_flow_control_window >= http2.CONNECTION_WINDOW - http2.CREDIT_STEP


@pytest.mark.parametrize("where", ["head", "data"])
@pytest.mark.parametrize("ending", ["later", "with data", "with trailers", "with reset"])
def test_a_handler_that_raises_loses_its_own_stream(where: str, ending: str) -> None:
    """However much of the stream has come in the same wake-up."""
    pair = Pair()
    _, broken = pair.ask(raise_at=where)
    _, sound = pair.ask()
    pair.to_server()
    for stream in (1, 3):
        pair.server.send_headers(stream, [(":status", "200")])
        pair.server.send_data(stream, b"data", end_stream=stream == 3 or ending == "with data")
    if ending == "with trailers":
        pair.server.send_headers(1, [("x-trailer", "1")], end_stream=True)
    elif ending == "with reset":
        pair.server.reset_stream(1, 2)
    pair.to_client()
    assert isinstance(broken.end, ZeroDivisionError)
    assert sum(note is None or isinstance(note, Exception) for note in broken.notes) == 1
    assert sound.notes == [(200, []), b"data", None]
    assert pair.client.resets_sent == (where == "head" or ending == "later")
    assert not pair.client.streams
    pair.to_server()


@given(STEPS, st.sampled_from(["head", "data"]), st.lists(st.integers(0, 5000), max_size=10))
def test_handlers_that_raise_at_any_point_are_told_once(
    steps: list[tuple[Any, ...]], where: str, cuts: list[int]
) -> None:
    pair = Pair()
    asked = [pair.ask(raise_at=where if number % 2 else None)[1] for number in range(4)]
    pair.to_server()
    play(pair, steps)
    pair.to_client(cuts)
    pair.to_server()
    for notes in asked:
        ends = [note for note in notes.notes if note is None or isinstance(note, Exception)]
        assert len(ends) <= 1
        assert not ends or ends == [notes.end]


@pytest.mark.parametrize(
    "headers",
    [
        [(":status", "200"), ("content-length", "5x")],
        [(":status", "abc")],
        [("x", "y")],
        [(":status", "200"), ("content-length", "9" * 30)],
    ],
)
def test_an_odd_response_costs_its_own_stream_only(headers: list[tuple[str, str]]) -> None:
    pair = Pair()
    _, odd = pair.ask()
    _, sound = pair.ask()
    pair.to_server()
    block = pair.server.encoder.encode(headers)
    pair.client.receive(raw(1, 0x4, 1, block), 1.0)
    pair.server.send_headers(3, [(":status", "204")], end_stream=True)
    pair.to_client()
    assert isinstance(odd.end, StreamError)
    assert sound.notes == [(204, []), None]


def test_early_answers_stop_the_upload() -> None:
    pair = Pair()
    _, notes = pair.ask(bytes(200_000))
    pair.to_server()
    pair.server.send_headers(1, [(":status", "413")], end_stream=True)
    pair.to_client()
    assert notes.notes == [(413, []), None]
    assert any(isinstance(event, h2.events.StreamReset) for event in pair.to_server())


def test_refused_streams_and_those_above_goaway_are_unprocessed() -> None:
    pair = Pair()
    _, refused = pair.ask()
    _, served = pair.ask()
    _, above = pair.ask()
    pair.to_server()
    pair.server.reset_stream(1, 7)
    pair.to_client()
    pair.client.receive(raw(7, 0, 0, (3).to_bytes(4, "big") + bytes(4)), 1.0)
    assert refused.end.unprocessed
    assert above.end.unprocessed
    assert pair.client.draining
    assert pair.client.streams_max == 0
    pair.server.send_headers(3, [(":status", "200")], end_stream=True)
    pair.to_client()
    assert served.notes == [(200, []), None]


def test_a_lost_connection_is_told_to_every_stream() -> None:
    pair = Pair()
    _, begun = pair.ask()
    _, silent = pair.ask()
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    pair.to_client()
    pair.client.abandon("the cable was pulled")
    assert (begun.end.kind, silent.end.kind) == ("cut", "unreachable")
    assert not pair.client.streams
