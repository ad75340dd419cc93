"""scripts/bench: the clients count every event, and the figures are what was measured."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCH = Path(__file__).parent.parent / "scripts" / "bench"
RUN: dict[str, Any] = {
    "relay": "coach",
    "clients": 2,
    "rate": 10.0,
    "seconds": 1.0,
    "sent": 20,
    "received": 20,
    "cpu_us_per_event": {"relay": 30.0},
    "cpu_percent": {"relay": 1.0},
    "latency_ms": {"p50": 1.0, "p95": 2.0, "p99": 3.0},
    "ttft_added_ms": {"p50": None, "p95": None, "p99": None},
    "messages_per_event": 1.0,
    "turns_done": 0,
    "resident_mb": 90.0,
    "errors": {},
}


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCH))


def counted(monkeypatch: pytest.MonkeyPatch, *reads: bytes, now: float) -> Any:
    """What a client counts that receives `reads` one after the other at `now`."""
    from relay_clients import Client, Loop

    ours, theirs = socket.socketpair()
    monkeypatch.setattr(socket, "create_connection", lambda _: ours)
    monkeypatch.setattr(ours.__class__, "setsockopt", lambda *_: None)
    monkeypatch.setattr(Loop, "_fetch_tokens", lambda *_: [])
    with ours, theirs:
        loop = Loop("http://127.0.0.1:1", 1, 1.0, "essay")
        client = Client(loop, 0, "token")
        for data in (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", *reads):
            theirs.sendall(data)
            client.readable(now)
    loop.close()
    return loop.counts


def delta(text: str) -> bytes:
    payload = f'{{"type":"delta","seq":3,"request":"c@1.5 ","text":"{text}"}}'.encode()
    return bytes([0x81, len(payload)]) + payload


def test_every_event_of_a_joined_message_is_counted_and_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    joined = delta("@99.000000 Well@99.250000  put, me@x.org 9 @99.500000 .")
    counts = counted(monkeypatch, joined + delta("@99.750000 On"), now=100.0)
    assert (counts.messages, counts.events) == (2, 4)
    assert counts.latencies_ms == [1000.0, 750.0, 500.0, 250.0]
    assert len(counts.ttft_ms) == 1


@pytest.mark.parametrize("at", range(1, 60, 7))
def test_a_message_cut_by_the_network_counts_once(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    data = delta("@99.000000 a@99.500000 b")
    counts = counted(monkeypatch, data[:at], data[at:], now=100.0)
    assert (counts.messages, counts.events) == (1, 2)
    assert counts.latencies_ms == [1000.0, 500.0]


def test_several_runs_become_their_medians() -> None:
    from relay_tables import medians

    runs = [{**RUN, "cpu_us_per_event": {"relay": cost}} for cost in (30.0, 90.0, 33.0)]
    runs[1]["errors"] = {"closed": 2}
    merged = medians(runs)
    assert merged["cpu_us_per_event"] == {"relay": 33.0}
    assert merged["cpu_us_range"] == [30.0, 90.0]
    assert merged["errors"] == {"closed": 2}
    assert merged["ttft_added_ms"]["p50"] is None


def test_a_relay_that_falls_behind_is_said_to() -> None:
    from relay_tables import markdown, medians

    text = markdown([medians([RUN]), medians([{**RUN, "received": 10}])])
    kept_up, behind = text.splitlines()[2:]
    assert "| 2 × 10/s | coach | 30.0 |" in kept_up
    assert "behind" not in kept_up
    assert "behind: 50% delivered" in behind


def test_a_process_that_has_ended_is_named() -> None:
    from processes import ProcessEnded, children, cpu_s, resident_bytes

    assert cpu_s(os.getpid()) >= 0
    assert resident_bytes(os.getpid()) > 0
    ended = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(ProcessEnded):  # a zombie
        cpu_s(ended.pid)
    ended.wait()
    for reading in (cpu_s, children, resident_bytes):
        with pytest.raises(ProcessEnded, match=str(ended.pid)):
            reading(ended.pid)


def test_the_queues_table_has_a_line_for_each_lane_and_medians_of_the_runs() -> None:
    from queue_run import fairness_lines, markdown, rows_of

    runs: list[dict[str, Any]] = [
        {
            "of": "coach",
            "idle": {"interactive": [1.0, 2.0, 3.0 * slow], "background": [1.0]},
            "overload": {"interactive": [150.0]},
            "throughput": {"done_per_s": 1_000.0 * slow, "handed_in_per_s": 100.0},
            "fairness": {"a": 0.5 + slow / 100, "b": 0.5 - slow / 100},
        }
        for slow in (1, 2, 9)
    ]
    assert rows_of(runs) == [
        ("coach, interactive", "2.0 / 6.0", "150 / 150", "2,000", "100"),
        ("coach, background", "1.0 / 1.0", "none", "", ""),
    ]
    alone = rows_of([{"of": "arq", "throughput": {"done_per_s": 3.0, "handed_in_per_s": 4.0}}])
    assert alone == [("arq", "", "", "3", "4")]
    assert markdown(alone).splitlines()[-1] == "| arq |  |  | 3 | 4 |"
    (line,) = fairness_lines(runs)
    assert line.endswith("a 51.0–59.0 %, b 41.0–49.0 %")
    assert fairness_lines([{"of": "arq"}]) == []


def test_the_end_of_a_log_is_one_line(tmp_path: Path) -> None:
    from relay_peers import end_of

    log = tmp_path / "log"
    assert end_of(log) == "its log is empty"
    log.write_text("x" * 1_000 + "\nTraceback\n  MemoryError\n")
    assert end_of(log).endswith("Traceback MemoryError")
    assert "\n" not in end_of(log)
    assert len(end_of(log)) < 500
