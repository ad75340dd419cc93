"""Load of the relay benchmark: many WebSocket clients with an open turn each, as cheap as can be.

One process, one epoll loop, frames cut by hand: what it spends is measured as well and must stay
well below what the server spends, or the run says more about this file than about coach. Started
by `relay`, spoken to over standard input and output, one line each:

    ready            (out) every client has seen the first text of its turn
    begin            (in)  forget what was counted so far
    end              (in)  say what was counted, as one line of JSON, and leave
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import selectors
import socket
import struct
import sys
import time
from collections import deque
from typing import Any
from urllib.parse import urlsplit

import attrs

DELTA = b'{"type":"delta"'
STAMP = re.compile(rb"@(\d+\.\d{6}) ")
"""In the text of each provider event; one message may carry several events, each with its own."""
RECEIVE_BYTES = 65_536


@attrs.define
class Counts:
    """What one process has seen."""

    events: int = 0
    """Of the provider, by their stamps."""
    messages: int = 0
    """Deltas; each with one event or more."""
    bytes: int = 0
    reads: int = 0
    done: int = 0
    errors: dict[str, int] = attrs.field(factory=dict)
    latencies_ms: list[float] = attrs.field(factory=list)
    ttft_ms: list[float] = attrs.field(factory=list)


class Client:
    """One student with a turn that is asked for again whenever it is done."""

    def __init__(self, loop: Loop, number: int, token: str) -> None:
        """Connect and ask for the first turn."""
        self._loop = loop
        self._name = f"c{number}"
        self._turn = 0
        self._asked_at = 0.0
        self.flowing = False
        """Whether the present turn has shown text."""
        self._buffer = b""
        self._open = False
        self.socket = socket.create_connection((loop.host, loop.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET /ws HTTP/1.1\r\nHost: {loop.host}:{loop.port}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: coach.v1\r\n\r\n"
            ).encode()
        )
        self._hello = {"type": "hello", "token": token}

    def readable(self, now: float) -> None:
        """Take in what has come: at most one receive call."""
        data = self.socket.recv(RECEIVE_BYTES)
        if not data:
            self._loop.count_error("closed")
            self._loop.drop(self)
            return
        counts = self._loop.counts
        counts.reads += 1
        counts.bytes += len(data)
        self._buffer = self._buffer + data if self._buffer else data
        if not self._open and not self._shake_hands():
            return
        self._cut(now)

    def _shake_hands(self) -> bool:
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            self._loop.count_error("refused")
            self._loop.drop(self)
            return False
        self._buffer = rest
        self._open = True
        self._send(self._hello)
        self._send({"type": "draft", "draft": "d", "rev": 1, "text": self._loop.essay})
        self._ask()
        return True

    def _ask(self) -> None:
        self._turn += 1
        self.flowing = False
        self._asked_at = time.monotonic()
        self._send({"type": "feedback", "request": f"{self._name}-{self._turn}", "draft": "d"})

    def _cut(self, now: float) -> None:
        """Walk over the frames in the buffer (RFC 6455 section 5.2; a server does not mask)."""
        buffer, at, end = self._buffer, 0, len(self._buffer)
        while end - at >= 2:
            length, payload = buffer[at + 1], at + 2
            if length == 126:
                if end - at < 4:
                    break
                (length,) = struct.unpack_from("!H", buffer, at + 2)
                payload = at + 4
            elif length == 127:
                raise ValueError("a frame beyond 64 KiB")
            if end - payload < length:
                break
            if buffer.startswith(DELTA, payload):
                self._delta(buffer, payload, payload + length, now)
            else:
                self._other(buffer[at] & 0x0F, buffer[payload : payload + length])
            at = payload + length
        self._buffer = buffer[at:]

    def _delta(self, buffer: bytes, at: int, end: int, now: float) -> None:
        counts = self._loop.counts
        stamps = STAMP.findall(buffer, at, end)
        counts.messages += 1
        counts.events += len(stamps)
        if not self.flowing:
            self.flowing = True
            counts.ttft_ms.append((now - self._asked_at) * 1000)
            self._loop.flowing += 1
        for stamp in stamps:
            counts.latencies_ms.append((now - float(stamp)) * 1000)

    def _other(self, opcode: int, payload: bytes) -> None:
        if opcode == 0x9:  # ping: the same again as a pong
            self.socket.sendall(masked_frame(0x8A, payload))
        elif opcode == 0x8:
            self._loop.count_error("close_frame")
        elif payload.startswith(b'{"type":"done"'):
            self._loop.counts.done += 1
            self._loop.flowing -= self.flowing
            self._ask()
        elif payload.startswith(b'{"type":"error"'):
            self._loop.count_error(str(json.loads(payload)["code"]))

    def _send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(masked_frame(0x81, json.dumps(message).encode()))


class Loop:
    """All clients of this process."""

    def __init__(self, url: str, clients: int, ramp_s: float, essay: str) -> None:
        """Fetch the tokens, so that the ramp is WebSockets only."""
        parts = urlsplit(url)
        self.host, self.port = parts.hostname or "", parts.port or 80
        self.essay = essay
        self.counts = Counts()
        self.flowing = 0
        """Clients whose turn shows text."""
        self._selector = selectors.DefaultSelector()
        self._tokens = deque(self._fetch_tokens(clients))
        self._clients = clients
        self._gap_s = ramp_s / clients

    def run(self) -> None:
        """Ramp up, say `ready`, count until told to end."""
        self._selector.register(sys.stdin, selectors.EVENT_READ)
        begun, started, ready = time.monotonic(), 0, False
        while True:
            now = time.monotonic()
            while started < self._clients and begun + started * self._gap_s <= now:
                client = Client(self, started, self._tokens.popleft())
                self._selector.register(client.socket, selectors.EVENT_READ, client)
                started += 1
            if not ready and started == self._clients and self.flowing >= 0.98 * started:
                ready = True
                self._say("ready")
            for key, _ in self._selector.select(0.05 if ready else 0.005):
                if key.data is not None:
                    key.data.readable(time.monotonic())
                elif self._told() == "end":
                    return

    def close(self) -> None:
        """Close the selector; connections are their clients'."""
        self._selector.close()

    def drop(self, client: Client) -> None:
        """Forget a connection that has ended."""
        self._selector.unregister(client.socket)
        client.socket.close()

    def count_error(self, code: str) -> None:
        """One more error of this kind."""
        self.counts.errors[code] = self.counts.errors.get(code, 0) + 1

    def _told(self) -> str:
        word = sys.stdin.readline().strip()
        if word == "begin":
            ttft_ms, errors = self.counts.ttft_ms, self.counts.errors
            self.counts = Counts(ttft_ms=ttft_ms, errors=errors)
        elif word == "end":
            self._say(json.dumps(attrs.asdict(self.counts)))
        elif not word:
            raise SystemExit(1)  # the parent has gone
        return word

    def _say(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def _fetch_tokens(self, count: int) -> list[str]:
        tokens = []
        for _ in range(count):
            connection = http.client.HTTPConnection(self.host, self.port, timeout=10)
            connection.request("POST", "/api/token")
            tokens.append(str(json.loads(connection.getresponse().read())["token"]))
            connection.close()
        return tokens


def masked_frame(head: int, payload: bytes) -> bytes:
    """A client's frame; masked with zeros, which RFC 6455 allows and costs nothing."""
    length = len(payload)
    size = struct.pack("!B", 0x80 | length) if length < 126 else struct.pack("!BH", 0xFE, length)
    return bytes([head]) + size + b"\0\0\0\0" + payload


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--ramp", type=float, required=True)
    parser.add_argument("--essay", required=True)
    options = parser.parse_args()
    Loop(options.url, options.clients, options.ramp, options.essay).run()
