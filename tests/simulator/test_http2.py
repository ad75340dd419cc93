"""The server's HTTP/2 without sockets, against h2's client: flow control, limits, resets."""

from __future__ import annotations

import json
from typing import Any

import attrs
import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.exchange import Exchange
from coach.simulator.http2 import BODY_BYTES_MAX, Http2Connection

HEADERS = [
    *((":method", "POST"), (":path", "/v1/messages"), (":scheme", "https")),
    *((":authority", "x"), ("x-api-key", "k")),
]


@attrs.define(eq=False)
class FakeOutlet:
    """Gathers what would be sent."""

    blocked: bool = False
    data: bytearray = attrs.field(factory=bytearray)
    closed: bool = False
    aborted: bool = False

    def put(self, data: bytes) -> None:
        self.data += data

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class FakeWork:
    """Writes down how it was given up."""

    def __init__(self) -> None:
        self.by_reset: list[bool] = []

    def cancelled(self, *, by_reset: bool) -> None:
        self.by_reset.append(by_reset)


class Talk:
    """A client and the server's side, connected by hand."""

    def __init__(self, *, streams_max: int = 100, window: int = 65_535) -> None:
        self.outlet = FakeOutlet()
        self.requests: list[Exchange] = []
        self.server = Http2Connection(
            self.outlet, self.requests.append, max_concurrent_streams=streams_max
        )
        self.client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.client.local_settings = h2.settings.Settings(
            initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window}
        )
        self.events: list[h2.events.Event] = []
        self.body: dict[int, bytes] = {}
        self.server.begin()
        self.client.initiate_connection()
        self.exchange()

    def exchange(self, *, acknowledge: bool = True) -> None:
        """Carry bytes until both are quiet."""
        while True:
            up = self.client.data_to_send()
            if up:
                self.server.receive(up)
            down = bytes(self.outlet.data)
            self.outlet.data.clear()
            if not up and not down:
                return
            for event in self.client.receive_data(down):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    stream_id = event.stream_id
                    self.body[stream_id] = self.body.get(stream_id, b"") + event.data
                    if acknowledge:
                        size = event.flow_controlled_length
                        self.client.acknowledge_received_data(size, stream_id)

    def request(self, body: bytes = b"{}", *, carry: bool = True) -> int:
        stream_id = self.client.get_next_available_stream_id()
        self.client.send_headers(stream_id, HEADERS)
        for at in range(0, len(body), 16_384):
            self.client.send_data(stream_id, body[at : at + 16_384])
        self.client.end_stream(stream_id)
        if carry:
            self.exchange()
        return stream_id

    def seen(self, kind: type[h2.events.Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_a_request_is_delivered_whole_and_answered() -> None:
    talk = Talk()
    stream_id = talk.request(b'{"a":1}')
    (exchange,) = talk.requests
    assert (exchange.method, exchange.path, exchange.body) == (b"POST", b"/v1/messages", b'{"a":1}')
    assert exchange.headers[b"x-api-key"] == b"k"
    exchange.start(200, [(b"content-type", b"text/plain")])
    exchange.write(b"one ")
    exchange.write(b"two")
    exchange.end()
    exchange.write(b"ignored")
    exchange.end()
    talk.exchange()

    assert talk.body == {stream_id: b"one two"}
    assert len(talk.seen(h2.events.StreamEnded)) == 1


@given(
    st.lists(st.integers(0, 40_000), min_size=1, max_size=12),
    st.integers(100, 70_000),
    st.lists(st.booleans(), max_size=12),
)
def test_bytes_arrive_whole_and_in_order_whatever_the_windows_and_the_socket(
    sizes: list[int], window: int, blocks: list[bool]
) -> None:
    talk = Talk(window=window)
    ids = [talk.request(), talk.request()]
    for exchange in talk.requests:
        exchange.start(200, [])
    sent = [bytearray(), bytearray()]
    for index, size in enumerate(sizes):
        if index < len(blocks):
            talk.outlet.blocked = blocks[index]
            if not blocks[index]:
                talk.server.drained()
        data = bytes([index]) * size
        talk.requests[index % 2].write(data)
        sent[index % 2] += data
        if index % 3 == 0:
            talk.exchange()
    for exchange in talk.requests:
        exchange.end()
    talk.outlet.blocked = False
    talk.server.drained()
    talk.exchange()

    assert [talk.body.get(stream_id, b"") for stream_id in ids] == sent
    assert len(talk.seen(h2.events.StreamEnded)) == 2


def test_a_reset_reaches_the_work_once_and_nothing_more_is_sent() -> None:
    talk = Talk()
    stream_id = talk.request()
    (exchange,) = talk.requests
    work = FakeWork()
    exchange.work = work
    exchange.start(200, [])
    talk.client.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
    talk.exchange()
    exchange.write(b"more")
    exchange.end()
    talk.server.lost()
    talk.exchange()

    assert work.by_reset == [True]
    assert talk.body == {}


def test_a_window_that_opens_in_the_same_bytes_as_the_reset_sends_nothing() -> None:
    talk = Talk(window=10)
    stream_id = talk.request()
    (exchange,) = talk.requests
    exchange.work = work = FakeWork()
    exchange.start(200, [])
    exchange.write(b"x" * 30)
    exchange.end()
    talk.exchange(acknowledge=False)
    talk.client.increment_flow_control_window(100, stream_id)
    talk.client.increment_flow_control_window(100)
    talk.client.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
    talk.exchange()

    assert talk.body == {stream_id: b"x" * 10}
    assert work.by_reset == [True]
    assert not talk.outlet.closed


def test_a_request_that_is_reset_in_the_same_bytes_is_not_delivered() -> None:
    talk = Talk()
    stream_id = talk.request(carry=False)
    talk.client.reset_stream(stream_id, h2.errors.ErrorCodes.CANCEL)
    talk.exchange()
    assert talk.requests == []

    talk.request()
    assert len(talk.requests) == 1


def test_streams_above_the_limit_are_refused_and_the_others_go_on() -> None:
    talk = Talk(streams_max=2)
    # As a client that has not seen the limit yet.
    talk.client.remote_settings[h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS] = 100
    talk.client.remote_settings.acknowledge()
    ids = [talk.request(carry=False) for _ in range(3)]
    talk.exchange()
    resets = talk.seen(h2.events.StreamReset)

    assert [(each.stream_id, each.error_code) for each in resets] == [
        (ids[2], h2.errors.ErrorCodes.REFUSED_STREAM)
    ]
    assert len(talk.requests) == 2
    talk.requests[0].start(204, [])
    talk.requests[0].end()
    talk.exchange()
    talk.request()
    assert len(talk.requests) == 3


def test_a_new_limit_is_told_and_holds() -> None:
    talk = Talk()
    talk.server.limit_streams(1)
    talk.exchange()

    assert talk.client.remote_settings.max_concurrent_streams == 1
    talk.request()
    with pytest.raises(h2.exceptions.TooManyStreamsError):
        talk.request()


def test_a_body_that_is_too_long_is_answered_before_its_end_and_not_kept() -> None:
    talk = Talk()
    stream_id = talk.client.get_next_available_stream_id()
    talk.client.send_headers(stream_id, HEADERS)
    for _ in range(BODY_BYTES_MAX // 16_384 + 1):
        talk.client.send_data(stream_id, b"x" * 16_384)
        talk.exchange()
    (exchange,) = talk.requests
    assert (exchange.too_large, exchange.body) == (True, b"")
    exchange.start(413, [])
    exchange.end()
    talk.client.send_data(stream_id, b"x" * 16_384, end_stream=True)
    talk.exchange()

    assert len(talk.requests) == 1
    assert len(talk.seen(h2.events.StreamEnded)) == 1


def test_breaking_off_and_refusing_are_resets_with_their_codes() -> None:
    talk = Talk()
    for _ in range(2):
        talk.request()
    talk.requests[0].start(200, [])
    talk.requests[0].reset()
    talk.requests[1].refuse()
    talk.exchange()

    assert [event.error_code for event in talk.seen(h2.events.StreamReset)] == [
        h2.errors.ErrorCodes.INTERNAL_ERROR,
        h2.errors.ErrorCodes.REFUSED_STREAM,
    ]


def test_goaway_lets_older_streams_finish_then_closes() -> None:
    talk = Talk()
    talk.request()
    talk.request()
    talk.requests[1].go_away()
    first, outlet = talk.requests[0], talk.outlet
    closed = [outlet.closed]
    first.start(200, [])
    first.write(b"done")
    first.end()
    closed.append(outlet.closed)

    assert closed == [False, True]
    assert outlet.data.startswith(b"\0\0\x08\7\0\0\0\0\0" + b"\0\0\0\1")  # covers stream 1 only
    assert b"done" in outlet.data


@given(st.binary(max_size=200))
def test_bytes_that_are_no_http2_end_the_connection_and_its_work(garbage: bytes) -> None:
    talk = Talk()
    talk.request()
    talk.requests[0].work = work = FakeWork()
    talk.server.receive(garbage)
    if talk.outlet.closed:
        assert work.by_reset == [False]
    talk.server.lost()
    talk.server.lost()

    assert work.by_reset in ([False], [True])


@given(st.data())
def test_any_chunking_delivers_the_same_requests(data: st.DataObject) -> None:
    talk = Talk()
    bodies = [json.dumps({"n": index, "x": "y" * 50 * index}).encode() for index in range(4)]
    for body in bodies:
        talk.request(body, carry=False)
    sent = talk.client.data_to_send()
    at = 0
    while at < len(sent):
        size = data.draw(st.integers(1, 400))
        talk.server.receive(sent[at : at + size])
        at += size

    assert [exchange.body for exchange in talk.requests] == bodies
