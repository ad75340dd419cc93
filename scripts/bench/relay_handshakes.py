"""What it costs a relay to accept a WebSocket, to greet its owner, and to keep it idle.

One after the other on loopback, so that the time of each is its own: connect and upgrade
(RFC 6455 section 4), then, on all of them, `hello` and `welcome`, which in coach makes the session.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import trio
from processes import ProcessEnded, cpu_s, resident_bytes
from relay_clients import masked_frame
from relay_peers import Relay, Variant, end_of, open_relay
from relay_stage import Plan, open_simulator, percentiles
from rich.table import Table

from coach.errors import ConfigurationError

WARM_UP = 100
SETTLE_S = 1.0
ANSWER_S_MAX = 10.0
COLUMNS = (
    "relay",
    "handshake p50 / p95 / p99, ms",
    "CPU µs, handshake",
    "CPU µs, hello",
    "KB, connected",
    "KB, greeted",
)


async def handshakes(variant: Variant, count: int) -> dict[str, Any]:
    """Open `count` WebSockets at a relay, greet on each, and let them idle.

    Raises:
      ConfigurationError: something did not start, or ended before its time.
    """
    plan = Plan(clients=1, events_per_s=10, seconds=1, ramp_s=1, ttft_ms=200, load_processes=None)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-relay-")))
        upstream, _ = await stack.enter_async_context(open_simulator(plan, folder))
        relay = await stack.enter_async_context(
            open_relay(variant, upstream, folder, hello_s_max=600.0)
        )
        issues_tokens = variant.peer != "trio-websocket"
        try:
            figures = await trio.to_thread.run_sync(_measured, relay, count, issues_tokens)
        except (ProcessEnded, OSError) as error:
            raise ConfigurationError(f"{error}; {end_of(relay.log)}") from error
    return {"relay": variant.name, **figures}


def _measured(relay: Relay, count: int, issues_tokens: bool) -> dict[str, Any]:
    parts = urlsplit(relay.url)
    address = (parts.hostname or "", parts.port or 80)
    total = WARM_UP + count
    tokens = _tokens(address, total) if issues_tokens else ["none"] * total
    sockets: list[socket.socket] = []
    try:
        for token in tokens[:WARM_UP]:
            sockets.append(_opened(address))
            _greet(sockets[-1], token)
        begun = _state(relay)
        times_ms = []
        for _ in range(count):
            before = time.monotonic()
            sockets.append(_opened(address))
            times_ms.append((time.monotonic() - before) * 1000)
        opened = _state(relay)
        for connection, token in zip(sockets[WARM_UP:], tokens[WARM_UP:], strict=True):
            _greet(connection, token)
        greeted = _state(relay)
    finally:
        for connection in sockets:
            connection.close()
    return {
        "handshakes": count,
        "handshake_ms": percentiles(times_ms),
        "cpu_us_per_event": {
            "relay": round((opened[0] - begun[0]) / count * 1e6, 1),
            "hello": round((greeted[0] - opened[0]) / count * 1e6, 1),
        },
        "connected_kb": round((opened[1] - begun[1]) / count / 1e3, 1),
        "greeted_kb": round((greeted[1] - begun[1]) / count / 1e3, 1),
    }


def _state(relay: Relay) -> tuple[float, int]:
    """CPU seconds and bytes of memory, once the relay has come to rest."""
    time.sleep(SETTLE_S)
    return sum(map(cpu_s, relay.pids)), sum(map(resident_bytes, relay.pids))


def _tokens(address: tuple[str, int], count: int) -> list[str]:
    tokens = []
    for _ in range(count):
        connection = http.client.HTTPConnection(*address, timeout=ANSWER_S_MAX)
        connection.request("POST", "/api/token")
        tokens.append(str(json.loads(connection.getresponse().read())["token"]))
        connection.close()
    return tokens


def _opened(address: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(address, timeout=ANSWER_S_MAX)
    key = base64.b64encode(os.urandom(16)).decode()
    connection.sendall(
        (
            f"GET /ws HTTP/1.1\r\nHost: {address[0]}:{address[1]}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Protocol: coach.v1\r\n\r\n"
        ).encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        head += _some(connection)
    status = head.partition(b"\r\n")[0].decode()
    if " 101 " not in status:
        raise ConnectionError(f"refused: {status}")
    return connection


def _greet(connection: socket.socket, token: str) -> None:
    connection.sendall(masked_frame(0x81, json.dumps({"type": "hello", "token": token}).encode()))
    answer = b""
    while b'"welcome"' not in answer:
        answer += _some(connection)


def _some(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectionError("the relay has closed a connection")
    return data


def handshakes_table(rows: list[dict[str, Any]]) -> Table:
    """For the terminal."""
    table = Table()
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "relay" else "right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def handshakes_markdown(rows: list[dict[str, Any]]) -> str:
    """For docs/benchmarks.md."""
    lines = [f"| {' | '.join(COLUMNS)} |", f"| {' | '.join('---' for _ in COLUMNS)} |"]
    return "\n".join([*lines, *(f"| {' | '.join(_cells(row))} |" for row in rows)]) + "\n"


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        row["relay"],
        " / ".join(f"{value:.2f}" for value in row["handshake_ms"].values()),
        f"{row['cpu_us_per_event']['relay']:.0f}",
        f"{row['cpu_us_per_event']['hello']:.0f}",
        f"{row['connected_kb']:.1f}",
        f"{row['greeted_kb']:.1f}",
    ]
