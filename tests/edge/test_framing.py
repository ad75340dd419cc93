"""Requests are cut at the same place however they arrive, and each one goes where it belongs."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.edge.framing import Destination, Head, Refusal, Requests, destination

GET = b"GET /a?b HTTP/1.1\r\nHost: h\r\nX-Odd:  two  words \r\n\r\n"
POST = b"POST /b HTTP/1.1\r\nhost: h\r\nContent-Length: 5\r\n\r\nhello"
CHUNKED = (
    b"PUT /c HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n"
    b"3;ext=1\r\nabc\r\n0\r\nTrailer: t\r\n\r\n"
)
UPGRADE = (
    b"GET /ws HTTP/1.1\r\nHost: h\r\nUpgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def parse(*chunks: bytes, head_bytes_max: int = 1_000) -> list[tuple[Head, bytes]]:
    """Each request with its raw body."""
    requests = Requests(head_bytes_max=head_bytes_max)
    heads: list[Head] = []
    found: list[tuple[Head, bytes]] = []
    body = b""
    for chunk in chunks:
        requests.receive_data(chunk)
        while True:
            if len(heads) == len(found):
                head = requests.next_head()
                if head is None:
                    break
                heads.append(head)
            body += requests.read_body()
            if not requests.body_ended:
                break
            found.append((heads[-1], body))
            body = b""
            requests.start_next()
            if not requests:
                break
    return found


def first(requests: Requests, chunks: Sequence[bytes]) -> Destination | None:
    """Where the first request goes, as soon as its head is there."""
    for chunk in chunks:
        requests.receive_data(chunk)
        head = requests.next_head()
        if head is not None:
            return destination(head)
    return None


@given(
    order=st.lists(st.sampled_from([GET, POST, CHUNKED, UPGRADE]), min_size=1, max_size=5),
    cuts=st.lists(st.integers(1, 600), max_size=12),
)
def test_any_chunking_gives_the_same_requests(order: list[bytes], cuts: list[int]) -> None:
    data = b"".join(order)
    edges = [0, *sorted({cut for cut in cuts if cut < len(data)}), len(data)]
    chunks = [data[begin:end] for begin, end in itertools.pairwise(edges)]
    found = parse(*chunks)
    assert found == parse(data)
    assert [body for _, body in found] == [one.partition(b"\r\n\r\n")[2] for one in order]


@given(st.binary(min_size=1, max_size=400))
def test_arbitrary_bytes_raise_nothing_but_a_refusal(data: bytes) -> None:
    for prefix in (b"", b"GET / HTTP/1.1\r\nhost: h\r\n", POST[:-5]):
        status = 400
        try:
            for head, _ in parse(prefix + data, head_bytes_max=200):
                destination(head)
        except Refusal as refusal:
            status = refusal.status
        assert 400 <= status <= 505


@given(
    target=st.text("/abc?=%&.", min_size=1, max_size=20),
    values=st.lists(st.text("abc ,;=\t", max_size=10), max_size=4),
)
def test_a_head_in_canonical_form_means_the_same(target: str, values: list[str]) -> None:
    lines = [f"GET {target} HTTP/1.1", "Host: h", *(f"X-{i}:{v}" for i, v in enumerate(values))]
    raw = "\r\n".join([*lines, "", ""]).encode()
    ((head, _),) = parse(raw)
    ((again, _),) = parse(head.encode(upgrade=True))
    assert again == head


@pytest.mark.parametrize(
    ("target", "handed_on"),
    [
        (b"http://h/a?b", b"/a?b"),
        (b"HTTPS://h", b"/"),
        (b"http://h?b", b"/?b"),
        (b"http://[::1/", b"/"),
        (b"/x?to=http://h/y", b"/x?to=http://h/y"),
        (b"*", b"*"),
    ],
)
def test_hypercorn_is_asked_for_a_path_whoever_was_named_before_it(
    target: bytes, handed_on: bytes
) -> None:
    ((head, _),) = parse(b"GET " + target + b" HTTP/1.1\r\nHost: h\r\n\r\n")
    assert destination(head) == "http"
    assert head.encode(upgrade=False).startswith(b"GET " + handed_on + b" HTTP/1.1\r\n")


def test_what_comes_after_an_upgrade_is_kept_for_it() -> None:
    requests = Requests(head_bytes_max=1_000)
    requests.receive_data(UPGRADE + b"\x81\x80")
    head = requests.next_head()
    assert head is not None
    assert destination(head) == "websocket"
    assert requests.take_rest() == b"\x81\x80"
    assert not requests


def test_hypercorn_never_sees_an_upgrade() -> None:
    raw = (
        b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
        b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    ((head, _),) = parse(raw)
    assert destination(head) == "http"
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(head.encode(upgrade=False))
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    assert not {b"upgrade", b"http2-settings"} & {name for name, _ in request.headers}


def test_a_malformed_body_never_ends_and_is_handed_on_whole() -> None:
    requests = Requests(head_bytes_max=1_000)
    bad = b"zz\r\nGET /inner HTTP/1.1\r\n\r\n"
    requests.receive_data(CHUNKED.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + bad)
    assert requests.next_head() is not None
    assert requests.read_body() == bad
    requests.receive_data(b"more")
    assert requests.read_body() == b"more"
    assert not requests.body_ended


@pytest.mark.parametrize(
    ("status", "raw"),
    [
        (400, b"nonsense\r\n\r\n"),
        (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),  # a TLS hello
        (400, b"GET / HTTP/1.1\r\n\r\n"),  # no host
        (400, b"GET / HTTP/1.1\r\nHost: a..b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: " + b"x" * 64 + b".org\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: .\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: h\xe9\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: one, two\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost : h\r\n\r\n"),
        (400, b"GET / HTTP/1.1\r\nHost: h\r\nX: \x00\r\n\r\n"),
        (400, b"GET /\x80 HTTP/1.1\r\nHost: h\r\n\r\n"),
        (400, b"GET x HTTP/1.1\r\nHost: h\r\n\r\n"),
        (400, b"GET ?x HTTP/1.1\r\nHost: h\r\n\r\n"),
        (400, b"GET ftp://h/x HTTP/1.1\r\nHost: h\r\n\r\n"),
        (400, b"GET / HTTP/1.1\nHost: h\n\n"),
        (400, b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\n"),
        (400, b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n"),
        (
            400,
            (
                b"POST / HTTP/1.1\r\nHost: h\r\n"
                b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            ),
        ),
        (400, b"POST / HTTP/1.0\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n"),
        (501, b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
        (501, b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n"),
        (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
        (431, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 1_000 + b"\r\n\r\n"),
        (431, b"GET /" + b"x" * 2_000),
        (400, UPGRADE.replace(b"Host: h", b"Host: h\xdf")),
        (400, UPGRADE.replace(b"Host: h", b"Host: xn--\xff")),
        (400, UPGRADE.replace(b"Host: h", b"Host: h\r\nSec-WebSocket-Protocol: \xe9")),
        (400, UPGRADE.replace(b"keep-alive, Up", b"\xe9, Up")),
        (404, UPGRADE.replace(b"/ws", b"/x")),
        (404, UPGRADE.replace(b"/ws", b"/ws/")),
        (404, UPGRADE.replace(b"/ws", b"/")),
        (400, UPGRADE.replace(b"GET", b"POST")),
        (400, UPGRADE.replace(b"HTTP/1.1", b"HTTP/1.0")),
        (400, UPGRADE.replace(b"Host: h", b"Host: h\r\nContent-Length: 3")),
        (426, b"GET /ws HTTP/1.1\r\nHost: h\r\n\r\n"),
        (426, UPGRADE.replace(b"Connection: keep-alive, Upgrade", b"Connection: close")),
    ],
)
def test_refused_at_the_edge(status: int, raw: bytes) -> None:
    for chunks in ([raw], [raw[i : i + 1] for i in range(len(raw))]):
        requests = Requests(head_bytes_max=1_000)
        with pytest.raises(Refusal) as caught:
            first(requests, chunks)
        assert caught.value.status == status


@pytest.mark.parametrize(
    "raw",
    [
        UPGRADE,
        UPGRADE.replace(b"/ws", b"/ws?token=x"),
        UPGRADE.replace(b"/ws", b"http://h/ws"),
        UPGRADE.replace(b"Upgrade: WebSocket", b"Upgrade: h2c, websocket"),
        UPGRADE.replace(b"Host: h", b"Host: h\r\nContent-Length: 0"),
        UPGRADE.replace(b"keep-alive, Upgrade", b"keep-alive\r\nConnection: upgrade"),
    ],
)
def test_an_upgrade_in_all_its_spellings(raw: bytes) -> None:
    ((head, _),) = parse(raw)
    assert destination(head) == "websocket"
    assert head.path == b"/ws"


@pytest.mark.parametrize(
    "host",
    ["h", "coach.school.org", "coach.school.org.:8000", "a_b", "127.0.0.1:8", "[::1]:80", ""],
)
def test_hosts_as_they_are_written_are_served(host: str) -> None:
    requests = Requests(head_bytes_max=1_000)
    requests.receive_data(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    head = requests.next_head()
    assert head is not None
    assert destination(head) == "http"
