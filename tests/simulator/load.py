"""Loads a simulator with streams that never end and prints its CPU time per event.

Run: python -m tests.simulator.load --streams 300 --seconds 10
The client parses no more than frame heads, so that it stays below the simulator's own cost.
"""

from __future__ import annotations

import argparse
import json
import ssl
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import h2.config
import h2.connection
import h2.settings
import httpx
import trio

STREAMS_PER_CONNECTION = 100
ESSAYS = Path(__file__).parents[2] / "coach" / "simulator" / "essays"


class Counter:
    """What the client saw."""

    def __init__(self) -> None:
        self.events = 0
        self.ended = 0


async def connection(port: int, context: ssl.SSLContext, streams: int, counter: Counter) -> None:
    """Keep `streams` answers running on one connection for as long as nobody cancels."""
    essays = [path.read_text() for path in sorted(ESSAYS.glob("*.txt"))]
    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    tls = trio.SSLStream(tcp, context, server_hostname="127.0.0.1")
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    client.local_settings = h2.settings.Settings(
        initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}
    )
    client.initiate_connection()
    client.increment_flow_control_window(2**31 - 1 - 65_535)

    def request() -> None:
        stream_id = client.get_next_available_stream_id()
        essay = essays[stream_id // 2 % len(essays)]
        body = {
            "model": "sim-1",
            "max_tokens": 500,
            "stream": True,
            "messages": [{"role": "user", "content": f"<essay>\n{essay}\n</essay>"}],
        }
        client.send_headers(
            stream_id,
            [
                (":method", "POST"),
                (":path", "/v1/messages"),
                (":scheme", "https"),
                (":authority", "127.0.0.1"),
                ("x-api-key", "load"),
                ("anthropic-version", "2023-06-01"),
            ],
        )
        data = json.dumps(body).encode()
        for at in range(0, len(data), 16_384):
            client.send_data(stream_id, data[at : at + 16_384])
        client.end_stream(stream_id)

    await tls.send_all(client.data_to_send())
    buffer = b""
    wanted, started = streams, 0
    while True:
        while started < wanted and client.outbound_flow_control_window > 65_536:
            request()
            started += 1
        await tls.send_all(client.data_to_send())
        buffer += await tls.receive_some(262_144)
        at, control = 0, []
        while len(buffer) - at >= 9:
            end = at + 9 + int.from_bytes(buffer[at : at + 3], "big")
            if end > len(buffer):
                break
            if buffer[at + 3] == 0:
                counter.events += buffer.count(b"event: ", at, end)
                if buffer[at + 4] & 1:
                    counter.ended += 1
                    wanted += 1
                    control.append(buffer[at:end])
            else:
                control.append(buffer[at:end])
            at = end
        buffer = buffer[at:]
        client.receive_data(b"".join(control))


async def load(port: int, ca: Path, streams: int, seconds: float) -> None:
    """Warm up for 3 s, then compare the simulator's counters over `seconds`."""
    context = ssl.create_default_context(cafile=str(ca))
    context.set_alpn_protocols(["h2"])
    counter = Counter()
    verify = ssl.create_default_context(cafile=str(ca))
    async with (
        httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=verify) as http,
        trio.open_nursery() as nursery,
    ):
        for first in range(0, streams, STREAMS_PER_CONNECTION):
            some = min(STREAMS_PER_CONNECTION, streams - first)
            nursery.start_soon(connection, port, context, some, counter)
        await trio.sleep(3)
        before, own = (await http.get("/stats")).json(), time.process_time()
        seen, at = counter.events, time.monotonic()
        await trio.sleep(seconds)
        after, own = (await http.get("/stats")).json(), time.process_time() - own
        seen, wall = counter.events - seen, time.monotonic() - at
        nursery.cancel_scope.cancel()
    events = after["events_sent"] - before["events_sent"]
    cpu = after["cpu_s"] - before["cpu_s"]
    writes = after["writes"] - before["writes"]
    sys.stdout.write(
        f"{after['streams_open']} streams: {events / wall:.0f} events/s sent, {seen / wall:.0f} "
        f"seen; simulator {cpu / events * 1e6:.1f} us CPU an event ({cpu / wall:.0%} of a core), "
        f"{events / writes:.1f} events a write; {counter.ended} answers ended; late ms "
        f"p50 {after['late_ms_p50']} p95 {after['late_ms_p95']}; client {own / events * 1e6:.1f}\n"
    )


def main() -> None:
    """Start a simulator of its own, load it, end it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", default="10")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "coach.simulator", "--data-dir", folder]
        with subprocess.Popen(
            [*command, "--events-per-s", options.rate], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline().rsplit(":", 1)[1])
            ca = Path(folder) / "simulator-ca.pem"
            try:
                trio.run(load, port, ca, options.streams, options.seconds)
            finally:
                process.terminate()


if __name__ == "__main__":
    main()
