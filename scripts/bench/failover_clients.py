"""Students of the failover benchmark: a turn each, and when it began again elsewhere.

One process, one epoll loop, frames cut by hand, so that it is not what is waited for. Started by
`failover`; standard output, one line each:

    ready            every client's turn shows text
    {"turns": […]}   every turn has ended, or `--within` seconds have passed since `ready`
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import selectors
import socket
import struct
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import attrs

RECEIVE_BYTES = 65_536
POLL_S = 0.05


@attrs.define
class Turn:
    """What one student saw; moments are CLOCK_MONOTONIC seconds."""

    restarted_at: float | None = None
    reason: str = ""
    answered_at: float | None = None
    """As the second provider has stamped its first token."""
    events: int = 0
    ended: str = ""
    """`done`, an error's code, or `closed`; empty: not yet."""


class Client:
    """One student with one turn."""

    def __init__(self, address: tuple[str, int], token: str, essay: str) -> None:
        """Connect, shake hands and ask; the answers are for `readable`."""
        self.turn = Turn()
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            (
                f"GET /ws HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nUpgrade: websocket\r\n"
                f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Protocol: coach.v1\r\n\r\n"
            ).encode()
        )
        self._buffer = b""
        while b"\r\n\r\n" not in self._buffer:
            data = self.socket.recv(RECEIVE_BYTES)
            if not data:
                raise ConnectionError(f"refused: {self._buffer!r}")
            self._buffer += data
        self._buffer = self._buffer.partition(b"\r\n\r\n")[2]
        self._send({"type": "hello", "token": token})
        self._send({"type": "draft", "draft": "d", "rev": 1, "text": essay})
        self._send({"type": "feedback", "request": "r", "draft": "d"})

    def readable(self) -> None:
        """Take in what has come: at most one receive call."""
        try:
            data = self.socket.recv(RECEIVE_BYTES)
        except ConnectionError:
            data = b""
        if not data:
            self.turn.ended = self.turn.ended or "closed"
            return
        now = time.monotonic()
        self._buffer += data
        while (frame := self._cut()) is not None:
            opcode, payload = frame
            if opcode == 0x9:
                self.socket.sendall(_frame(0x8A, payload))
            elif opcode == 0x1 and not self.turn.ended:
                self._take(json.loads(payload), now)

    def _cut(self) -> tuple[int, bytes] | None:
        """The next frame (RFC 6455 section 5.2; a server does not mask)."""
        buffer = self._buffer
        if len(buffer) < 4:
            return None
        length, at = buffer[1], 2
        if length == 126:
            (length,), at = struct.unpack_from("!H", buffer, 2), 4
        elif length == 127:
            raise ValueError("a frame beyond 64 KiB")
        if len(buffer) < at + length:
            return None
        self._buffer = buffer[at + length :]
        return buffer[0] & 0x0F, buffer[at : at + length]

    def _take(self, message: dict[str, Any], now: float) -> None:
        turn = self.turn
        match message["type"]:
            case "delta":
                turn.events += 1
                if turn.restarted_at is not None and turn.answered_at is None:
                    turn.answered_at = float(message["text"].partition("@")[2].split(" ", 1)[0])
            case "restarted":
                turn.restarted_at, turn.reason = now, message["reason"]
            case "done":
                turn.ended = "done"
            case "error":
                turn.ended = message["code"]

    def _send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(_frame(0x81, json.dumps(message).encode()))


def run(url: str, clients: int, ramp_s: float, within_s: float, essay: str) -> None:
    """Connect all, say `ready`, wait for their ends, say what was seen."""
    parts = urlsplit(url)
    address = (parts.hostname or "", parts.port or 80)
    tokens = _fetch_tokens(address, clients)
    selector = selectors.DefaultSelector()
    everybody: list[Client] = []
    begun, until = time.monotonic(), None
    while until is None or time.monotonic() < until:
        while len(everybody) < clients * min(1.0, (time.monotonic() - begun) / ramp_s):
            client = Client(address, tokens[len(everybody)], essay)
            selector.register(client.socket, selectors.EVENT_READ, client)
            everybody.append(client)
        for key, _ in selector.select(POLL_S if until else 0.002):
            key.data.readable()
            if key.data.turn.ended:
                selector.unregister(key.data.socket)
        if until is None and len(everybody) == clients:
            if all(client.turn.events or client.turn.ended for client in everybody):
                until = time.monotonic() + within_s
                _say("ready")
        elif all(client.turn.ended for client in everybody) and until is not None:
            break
    _say(json.dumps({"turns": [attrs.asdict(client.turn) for client in everybody]}))


def _fetch_tokens(address: tuple[str, int], count: int) -> list[str]:
    tokens = []
    for _ in range(count):
        connection = http.client.HTTPConnection(*address, timeout=10)
        connection.request("POST", "/api/token")
        tokens.append(str(json.loads(connection.getresponse().read())["token"]))
        connection.close()
    return tokens


def _frame(head: int, payload: bytes) -> bytes:
    """A client's frame; masked with zeros, which RFC 6455 allows and costs nothing."""
    length = len(payload)
    size = struct.pack("!B", 0x80 | length) if length < 126 else struct.pack("!BH", 0xFE, length)
    return bytes([head]) + size + b"\0\0\0\0" + payload


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--ramp", type=float, required=True)
    parser.add_argument("--within", type=float, required=True)
    parser.add_argument("--essay", required=True)
    options = parser.parse_args()
    run(options.url, options.clients, options.ramp, options.within, options.essay)
