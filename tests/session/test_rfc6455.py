"""RFC 6455, case by case, at a student's socket: what is legal is heard, what is not is closed.

The cases follow Autobahn's fuzzing client (https://github.com/crossbario/autobahn-testsuite,
sections 1 to 7, 9, 10 and, for what is not negotiated, 12): each is bytes that a client sends, and
what must be heard, answered and closed. They run on a socket pair and mock time here, each as whole
and a byte at a time, and through the edge's port in tests/edge/test_port.py.
"""

from __future__ import annotations

import itertools
import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from trio.testing import MockClock
from wsproto.connection import Connection, ConnectionType
from wsproto.events import CloseConnection, Ping, Pong, TextMessage

from coach.session.session import Session
from tests.session.world import AUTHORITY, World, says, wire_pair

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
CONTINUATION, FIN = 0x0, 0x80
MESSAGE_MAX = 262_144
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_masks = random.Random(6455)


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True
) -> bytes:
    """One frame of a client."""
    head = bytearray([(FIN if fin else 0) | rsv << 4 | opcode])
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head.append(mask_bit | size)
    elif size < 65_536:
        head += struct.pack("!BH", mask_bit | 126, size)
    else:
        head += struct.pack("!BQ", mask_bit | 127, size)
    if not masked:
        return bytes(head) + payload
    mask = _masks.randbytes(4)
    keys = mask * (size // 4 + 1)
    number = int.from_bytes(payload, "big") ^ int.from_bytes(keys[:size], "big")
    return bytes(head) + mask + number.to_bytes(size, "big")


def text(payload: str | bytes) -> bytes:
    """A text message in one frame."""
    return frame(TEXT, payload.encode() if isinstance(payload, str) else payload)


def pieces(payload: bytes, size: int) -> bytes:
    """A text message in frames of so many bytes."""
    cut = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    return b"".join(
        frame(TEXT if place == 0 else CONTINUATION, piece, fin=place == len(cut) - 1)
        for place, piece in enumerate(cut)
    )


def goodbye(code: int | None = 1000, reason: bytes = b"") -> bytes:
    """A client's close frame."""
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


@attrs.frozen
class Case:
    """What a client sends after its `hello`, and what must come of it."""

    sent: bytes
    heard: Sequence[str] = ()
    """Messages, in order."""
    pongs: Sequence[bytes] = ()
    close: int | None = 1000
    """The code of the server's close frame; None: a close frame without a code."""
    error: str | None = None
    """The code of an error that is said before it."""


def stays(sent: bytes, *heard: str, pongs: Sequence[bytes] = ()) -> Case:
    """It is legal: the connection goes on, until the client's own goodbye is answered."""
    return Case(sent + goodbye(), heard, pongs)


def broken(sent: bytes, *heard: str, pongs: Sequence[bytes] = (), code: int = 1002) -> Case:
    """It is not: the server closes, and nothing that follows is heard."""
    return Case(sent + frame(PING, b"too late") + text("too late"), heard, pongs, code)


def _cases_1() -> Iterator[tuple[str, Case]]:
    """Framing."""
    for size in (0, 1, 125, 126, 127, 128, 65_535, 65_536, 65_537):
        yield f"1.1 text of {size}", stays(text("*" * size), "*" * size)
        yield (
            f"1.2 binary of {size}",
            Case(frame(BINARY, b"\xfe" * size), close=1003, error="bad_message"),
        )


def _cases_2() -> Iterator[tuple[str, Case]]:
    """Pings and pongs."""
    for name, payload in {
        "empty": b"",
        "text": b"Hello, world!",
        "binary": b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff",
        "of 125": b"\xfe" * 125,
    }.items():
        yield f"2 ping {name}", stays(frame(PING, payload), pongs=[payload])
        yield f"2 pong {name}", stays(frame(PONG, payload))
    yield "2.5 ping of 126", broken(frame(PING, b"\xfe" * 126))
    yield "2.5 pong of 126", broken(frame(PONG, b"\xfe" * 126))
    ten = [b"payload-%d" % number for number in range(10)]
    yield "2.9 pong, then ping", stays(frame(PONG, b"x") + frame(PING, b"y"), pongs=[b"y"])
    yield "2.10 ten pings", stays(b"".join(frame(PING, each) for each in ten), pongs=ten)


def _cases_3() -> Iterator[tuple[str, Case]]:
    """Reserved bits: no extension is negotiated."""
    for rsv in range(1, 8):
        for opcode in (TEXT, BINARY, CLOSE, PING, PONG):
            bad = frame(opcode, b"\x03\xe8" if opcode == CLOSE else b"x", rsv=rsv)
            yield f"3 rsv {rsv} opcode {opcode}", broken(text("good") + bad, "good")
    yield (
        "3 rsv 4 in a continuation",
        broken(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"b", rsv=4)),
    )


def _cases_4() -> Iterator[tuple[str, Case]]:
    """Reserved opcodes."""
    for opcode in (*range(3, 8), *range(11, 16)):
        yield f"4 opcode {opcode}", broken(text("good") + frame(opcode), "good")
        yield f"4 opcode {opcode} with payload", broken(frame(opcode, b"payload"))


def _cases_5() -> Iterator[tuple[str, Case]]:
    """Fragmentation."""
    first, second, last = (
        frame(TEXT, b"one ", fin=False),
        frame(CONTINUATION, b"two ", fin=False),
        frame(CONTINUATION, b"three"),
    )
    ping, whole = frame(PING, b"p"), "one two three"
    yield "5.1 ping in fragments", broken(frame(PING, b"a", fin=False) + frame(CONTINUATION, b"b"))
    yield "5.2 pong in fragments", broken(frame(PONG, b"a", fin=False) + frame(CONTINUATION, b"b"))
    yield "5 close in fragments", broken(frame(CLOSE, b"\x03", fin=False))
    yield "5.3 text in three", stays(first + second + last, whole)
    yield (
        "5.6 ping between",
        stays(first + ping + second + ping + last, whole, pongs=[b"p", b"p"]),
    )
    yield "5 pong between", stays(first + frame(PONG, b"p") + second + last, whole)
    yield "5.9 continuation of nothing", broken(frame(CONTINUATION, b"x") + text("good"))
    yield "5.11 unfinished one of nothing", broken(frame(CONTINUATION, b"x", fin=False))
    yield (
        "5.15 continuation after the end",
        broken(first + last + frame(CONTINUATION, b"x"), "one three"),
    )
    yield "5.18 text inside a text", broken(first + text("other"))
    yield "5 binary inside a text", broken(first + frame(BINARY, b"x"))
    yield (
        "5.19 many, with pings, twice",
        stays(
            (first + ping + second * 3 + ping + last) * 2,
            *["one " + "two " * 3 + "three"] * 2,
            pongs=[b"p"] * 4,
        ),
    )
    yield "5 empty pieces", stays(pieces(b"", 1) + first + frame(CONTINUATION), "", "one ")
    yield "5 close between", Case(first + goodbye(1001), close=1001)


VALID = {
    "6.2 Greek": "Hello-µ@ßöäüàá-UTF-8!!",
    "6.5 cosme": "κόσμε",
    "6.6 firsts": "\x00\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
    "6.7 around surrogates": "\ud7ff\ue000\ufffd",
    "6.22 noncharacters": "\ufffe\U0001fffe\U0010fffe\U0010ffff",
    "6 four bytes": "😀🖋",
}
INVALID = {
    "6.3 in the middle": "κόσμε".encode() + b"\xed\xa0\x80edited",
    "6.10 above Unicode": b"\xf4\x90\x80\x80",
    "6.8 five bytes": b"\xf8\x88\x80\x80\x80",
    "6.8 six bytes": b"\xfc\x84\x80\x80\x80\x80",
    "6.11 surrogate": b"\xed\xa0\x80",
    "6.11 pair of surrogates": b"\xed\xa0\x80\xed\xb0\x80",
    "6.12 lonely continuation": b"\x80",
    "6.13 lonely start": b"\xc0 ",
    "6.14 cut short": b"\xe2\x82",
    "6.15 two cut short": b"\xc0\xe0\x80",
    "6.16 impossible bytes": b"\xfe\xfe\xff\xff",
    "6.17 overlong slash": b"\xc0\xaf",
    "6.18 overlong in four": b"\xf0\x80\x80\xaf",
    "6.20 overlong NUL": b"\xc0\x80",
    "6 half a character at the end": "a😀".encode()[:-1],
}


def _cases_6() -> Iterator[tuple[str, Case]]:
    """UTF-8."""
    for name, valid in VALID.items():
        yield name, stays(text(valid), valid)
        yield f"{name}, a byte a frame", stays(pieces(valid.encode(), 1), valid)
    for name, invalid in INVALID.items():
        yield name, broken(text("good") + text(invalid), "good", code=1007)
        yield f"{name}, a byte a frame", broken(pieces(invalid, 1), code=1007)
    early = frame(TEXT, b"\xce\xba\xf4\x90", fin=False)
    yield "6.4 before its end", Case(early, close=1007)
    half = struct.pack("!BB", FIN | TEXT, 0x80 | 60) + bytes(4) + b"\xce\xba\xf4\x90"
    yield "6.4 before the end of its frame", Case(half, close=1007)


def _cases_7() -> Iterator[tuple[str, Case]]:
    """The closing handshake."""
    yield "7.1.1 message, then close", stays(text("last"), "last")
    yield "7.1.2 close twice", Case(goodbye() + goodbye())
    yield "7.1.3 ping after close", Case(goodbye() + frame(PING, b"x"))
    yield "7.1.4 text after close", Case(goodbye() + text("too late"))
    yield (
        "7.1.5 close in a message",
        Case(frame(TEXT, b"a", fin=False) + goodbye() + frame(CONTINUATION, b"b")),
    )
    yield "7.3.1 no code", Case(goodbye(None), close=None)
    yield "7.3.2 half a code", broken(frame(CLOSE, b"\x03"))
    yield "7.3.4 reason", Case(goodbye(1000, b"Hello, world!"))
    yield "7.3.5 reason of 123", Case(goodbye(1000, b"*" * 123))
    yield "7.3.6 reason of 124", broken(goodbye(1000, b"*" * 124))
    yield "7.5.1 reason that is not UTF-8", broken(goodbye(1000, b"\xce\xba\xf4\x90"), code=1007)
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield f"7.7 code {code}", Case(goodbye(code), close=code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999):
        yield f"7.9 code {code}", broken(goodbye(code))


def _cases_9() -> Iterator[tuple[str, Case]]:
    """Limits."""
    most = "*" * MESSAGE_MAX
    yield "9.1 the largest", stays(text(most), most)
    yield "9.1 the largest in characters", stays(text("é" * MESSAGE_MAX), "é" * MESSAGE_MAX)
    for size in (256, 1_024, 16_384):
        yield f"9.3 the largest in {size}s", stays(pieces(most.encode(), size), most)
    too_large = {"close": 1009, "error": "too_large"}
    yield "9 one more", Case(text(most + "*"), **too_large)  # type: ignore[arg-type]
    yield "9 one more in pieces", Case(pieces(most.encode() + b"*", 4_096), **too_large)  # type: ignore[arg-type]
    for size in (2**31, 2**63 - 1):
        head = struct.pack("!BBQ", FIN | TEXT, 0xFF, size) + bytes(4)
        yield f"9 a frame of {size}", Case(head + b"x" * (MESSAGE_MAX + 8_192), **too_large)  # type: ignore[arg-type]
    yield (
        "9 a length with its first bit set",
        broken(struct.pack("!BBQ", FIN | TEXT, 0xFF, 2**63) + bytes(4)),
    )
    yield (
        "9 a length not in its shortest form",
        broken(struct.pack("!BBH", FIN | TEXT, 0xFE, 5) + bytes(4) + b"hello"),
    )
    yield (
        "9 nor in the next one",
        broken(struct.pack("!BBQ", FIN | TEXT, 0xFF, 300) + bytes(4) + b"x" * 300),
    )


def _cases_others() -> Iterator[tuple[str, Case]]:
    yield "10.1 65,536 in 1,300s", stays(pieces(b"*" * 65_536, 1_300), "*" * 65_536)
    yield (
        "5.1 of the RFC: not masked",
        broken(text("good") + frame(TEXT, b"x", masked=False), "good"),
    )
    yield "5.1 of the RFC: ping not masked", broken(frame(PING, b"x", masked=False))
    yield "no frame at all", broken(b"GET / HTTP/1.1\r\n\r\n")


CASES = dict(
    [
        *_cases_1(),
        *_cases_2(),
        *_cases_3(),
        *_cases_4(),
        *_cases_5(),
        *_cases_6(),
        *_cases_7(),
        *_cases_9(),
        *_cases_others(),
    ]
)


@attrs.define
class Seen:
    """What came of a case."""

    heard: list[str] = attrs.field(factory=list)
    pongs: list[bytes] = attrs.field(factory=list)
    closes: list[int | None] = attrs.field(factory=list)
    errors: list[str] = attrs.field(factory=list)

    def check(self, case: Case) -> None:
        assert self.heard == list(case.heard)
        assert self.pongs == list(case.pongs)
        assert self.closes == [case.close]
        assert self.errors == [case.error] * (case.error is not None)


Ends = trio.SocketStream | trio.SSLStream[trio.SocketStream]


async def play(
    stream: Ends,
    sent: bytes,
    seen: Seen,
    *,
    chunk: int | None = None,
    user: str = "ana",
    is_all: bool = False,
) -> None:
    """Upgrade, say hello, send, and note what comes until the server ends the connection.

    With `is_all` the sending direction ends then: what was sent may not ask for an end.
    """
    token, _ = AUTHORITY.issue(user=user, org="school", role="student")
    await stream.send_all(UPGRADE)
    head = b""
    while b"\r\n\r\n" not in head:
        head += await stream.receive_some()
    assert head.startswith(b"HTTP/1.1 101 "), head
    protocol = Connection(ConnectionType.CLIENT, trailing_data=head.partition(b"\r\n\r\n")[2])
    await stream.send_all(text(f'{{"type": "hello", "token": "{token}"}}'))
    await _receive(stream, protocol, seen, until="welcome")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send, stream, sent, chunk, is_all)
        await _receive(stream, protocol, seen, until=None)
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(stream)


async def _send(stream: Ends, sent: bytes, chunk: int | None, is_all: bool) -> None:
    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        for at in range(0, len(sent), chunk or len(sent)):
            await stream.send_all(sent[at : at + (chunk or len(sent))])
        if is_all and isinstance(stream, trio.SocketStream):
            await stream.send_eof()


async def _receive(
    stream: trio.abc.Stream, protocol: Connection, seen: Seen, until: str | None
) -> None:
    """Take in what comes, until a message of this type or the end."""
    said = ""
    while True:
        for event in protocol.events():
            match event:
                case TextMessage():
                    said += event.data
                    if event.message_finished and until is not None and f'"{until}"' in said:
                        return
                    if event.message_finished:
                        message, said = said, ""
                        seen.errors += [message.split('"code":"')[1].split('"')[0]]
                case Pong():
                    seen.pongs.append(bytes(event.payload))
                case CloseConnection():
                    seen.closes.append(None if event.code == 1005 else int(event.code))
                case Ping():
                    raise AssertionError("nobody has been silent")
        try:
            data = await stream.receive_some()
        except trio.BrokenResourceError:
            return
        if not data:
            return
        if not seen.closes:
            protocol.receive_data(bytes(data))


@pytest.mark.parametrize("name", CASES)
async def test_each_case_is_heard_answered_and_closed_as_the_rfc_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    for chunk in (None, 1) if len(case.sent) < 2_000 else (None, 1_009):
        seen = Seen()
        monkeypatch.setattr(Session, "hear", lambda _, heard: seen.heard.append(heard))  # noqa: B023
        world = World(says())
        near, far = wire_pair()
        async with trio.open_nursery() as served:
            served.start_soon(world.serve, far)
            await play(near, case.sent, seen, chunk=chunk)
        seen.check(case)
        assert world.balanced


@st.composite
def legal(draw: st.DrawFn) -> Case:
    """Messages cut into frames anywhere, empty ones too, with control frames between them."""
    sent, heard, pongs = bytearray(), [], []
    for message in draw(st.lists(st.text(max_size=60), max_size=6)):
        payload = message.encode()
        cuts = sorted(draw(st.lists(st.integers(0, len(payload)), max_size=6)))
        ends = [0, *cuts, len(payload)]
        for place, (begin, end) in enumerate(itertools.pairwise(ends)):
            for ping in draw(st.lists(st.binary(max_size=125), max_size=2)):
                sent += frame(PING, ping)
                pongs.append(ping)
            if draw(st.booleans()):
                sent += frame(PONG, draw(st.binary(max_size=125)))
            opcode = CONTINUATION if place else TEXT
            sent += frame(opcode, payload[begin:end], fin=place == len(ends) - 2)
        heard.append(message)
    return Case(bytes(sent) + goodbye(), heard, pongs)


@hypothesis_settings(max_examples=60)
@given(legal(), st.integers(1, 200))
def test_however_legal_messages_are_cut_they_are_heard_whole(case: Case, chunk: int) -> None:
    seen = run(case.sent, chunk)
    seen.check(case)


@hypothesis_settings(max_examples=150)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([each.sent for each in CASES.values() if len(each.sent) < 2_000]),
            st.binary(max_size=40),
        ),
        min_size=1,
        max_size=4,
    ).map(b"".join),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(1, 255)), max_size=3),
    st.integers(1, 500),
)
def test_whatever_comes_is_heard_as_text_or_closed_and_nothing_is_left(
    sent: bytes, flips: list[tuple[int, int]], chunk: int
) -> None:
    damaged = bytearray(sent)
    for at, bits in flips:
        if damaged:
            damaged[at % len(damaged)] ^= bits
    seen = run(bytes(damaged) + goodbye(), chunk)
    assert len(seen.closes) <= 1
    for heard in seen.heard:
        heard.encode()


def run(sent: bytes, chunk: int) -> Seen:
    """Play it, on a clock and a world of its own."""
    seen = Seen()

    async def alone() -> None:
        world = World(says())
        near, far = wire_pair()
        async with trio.open_nursery() as served:
            served.start_soon(world.serve, far)
            with trio.fail_after(100):
                await play(near, sent, seen, chunk=chunk, is_all=True)
        assert world.balanced

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Session, "hear", lambda _, heard: seen.heard.append(heard))
        trio.run(alone, clock=MockClock(autojump_threshold=0))
    return seen


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Version: 13", b"Version: 8"), b"426"),
        ((b"Sec-WebSocket-Version: 13\r\n", b""), b"400"),
        ((b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b""), b"400"),
        ((b"Version: 13", b"Version: 13\r\nSec-WebSocket-Protocol: "), b"101"),
    ],
)
async def test_a_handshake_that_is_none_is_refused(
    change: tuple[bytes, bytes], status: bytes
) -> None:
    world = World(says())
    near, far = wire_pair()
    async with trio.open_nursery() as served:
        served.start_soon(world.serve, far)
        await near.send_all(UPGRADE.replace(*change))
        head = await near.receive_some()
        assert head.startswith(b"HTTP/1.1 " + status), head
        await near.aclose()


@pytest.mark.parametrize(
    "offer",
    [
        b"permessage-deflate",
        b"permessage-deflate; client_max_window_bits; server_no_context_takeover, x-webkit-deflate",
    ],
)
async def test_compression_is_not_negotiated_and_no_bomb_is_unpacked(offer: bytes) -> None:
    world = World(says())
    near, far = wire_pair()
    async with trio.open_nursery() as served:
        served.start_soon(world.serve, far)
        extended = b"Version: 13\r\nSec-WebSocket-Extensions: " + offer
        await near.send_all(UPGRADE.replace(b"Version: 13", extended))
        head = await near.receive_some()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"sec-websocket-extensions" not in head.lower()
        bomb = zlib.compressobj(wbits=-15)
        packed = bomb.compress(bytes(50_000_000)) + bomb.flush(zlib.Z_SYNC_FLUSH)
        await near.send_all(frame(TEXT, packed[:-4], rsv=4))
        assert (await near.receive_some())[:4] == b"\x88\x02\x03\xea"
        await near.aclose()
