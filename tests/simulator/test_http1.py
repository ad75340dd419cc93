"""HTTP/1.1 for clients without HTTP/2, without sockets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach.simulator.exchange import Exchange
from coach.simulator.http1 import Http1Connection

from .test_http2 import FakeOutlet, FakeWork

REQUEST = b"POST /v1/messages HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}"


class Talk:
    """The server's side; requests are answered at once, or kept."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.outlet = FakeOutlet()
        self.requests: list[tuple[bytes, bytes]] = []
        self.at_once = at_once
        self.connection = Http1Connection(self.outlet, self.receive)

    def receive(self, exchange: Exchange) -> None:
        self.requests.append((exchange.method, exchange.body))
        if self.at_once:
            exchange.start(200, [(b"content-length", b"2")])
            exchange.write(b"ok")
            exchange.end()

    @property
    def answers(self) -> int:
        return self.outlet.data.count(b"HTTP/1.1 200")


def test_requests_follow_each_other_on_one_connection() -> None:
    talk = Talk()
    talk.connection.receive(REQUEST)
    talk.connection.receive(REQUEST)

    assert talk.requests == [(b"POST", b"{}")] * 2
    assert talk.answers == 2
    assert not talk.outlet.closed


def test_very_many_requests_at_once_are_answered_one_after_another() -> None:
    talk = Talk()
    talk.connection.receive(REQUEST * 2_000)

    assert talk.answers == 2_000


def test_a_request_waits_until_the_one_before_is_answered() -> None:
    talk = Talk(at_once=False)
    talk.connection.receive(REQUEST * 2)
    assert len(talk.requests) == 1
    talk.connection.start(200, [])
    talk.connection.write(b"slow")
    talk.connection.end()

    assert len(talk.requests) == 2
    assert b"transfer-encoding: chunked" in talk.outlet.data.lower()


def test_head_is_answered_without_a_body() -> None:
    talk = Talk()
    talk.connection.receive(b"HEAD /stats HTTP/1.1\r\nhost: x\r\n\r\n")

    assert talk.outlet.data.endswith(b"\r\n\r\n")


def test_a_client_that_wants_to_close_is_closed_after_its_answer() -> None:
    talk = Talk()
    talk.connection.receive(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")

    assert (talk.answers, talk.outlet.closed) == (1, True)


def test_a_body_may_wait_for_100_continue() -> None:
    talk = Talk()
    head, body = REQUEST[:-2], REQUEST[-2:]
    talk.connection.receive(head.replace(b"host", b"expect: 100-continue\r\nhost"))
    assert talk.outlet.data.startswith(b"HTTP/1.1 100")
    talk.connection.receive(body)

    assert talk.answers == 1


@pytest.mark.parametrize("how", ["refuse", "reset", "abort", "go_away"])
def test_answers_may_be_broken_off(how: str) -> None:
    talk = Talk(at_once=False)
    talk.connection.receive(REQUEST)
    getattr(talk.connection, how)()

    assert talk.outlet.closed or talk.outlet.aborted


@given(st.binary(max_size=200))
def test_bytes_that_are_no_http_end_the_connection_and_its_work(garbage: bytes) -> None:
    talk = Talk(at_once=False)
    talk.connection.receive(REQUEST)
    talk.connection.work = work = FakeWork()
    for _ in range(2):
        talk.connection.receive(garbage)
    talk.connection.lost()

    assert work.by_reset == [False]


@given(st.data())
def test_any_chunking_delivers_the_same_requests(data: st.DataObject) -> None:
    talk, sent, at = Talk(), REQUEST * 3, 0
    while at < len(sent):
        size = data.draw(st.integers(1, 80))
        talk.connection.receive(sent[at : at + size])
        at += size

    assert talk.requests == [(b"POST", b"{}")] * 3
