"""Any sequence of events, bytes late and chopped: windows stay exact, no stream is lost.

The client is ours, the server is `h2`; what either sends waits in a queue until a rule carries some
of it, so that each knows of the other's deeds late. `h2` enforces the rest: a stream too many, a
byte above a window, or a frame for a stream that never was is a ProtocolError, and fails the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from coach.providers.exchange import Header
from coach.providers.http2 import CONNECTION_WINDOW, CREDIT_STEP, Http2Connection, Http2Stream
from coach.providers.stream import STREAM_WINDOW, ConnectionFailed

REQUEST: list[Header] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"provider.test"),
    (b":path", b"/v1"),
]
SIZES = st.sampled_from([0, 1, 100, 16_000, 300_000])
T = TypeVar("T")
PICK = st.integers(0, 50)
BYTES = st.sampled_from([1, 9, 40, 1_000, 10**9])


@attrs.define(eq=False)
class Asked:
    """A request of ours: a handler, and what it has been told."""

    machine: Machine
    body: bytes
    raises: bool
    active_at: float = 0.0
    stream: Http2Stream | None = None
    head: int = 0
    data: bytearray = attrs.field(factory=bytearray)
    ends: list[Exception | None] = attrs.field(factory=list)
    given_up: bool = False
    on_data: Callable[[bytes], None] = lambda data: None

    def __attrs_post_init__(self) -> None:
        self.on_data = self._on_data

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        assert not self.head
        assert not self.over
        self.head = status

    def _on_data(self, data: bytes) -> None:
        assert self.head
        assert not self.over
        self.data += data
        if self.raises:
            raise ZeroDivisionError

    def on_closed(self, error: Exception | None) -> None:
        assert not self.over
        self.ends.append(error)

    @property
    def over(self) -> bool:
        return self.given_up or bool(self.ends)


@attrs.define(eq=False)
class Served:
    """The same request, as the server has it."""

    id: int
    body: bytearray = attrs.field(factory=bytearray)
    whole: bool = False
    begun: bool = False
    ended: bool = False
    """The server is done with it: answered, reset, refused by GOAWAY, or heard of its reset."""
    sent: bytearray = attrs.field(factory=bytearray)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.client = Http2Connection()
        self.server = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.asked: dict[int, Asked] = {}
        self.served: dict[int, Served] = {}
        self.to_server = bytearray()
        self.to_client = bytearray()
        self.credit_due = 0  # DATA that the server has and has not given back
        self.last_id: int | None = None  # of GOAWAY
        self.lost = False
        self.texts = 0
        self.unacked = True  # SETTINGS are under way: h2 takes one answer for that of all of them
        self.failed = False
        self.client.begin()
        self.server.initiate_connection()
        self.gather()

    # -- what the client does ------------------------------------------------------------------

    @precondition(lambda self: not self.lost and self.client.streams_max > len(self.client.streams))
    @rule(size=SIZES, hold=st.booleans(), raises=st.sampled_from([False, False, True]))
    def open(self, size: int, hold: bool, raises: bool) -> None:
        body = bytes(number % 251 for number in range(size % 997)) * (size // 997 + 1)
        body = body[:size]
        asked = Asked(self, body, raises)
        asked.stream = self.client.open(REQUEST, body, asked, hold=hold)
        self.asked[asked.stream.id] = asked
        self.gather()

    @rule(pick=PICK)
    def cancel(self, pick: int) -> None:
        """The slot is free when RST_STREAM stands in the output, and not before."""
        asked = self.one_of([each for each in self.asked.values() if not each.over], pick)
        if asked is None or asked.stream is None:
            return
        asked.given_up = True
        resets = self.client.resets_sent
        self.client.reset(asked.stream)
        output = self.client.take_output()
        reset = b"\0\0\4\3\0" + asked.stream.id.to_bytes(4, "big")
        assert (reset in output) == (self.client.resets_sent > resets)
        assert self.client.resets_sent > resets or self.lost
        self.to_server += output

    @rule(pick=PICK, share=st.sampled_from([1, 2]))
    def consume(self, pick: int, share: int) -> None:
        asked = self.one_of(
            [each for each in self.asked.values() if each.stream and each.stream.held], pick
        )
        if asked is not None and asked.stream is not None and not asked.over:
            self.client.consumed(asked.stream, asked.stream.held // share)
            self.gather()

    # -- what the server does ------------------------------------------------------------------

    @rule(pick=PICK, status=st.sampled_from(["103", "200", "200", "200"]))
    def head(self, pick: int, status: str) -> None:
        served = self.one_of([each for each in self.open_ones if not each.begun], pick)
        if served is not None:
            self.server.send_headers(served.id, [(":status", status), ("x-a", "b" * 50)])
            served.begun = status != "103"
            self.gather()

    @rule(
        pick=PICK,
        size=st.sampled_from([1, 7, 16_000]),
        pad=st.sampled_from([None, 0, 200]),
        times=st.sampled_from([1, 3, 90]),
    )
    def data(self, pick: int, size: int, pad: int | None, times: int) -> None:
        served = self.one_of([each for each in self.open_ones if each.begun], pick)
        for _ in range(times if served is not None else 0):
            assert served is not None
            room = self.server.local_flow_control_window(served.id)
            if room < size + 201:
                break
            self.texts += 1
            data = (b"%d." % self.texts).ljust(size, b".")[:size]
            self.server.send_data(served.id, data, pad_length=pad)
            served.sent += data
        self.gather()

    @rule(pick=PICK, how=st.sampled_from(["data", "empty", "trailers"]))
    def end(self, pick: int, how: str) -> None:
        served = self.one_of([each for each in self.open_ones if each.begun], pick)
        if served is None:
            return
        if how == "trailers":
            self.server.send_headers(served.id, [("x-trailer", "1")], end_stream=True)
        elif how == "data" and self.server.local_flow_control_window(served.id) > 10:
            self.server.send_data(served.id, b"the end", end_stream=True)
            served.sent += b"the end"
        else:
            self.server.end_stream(served.id)
        served.ended = True
        self.gather()

    @rule(pick=PICK, code=st.sampled_from([ErrorCodes.CANCEL, ErrorCodes.REFUSED_STREAM]))
    def server_resets(self, pick: int, code: ErrorCodes) -> None:
        served = self.one_of(self.open_ones, pick)
        if served is not None:
            self.server.reset_stream(served.id, code)
            served.ended = True
            self.gather()

    @precondition(lambda self: not self.unacked)
    @rule(value=st.sampled_from([1, 2, 5, 100, 2**31 - 1]))
    def limits_streams(self, value: int) -> None:
        self.unacked = True
        self.server.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: value})
        self.gather()

    @precondition(lambda self: not self.unacked)
    @rule(value=st.sampled_from([0, 10, 5_000, 65_535, 2**20]))
    def changes_windows(self, value: int) -> None:
        """Also below what is used already: the windows of open streams are negative then."""
        self.unacked = True
        self.server.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: value})
        self.gather()

    @precondition(lambda self: not self.unacked)
    @rule(
        value=st.sampled_from([16_384, 20_000, 2**24 - 1]), table=st.sampled_from([0, 100, 2**20])
    )
    def changes_frames_and_tables(self, value: int, table: int) -> None:
        self.unacked = True
        self.server.update_settings(
            {SettingCodes.MAX_FRAME_SIZE: value, SettingCodes.HEADER_TABLE_SIZE: table}
        )
        self.gather()

    @rule()
    def server_reads(self) -> None:
        """It gives back the connection's window for the bodies it has got."""
        if self.credit_due:
            self.server.increment_flow_control_window(self.credit_due)
            self.credit_due = 0
            self.gather()

    @rule(pick=PICK, size=st.sampled_from([1, 1_000, 100_000]))
    def server_reads_of(self, pick: int, size: int) -> None:
        served = self.one_of([each for each in self.open_ones if not each.whole], pick)
        if served is not None:
            self.server.increment_flow_control_window(size, served.id)
            self.gather()

    @rule()
    def server_pings(self) -> None:
        self.server.ping(b"01234567")
        self.gather()

    @precondition(lambda self: self.last_id is None)
    @rule(back=st.integers(0, 5))
    def goes_away(self, back: int) -> None:
        """Streams above the last id were not processed; the others go on."""
        self.last_id = max(0, self.server.highest_inbound_stream_id - 2 * back)
        payload = self.last_id.to_bytes(4, "big") + bytes(4)
        self.to_client += b"\0\0\x08\x07\0\0\0\0\0" + payload
        for served in self.served.values():
            served.ended = served.ended or served.id > self.last_id

    # -- delivery ------------------------------------------------------------------------------

    @rule(size=BYTES)
    def carry_to_server(self, size: int) -> None:
        data = bytes(self.to_server[:size])
        del self.to_server[:size]
        for event in self.server.receive_data(data):
            self.note(event)
        self.gather()

    @rule(size=BYTES)
    def carry_to_client(self, size: int) -> None:
        data = bytes(self.to_client[:size])
        del self.to_client[:size]
        if data and not self.lost:
            self.client.receive(data, 1.0)
            self.gather()

    @precondition(lambda self: not self.lost)
    @rule(at=st.integers(0, 400), flip=st.integers(1, 255))
    def corrupt(self, at: int, flip: int) -> None:
        """A byte arrives wrong: that may cost the connection, and nothing worse."""
        data = self.to_client[:500]
        if at >= len(data):
            return
        data[at] ^= flip
        try:
            self.client.receive(bytes(data), 1.0)
        except ConnectionFailed:
            assert self.client.take_output()
        self.lose()

    @precondition(lambda self: not self.lost)
    @rule(dice=st.integers(0, 15))
    def cut(self, dice: int) -> None:
        if dice == 0:
            self.lose()

    # -- what holds ----------------------------------------------------------------------------

    @invariant()
    def the_windows_add_up(self) -> None:
        assert 0 <= self.client.owed < CREDIT_STEP or self.lost
        for stream in self.client.streams.values():
            assert 0 <= stream.owed < CREDIT_STEP + 2**15
            assert stream.window + stream.owed + stream.held == STREAM_WINDOW
            assert stream.hold or not stream.held

    @invariant()
    def every_stream_is_known_until_it_is_over(self) -> None:
        assert set(self.client.streams) == {
            number for number, asked in self.asked.items() if not asked.over
        }

    @rule()
    def everything_arrives(self) -> None:
        if self.lost:
            return
        while self.to_server or self.to_client or self.more():
            self.carry_to_server(10**9)
            self.carry_to_client(10**9)
        client, server = self.client, self.server
        assert server.outbound_flow_control_window == CONNECTION_WINDOW - client.owed
        assert client._h2.outbound_flow_control_window == server.inbound_flow_control_window
        limit = server.local_settings.max_concurrent_streams
        assert client.streams_max == (0 if self.last_id is not None else limit)
        for number, asked in self.asked.items():
            served = self.served[number]
            if not asked.over:
                self.compare(asked, served)
            elif asked.ends == [None]:
                assert asked.data == served.sent
                assert served.ended
            else:
                assert served.sent.startswith(asked.data)
        assert {each.id for each in self.open_ones} <= set(client.streams)

    def compare(self, asked: Asked, served: Served) -> None:
        """A stream that goes on, with nothing under way."""
        stream = self.client.streams[served.id]
        ours, theirs = self.client._h2.streams[served.id], self.server.streams[served.id]
        assert not served.ended
        assert asked.data == served.sent
        assert theirs.outbound_flow_control_window == stream.window
        window = ours.outbound_flow_control_window
        assert window == theirs._inbound_window_manager.current_window_size
        assert served.body == asked.body[: len(served.body)]
        if served.whole:
            assert served.body == asked.body
        else:  # then a window is in the way
            assert min(window, self.client._h2.outbound_flow_control_window) <= 0

    def teardown(self) -> None:
        self.everything_arrives()
        self.lose()

    # -- inside --------------------------------------------------------------------------------

    @property
    def open_ones(self) -> list[Served]:
        return [each for each in self.served.values() if not each.ended]

    @staticmethod
    def one_of(things: Sequence[T], pick: int) -> T | None:
        return things[pick % len(things)] if things else None

    def gather(self) -> None:
        if not self.lost:
            self.to_server += self.client.take_output()
            if len(self.to_server) < 100_000:  # else the socket is full
                self.client.drained()
                self.to_server += self.client.take_output()
        self.to_client += self.server.data_to_send()

    def more(self) -> bool:
        """Whether bodies that waited for the socket go on."""
        self.gather()
        return bool(self.to_server)

    def note(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            served = self.served[event.stream_id] = Served(event.stream_id)
            served.ended = self.last_id is not None and served.id > self.last_id
        elif isinstance(event, h2.events.DataReceived):
            self.served[event.stream_id].body += event.data
            self.credit_due += event.flow_controlled_length
        elif isinstance(event, h2.events.StreamEnded):
            self.served[event.stream_id].whole = True
        elif isinstance(event, h2.events.SettingsAcknowledged):
            self.unacked = False
        elif isinstance(event, h2.events.StreamReset):
            self.served[event.stream_id].ended = True

    def lose(self) -> None:
        """The connection is gone: whoever waits is told."""
        self.lost = True
        self.client.abandon("the cable was pulled")
        self.client.take_output()
        assert not self.client.streams
        assert all(asked.over for asked in self.asked.values())


TestWindowsAndStreams = pytest.mark.filterwarnings("error")(Machine.TestCase)
TestWindowsAndStreams.settings = settings(
    max_examples=200, stateful_step_count=60, deadline=None, print_blob=True
)
