"""A peer that floods, or breaks the rules: what it costs is bounded, and said by GOAWAY."""

from __future__ import annotations

from collections.abc import Sequence

import h2.events
import h2.settings
import pytest
from h2.errors import ErrorCodes

from coach.providers import http2
from coach.providers.exchange import StreamError
from coach.providers.stream import ConnectionFailed

from .test_http2 import Notes, Pair, raw

SETTINGS = h2.settings.SettingCodes
PING, SETTINGS_FRAME, EMPTY_DATA, PADDING = (
    raw(6, 0, 0, bytes(8)),
    raw(4, 0, 0, b""),
    raw(0, 0, 1, b""),
    raw(0, 8, 1, b"\x03" + bytes(3)),
)
FLOODS = {
    "PING": PING,
    "SETTINGS": SETTINGS_FRAME,
    "empty DATA": EMPTY_DATA,
    "padding only": PADDING,
    "WINDOW_UPDATE": raw(8, 0, 0, b"\0\0\0\1"),
    "PRIORITY": raw(2, 0, 1, bytes(4) + b"\1"),
    "RST_STREAM": raw(3, 0, 1, bytes(4)),
    "unknown": raw(99, 0, 0, b"?"),
}


def answering() -> tuple[Pair, Notes]:
    """One request whose answer has begun."""
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    pair.server.send_headers(1, [(":status", "200")])
    pair.to_client()
    return pair, notes


def feed(pair: Pair, parts: Sequence[bytes], now: float = 1.0) -> None:
    for part in parts:
        pair.client.receive(part, now)


def goaway_code(pair: Pair) -> int:
    """What the client said at the end."""
    output = pair.client.take_output()
    at = output.rindex(b"\0\0\x08\x07\0\0\0\0\0")
    return int.from_bytes(output[at + 13 : at + 17], "big")


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS)
def test_a_flood_of_frames_without_data_ends_the_connection(frame: bytes) -> None:
    pair, _ = answering()
    with pytest.raises(ConnectionFailed, match="too many frames"):
        feed(pair, [frame * 100] * (3 * http2.PATIENCE // 100))
    assert goaway_code(pair) == ErrorCodes.ENHANCE_YOUR_CALM


def test_settings_cost_ten_times_as_much() -> None:
    pair, _ = answering()
    with pytest.raises(ConnectionFailed):
        pair.client.receive(SETTINGS_FRAME * (http2.PATIENCE // 10 + 10), 1.0)


def test_pings_at_a_bearable_rate_are_answered_for_ever() -> None:
    pair, _ = answering()
    for second in range(100):
        pair.client.receive(PING * (http2.PATIENCE_PER_S // 2), float(second))
    assert not pair.client.failed
    assert pair.client.take_output().count(b"\6\1\0\0\0\0") == 50 * http2.PATIENCE_PER_S


def test_patience_is_not_saved_up() -> None:
    """However long the peer was quiet, a flood is a flood."""
    pair, _ = answering()
    for _ in range(2_000):
        pair.client.reset(pair.ask()[0])
        pair.to_server()
    with pytest.raises(ConnectionFailed):
        feed(pair, [PING * 1_000] * 25, now=86_400.0)


def test_a_thousand_streams_with_all_their_frames_are_no_flood() -> None:
    pair = Pair()
    pair.server.update_settings({SETTINGS.MAX_CONCURRENT_STREAMS: 1_000})
    pair.to_client()
    pair.to_server()
    asked = [pair.ask(b"x" * 20_000)[1] for _ in range(1_000)]
    while True:
        events = pair.to_server()
        for event in events:
            if isinstance(event, h2.events.DataReceived):
                pair.server.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        if not events:
            break
        pair.to_client()
    for number in range(1_000):
        pair.server.send_headers(2 * number + 1, [(":status", "103")])
        pair.server.send_headers(2 * number + 1, [(":status", "200")])
        pair.server.send_data(2 * number + 1, b"answer")
        pair.server.send_headers(2 * number + 1, [("x-trailer", "1")], end_stream=True)
    pair.to_client()
    assert all(notes.notes == [(200, []), b"answer", None] for notes in asked)


def headers(stream: int, block: bytes, *, pieces: int, flags: int = 0) -> list[bytes]:
    """A header block in as many frames."""
    size = -(-len(block) // pieces)
    parts = [block[at : at + size] for at in range(0, len(block), size)]
    last = len(parts) - 1
    return [
        raw(1 if at == 0 else 9, (4 if at == last else 0) | (flags if at == 0 else 0), stream, part)
        for at, part in enumerate(parts)
    ]


def test_headers_in_many_pieces_are_one_head() -> None:
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    block = pair.server.encoder.encode([(":status", "200"), ("x-long", "v" * 200)])
    for frame in headers(1, block, pieces=20):
        pair.client.receive(frame, 1.0)
    assert notes.notes == [(200, [(b"x-long", b"v" * 200)])]


@pytest.mark.parametrize(
    "frames",
    [
        [raw(1, 0, 1, b"\x88"), *[raw(9, 0, 1, b"")] * 200],
        [raw(1, 0, 1, b"\x88"), *[raw(9, 0, 1, b"\0" * 16_000)] * 12],
        [raw(1, 0, 1, b"\x88"), raw(0, 0, 1, b"data")],
        [raw(1, 0, 1, b"\x88"), raw(9, 4, 3, b"")],
        [raw(9, 4, 1, b"\x88")],
    ],
    ids=["empty pieces", "large pieces", "data in between", "another stream's", "without a start"],
)
def test_a_header_block_that_makes_no_end_or_sense_ends_the_connection(frames: list[bytes]) -> None:
    pair = Pair()
    pair.ask()
    pair.ask()
    pair.to_server()
    with pytest.raises(ConnectionFailed):
        feed(pair, frames)
    assert goaway_code(pair) in (ErrorCodes.PROTOCOL_ERROR, ErrorCodes.ENHANCE_YOUR_CALM)


@pytest.mark.parametrize("size", [60_000, 70_000])
def test_a_head_of_more_than_64_kib_ends_the_connection(size: int) -> None:
    """Also where it is sent in few bytes: a table entry, over and over."""
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    block = pair.server.encoder.encode(
        [(":status", "200"), *[("x-b", "v" * 1_000)] * (size // 1035)]
    )
    assert len(block) < 1_100
    frame = raw(1, 4, 1, block)
    if size < http2.HEADER_LIST_BYTES_MAX:
        pair.client.receive(frame, 1.0)
        assert notes.notes[0][0] == 200
    else:
        with pytest.raises(ConnectionFailed):
            pair.client.receive(frame, 1.0)
        assert goaway_code(pair) == ErrorCodes.ENHANCE_YOUR_CALM


def test_a_frame_above_16_kib_ends_the_connection() -> None:
    pair, _ = answering()
    with pytest.raises(ConnectionFailed, match="16385"):
        pair.client.receive(raw(0, 0, 1, bytes(16_385))[:9], 1.0)
    assert goaway_code(pair) == ErrorCodes.FRAME_SIZE_ERROR


def test_pushes_are_refused() -> None:
    pair, _ = answering()
    with pytest.raises(ConnectionFailed):
        pair.client.receive(raw(5, 4, 1, b"\0\0\0\2\x82"), 1.0)


def test_early_heads_are_left_out_and_trailers_end_the_answer() -> None:
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    for status in ("100", "103", "200"):
        pair.server.send_headers(1, [(":status", status)])
    pair.server.send_data(1, b"text", pad_length=100)
    pair.server.send_headers(1, [("x-trailer", "1")], end_stream=True)
    pair.to_client()
    assert notes.notes == [(200, []), b"text", None]


def test_an_early_head_for_a_stream_that_was_reset_costs_nothing() -> None:
    pair = Pair()
    stream, _ = pair.ask()
    _, other = pair.ask()
    pair.to_server()
    pair.client.reset(stream)
    pair.server.send_headers(1, [(":status", "103"), ("x-a", "b")])
    pair.server.send_headers(1, [(":status", "200"), ("x-a", "b")])
    pair.server.send_headers(3, [(":status", "200"), ("x-a", "b")], end_stream=True)
    pair.to_client()
    assert other.notes == [(200, [(b"x-a", b"b")]), None]


def test_windows_shrunk_below_zero_hold_a_body_back_until_they_are_above() -> None:
    pair = Pair()
    pair.ask(b"x" * 70_000)
    pair.to_server()  # 65,535 of them
    for size in (100, 10):
        pair.server.update_settings({SETTINGS.INITIAL_WINDOW_SIZE: size})
        pair.to_client()
        assert not any(isinstance(each, h2.events.DataReceived) for each in pair.to_server())
    pair.server.increment_flow_control_window(10_000)
    pair.server.increment_flow_control_window(65_525, 1)
    pair.to_client()
    assert not any(isinstance(each, h2.events.DataReceived) for each in pair.to_server())
    pair.server.increment_flow_control_window(4_465, 1)
    pair.to_client()
    assert any(isinstance(each, h2.events.StreamEnded) for each in pair.to_server())


@pytest.mark.parametrize("sizes", [(0, 2**20), (2**20, 0), (0, 0), (2**20,), (4_096, 4_096)])
def test_header_tables_change_their_size_as_the_peer_likes(sizes: tuple[int, ...]) -> None:
    pair = Pair()
    pair.ask()
    pair.to_server()
    for size in sizes:
        pair.server.update_settings({SETTINGS.HEADER_TABLE_SIZE: size})
        pair.to_client()
        pair.server.receive_data(b"")
    pair.ask()
    assert any(isinstance(each, h2.events.RequestReceived) for each in pair.to_server())
    assert pair.client._h2.encoder.header_table_size <= http2.HEADER_TABLE_BYTES


def test_goaway_twice_as_a_graceful_server_sends_it() -> None:
    pair = Pair()
    _, served = pair.ask()
    _, late = pair.ask()
    pair.to_server()
    pair.client.receive(raw(7, 0, 0, (2**31 - 1).to_bytes(4, "big") + bytes(4)), 1.0)
    assert (served.notes, late.notes, pair.client.streams_max) == ([], [], 0)
    pair.client.receive(raw(7, 0, 0, (1).to_bytes(4, "big") + bytes(4) + b"maintenance"), 1.0)
    assert late.end.unprocessed
    pair.server.send_headers(1, [(":status", "200")], end_stream=True)
    pair.to_client()
    assert served.notes == [(200, []), None]


@pytest.mark.parametrize(("code", "unprocessed"), [(7, True), (2, False), (11, False), (99, False)])
def test_a_reset_by_the_peer_says_whether_it_may_be_asked_again(
    code: int, unprocessed: bool
) -> None:
    pair = Pair()
    _, notes = pair.ask()
    pair.to_server()
    pair.client.receive(raw(3, 0, 1, code.to_bytes(4, "big")), 1.0)
    assert isinstance(notes.end, StreamError)
    assert notes.end.unprocessed == unprocessed
    pair.client.receive(raw(3, 0, 1, code.to_bytes(4, "big")), 1.0)  # once more: nothing
    assert not pair.client.failed


def test_a_stream_refused_after_its_answer_began_is_not_asked_again() -> None:
    pair, notes = answering()
    pair.server.reset_stream(1, 7)
    pair.to_client()
    assert (notes.end.unprocessed, notes.end.kind) == (False, "cut")
