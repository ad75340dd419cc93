"""Hostile connections by the hundred thousand: the worker lives and stays as it was.

What each connection does is drawn from one seeded generator: random bytes, damaged heads and
frames, requests cut short, shapes that smuggle requests past other servers, paths and methods that
nobody has, sockets that are half open, dripped into or reset in the middle of a frame. Meanwhile a
simulated student writes and must get all feedback.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import socket
import struct
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Final

import attrs
import httpx
import trio

from coach.child import Process, exited, start_child, stop_child
from coach.errors import ConfigurationError, first_error
from coach.simulator.plan import Plan
from coach.simulator.writers import simulate

START_S_MAX: Final = 40.0
END_S_MAX: Final = 15.0
CONNECTION_S_MAX: Final = 8.0
"""After which a connection is left to itself: longer than the server has for any of them."""
HEAD_S_MAX: Final = 1.0
"""The server's patience with heads, hellos and bodies here: the run would be waiting otherwise."""
SETTLE_S_MAX: Final = 30.0
"""After the last one: sessions whose students have vanished are put away after 5 s."""
WARM_UP: Final = 0.1
"""Share of the connections after which memory is looked at first: what grows then, leaks."""
GROWTH_BYTES_MAX: Final = 16 * 1024**2
FILES_MORE_MAX: Final = 4
TASKS_MORE_MAX: Final = 8
WRITER_S: Final = 6.0
SAMPLE_S: Final = 2.0
"""The worker counts its tasks once a second."""

HOST: Final = b"Host: coach.example\r\n"
UPGRADE: Final = (
    b"GET /ws HTTP/1.1\r\n" + HOST + b"Upgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
HEADS: Final = (
    b"GET / HTTP/1.1\r\n" + HOST + b"\r\n",
    b"GET /static/main.js HTTP/1.1\r\n" + HOST + b"Accept-Encoding: gzip\r\n\r\n",
    b"GET /healthz HTTP/1.0\r\n\r\n",
    b"POST /api/token HTTP/1.1\r\n" + HOST + b"Content-Length: 0\r\n\r\n",
    b"POST /api/regrade HTTP/1.1\r\n" + HOST + b"Content-Length: 17\r\n\r\n{'submissions':1}",
    b"POST /api/regrade HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    UPGRADE,
)
HIDDEN: Final = b"GET /hidden HTTP/1.1\r\n" + HOST + b"\r\n"
SMUGGLERS: Final = (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
    b"Content-Length: 4\r\nContent-Length: 40\r\n",
    b"Content-Length: 4, 4\r\n",
    b"Content-Length: +4\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: 0x4\r\n",
    b"Content-Length: 99999999999999999999\r\n",
    b"Content-Length : 4\r\n",
    b"Content-Length:\x0b4\r\n",
    b"Transfer-Encoding: xchunked\r\n",
    b"Transfer-Encoding: identity, chunked\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n",
    b"Transfer-Encoding:\tchunked\r\n",
    b"Transfer-Encoding: chunked\x00\r\n",
    b" Transfer-Encoding: chunked\r\n",
    b"X: y\r\n Content-Length: 4\r\n",
    b"X: y\nContent-Length: 4\r\n",
    b"Foo\r\nContent-Length: 4\r\n",
    b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
)
CHUNKS: Final = (
    b"0\r\n\r\n",
    b"ffffffffffffffff\r\n",
    b"4;a=\n\r\nbody\r\n0\r\n\r\n",
    b"-1\r\nx\r\n",
    b"4\r\nbodyX0\r\n\r\n",
    b"0\r\nX: y\r\n\r\n",
    b"body",
)
OTHERS: Final = (
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64),
    b"SSH-2.0-OpenSSH_9.6\r\n",
    b"\x05\x01\x00",
    b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n" + HEADS[0],
    b"CONNECT example.org:443 HTTP/1.1\r\n" + HOST + b"\r\n",
)
METHODS: Final = (
    "GET",
    "POST",
    "PUT",
    "DELETE",
    "HEAD",
    "OPTIONS",
    "PATCH",
    "TRACE",
    "ws",
    "G\xcbT",
)
PATHS: Final = (
    *(
        "/",
        "/ws",
        "/ws/",
        "//ws",
        "/ws?x=%00",
        "/ops",
        "/review",
        "/metrics",
        "/readyz",
        "/api/queue",
    ),
    *("/api/submissions/{}", "/api/users/{}", "/api/regrade/{}", "/api/reviews/{}", "/static/{}"),
    *(
        "/static/../../etc/passwd",
        "/static/%2e%2e/config.py",
        "http://[::1/",
        "*",
        "/api/readings/{}",
    ),
)
TOKENS: Final = ("", "Bearer x.y.z", "Bearer eyJhbGciOiJub25lIn0.e30.", "Basic eA==", "Bearer \x7f")


@attrs.frozen
class Script:
    """What one connection does; `sent` goes out in pieces."""

    kind: str
    sent: tuple[bytes, ...] = ()
    pause_s: float = 0.0
    """Between two pieces."""
    end: str = "close"
    """`close`, `reset`, `eof` (then read to the end), `read` (to the end), `hold` (until then)."""


@attrs.define
class Fuzz:
    """Draws scripts, and plays them; the same seed draws the same ones."""

    host: str
    port: int
    rng: random.Random
    tokens: list[str] = attrs.field(factory=list)
    """Of students; some connections say a true hello before they go wrong."""
    kinds: Counter[str] = attrs.field(factory=Counter)
    statuses: Counter[str] = attrs.field(factory=Counter)
    """First lines of answers; `none` where nothing came before the end."""
    overdue: Counter[str] = attrs.field(factory=Counter)
    """Kinds of those that the server has not ended in its time."""
    refused: int = 0
    """Connections that could not be opened."""

    async def run(self, count: int, at_once: int) -> None:
        """Play so many, that many at a time."""
        left = iter(range(count))
        async with trio.open_nursery() as nursery:
            for _ in range(at_once):
                nursery.start_soon(self._play_on, left)

    async def _play_on(self, left: Iterator[int]) -> None:
        for _ in left:  # shared by all
            script = self.draw()
            self.kinds[script.kind] += 1
            with trio.move_on_after(CONNECTION_S_MAX) as time:
                await self._play(script)
            if time.cancelled_caught:
                self.overdue[script.kind] += 1

    async def _play(self, script: Script) -> None:
        with trio.socket.socket() as connection:
            try:
                await connection.connect((self.host, self.port))
            except OSError:
                self.refused += 1
                return
            if script.end == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            said = b""
            with suppress(OSError):
                for piece in script.sent:
                    await _send(connection, piece)
                    if script.pause_s:
                        await trio.sleep(script.pause_s)
                if script.end == "eof":
                    connection.shutdown(socket.SHUT_WR)
                if script.end != "close" and script.end != "reset":
                    while data := await connection.recv(65_536):
                        said = said or data
            self.statuses[_status(said)] += 1

    # -- what they do --------------------------------------------------------------------------

    def draw(self) -> Script:
        """The next one."""
        kinds: tuple[tuple[int, Callable[[], Script]], ...] = (
            (10, self._noise),
            (16, self._damaged_head),
            (10, self._cut_short),
            (14, self._smuggler),
            (14, self._nobody_s_path),
            (12, self._frames),
            (12, self._student_gone_wrong),
            (5, self._other_protocol),
            (3, self._drip),
            (4, lambda: Script("nothing at all", end=self._an_end())),
        )
        weights = [weight for weight, _ in kinds]
        return self.rng.choices([kind for _, kind in kinds], weights)[0]()

    def _an_end(self) -> str:
        return self.rng.choices(("close", "reset", "eof", "read"), (4, 3, 3, 1))[0]

    def _noise(self) -> Script:
        return Script("random bytes", (self.rng.randbytes(self._size()),), end=self._an_end())

    def _size(self) -> int:
        return int(self.rng.choice((4, 40, 400, 4_000, 40_000)) * (0.1 + self.rng.random()))

    def _damaged_head(self) -> Script:
        head = b"".join(self.rng.choices(HEADS, k=self.rng.randint(1, 3)))
        return Script("damaged head", (self._damage(head),), end=self._an_end())

    def _damage(self, data: bytes) -> bytes:
        found = bytearray(data)
        for _ in range(self.rng.randint(1, 4)):
            at = self.rng.randrange(len(found) or 1)
            match self.rng.randrange(4):
                case 0:
                    found[at : at + 1] = self.rng.randbytes(1)
                case 1:
                    found[at:at] = self.rng.choice((b"\n", b"\r\n", b"\0", b" ", b"x" * 20_000))
                case 2:
                    del found[at : at + self.rng.randint(1, 30)]
                case _:
                    found[at:at] = found[at : at + self.rng.randint(1, 200)]
        return bytes(found)

    def _cut_short(self) -> Script:
        head = self.rng.choice(HEADS)
        cut = head[: self.rng.randrange(len(head))]
        end = self.rng.choices(("eof", "reset", "hold"), (5, 4, 1))[0]
        return Script("cut short" if end != "hold" else "half open", (cut,), end=end)

    def _smuggler(self) -> Script:
        head = b"POST /api/regrade HTTP/1.1\r\n" + HOST + self.rng.choice(SMUGGLERS) + b"\r\n"
        behind = self.rng.choice((HIDDEN, UPGRADE, b""))
        sent = head + self.rng.choice(CHUNKS) + behind
        return Script("smuggling", self._in_pieces(sent), end=self._an_end())

    def _in_pieces(self, data: bytes) -> tuple[bytes, ...]:
        cuts = sorted(self.rng.choices(range(len(data) + 1), k=self.rng.randint(0, 3)))
        ends = [0, *cuts, len(data)]
        return tuple(data[a:b] for a, b in itertools.pairwise(ends) if a < b)

    def _nobody_s_path(self) -> Script:
        word = self.rng.choice(("x", "%00", "%ff%fe", "a" * 3_000, "..%2f", "\xe9", "{}", "';--"))
        path = self.rng.choice(PATHS).replace("{}", word)
        lines = f"{self.rng.choice(METHODS)} {path} HTTP/1.1\r\nHost: h\r\n"
        if token := self.rng.choice(TOKENS):
            lines += f"Authorization: {token}\r\n"
        body = self.rng.randbytes(self.rng.randrange(200))
        lines += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        return Script("path or method", (lines.encode("latin-1") + body,), end="read")

    def _frames(self) -> Script:
        frames = b"".join(self._frame() for _ in range(self.rng.randint(1, 6)))
        if self.rng.random() < 0.5:
            frames = self._damage(frames)
        return Script("frames", (UPGRADE, frames), end=self._an_end())

    def _student_gone_wrong(self) -> Script:
        if not self.tokens:
            return self._frames()
        hello = {"type": "hello", "token": self.rng.choice(self.tokens)}
        said = [json.dumps(hello), '{"type": "draft", "draft": "d", "rev": 1, "text": "It rains."}']
        sent = b"".join(_text(each.encode()) for each in said[: self.rng.randint(1, 2)])
        wrong = self._damage(b"".join(self._frame() for _ in range(self.rng.randint(1, 4))))
        end = self.rng.choice(("close", "reset", "reset", "eof"))
        return Script("student gone wrong", (UPGRADE + sent, wrong), 0.02, end)

    def _frame(self) -> bytes:
        payload = self.rng.choice(
            (
                b"",
                b"\x03\xe8bye",
                self.rng.randbytes(self._size()),
                b'{"type": "cancel", "request": "r"}',
                "κόσμε".encode(),
                b"\xce\xba\xf4\x90",
            )
        )
        first = self.rng.choice((0x81, 0x01, 0x80, 0x00, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0x83, 0x09))
        frame = _framed(first, payload)
        if self.rng.random() < 0.2:
            frame = frame[: self.rng.randrange(1, len(frame) + 1)]  # and reset in its middle
        return frame

    def _other_protocol(self) -> Script:
        return Script("another protocol", (self.rng.choice(OTHERS),), end=self._an_end())

    def _drip(self) -> Script:
        head = self.rng.choice(HEADS)
        return Script("dripped", tuple(bytes([each]) for each in head[:20]), 0.05, "read")


async def _send(connection: trio.socket.SocketType, data: bytes) -> None:
    while data:
        data = data[await connection.send(data) :]


def _text(payload: bytes) -> bytes:
    return _framed(0x81, payload)


def _framed(first: int, payload: bytes) -> bytes:
    """A client's frame; its mask is zero."""
    size = len(payload)
    head = (
        struct.pack("!BB", first, 0x80 | size)
        if size < 126
        else struct.pack("!BBH", first, 254, size)
    )
    return head + bytes(4) + payload


def _status(said: bytes) -> str:
    found = re.match(rb"HTTP/1\.[01] (\d{3}) ", said)
    return found[1].decode() if found else "none"


# -- the run -----------------------------------------------------------------------------------


@attrs.frozen
class Look:
    """A worker at one moment."""

    resident_bytes: int
    files: int
    tasks: int


@attrs.define
class Writers:
    """What students saw who wrote meanwhile."""

    turns: int = 0
    completed: int = 0
    errors: Counter[str] = attrs.field(factory=Counter)


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--connections", type=int, required=True, metavar="N")
    parser.add_argument("--at-once", type=int, default=600, metavar="N", help="(default 600)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, metavar="FILE", help="where coach's log goes as well")
    options = parser.parse_args()
    if min(options.connections, options.at_once) < 1:
        parser.error("connections and at-once are 1 or more")
    try:
        with tempfile.TemporaryDirectory(prefix="coach-soak-") as folder:
            return trio.run(partial(_run, options, Path(folder)))
    except* ConfigurationError as group:
        print(f"soak: {first_error(group)}", file=sys.stderr)
    except* KeyboardInterrupt:
        print("soak: interrupted", file=sys.stderr)
    return 2


async def _run(options: argparse.Namespace, folder: Path) -> int:
    async with _open_coach(folder) as (url, demo):
        host, _, port = url.removeprefix("http://").partition(":")
        (worker,) = workers = _workers_of(demo.pid)
        tokens = [await _token(url) for _ in range(200)]
        fuzz = Fuzz(host, int(port), random.Random(options.seed), tokens)  # noqa: S311  not a secret
        writers = Writers()
        await trio.sleep(SAMPLE_S)
        begun = await _look(url, worker)
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_write_on, url, writers)
            await fuzz.run(max(1, round(options.connections * WARM_UP)), options.at_once)
            warm = await _look_settled(url, worker, begun)
            await fuzz.run(options.connections - fuzz.kinds.total(), options.at_once)
            nursery.cancel_scope.cancel("all connections were made")
        took_s = trio.current_time() - began_s
        ended = await _look_settled(url, worker, warm)
        await _write(url, after := Writers())
        lives = _workers_of(demo.pid) == workers
        log = _text_of(folder / "coach" / "serve.log")
    if options.log is not None:
        options.log.write_text(log)
    return _report(fuzz, took_s, [begun, warm, ended], [writers, after], lives=lives, log=log)


async def _write_on(url: str, writers: Writers) -> None:
    while True:
        await _write(url, writers)


async def _write(url: str, writers: Writers) -> None:
    """A student comes, writes, gets feedback, and hands in."""
    report = await simulate(
        Plan(url=url, writers=1, seconds=WRITER_S, ramp_s=0, turn_every_s=2, grace_s=20)
    )
    writers.turns += report.tally.turns
    writers.completed += report.tally.completed
    writers.errors.update(report.tally.errors)
    if not report.ok and not report.tally.errors:
        writers.errors["not graded"] += 1


@asynccontextmanager
async def _open_coach(folder: Path) -> AsyncIterator[tuple[str, Process]]:
    settings = folder / "coach.toml"
    settings.write_text(
        f"[server]\nworkers = 1\nhead_s_max = {HEAD_S_MAX}\nhello_s_max = {HEAD_S_MAX}\n"
        f"send_s_max = {HEAD_S_MAX}\n"
        "connects_per_minute = 6000\n"
    )
    said = folder / "said"
    command = ["-m", "coach", "demo", "--port", "0", "--data-dir", str(folder / "coach")]
    with said.open("wb") as output:
        demo = start_child(
            [sys.executable, *command, "--config", str(settings)],
            output=output,
            environ={**os.environ, "COLUMNS": "200"},
        )
    try:
        yield await _address(demo, said), demo
    finally:
        await stop_child(demo, within_s=END_S_MAX)  # noqa: ASYNC102  it shields itself
        with trio.move_on_after(END_S_MAX, shield=True):
            await exited(demo)


async def _address(demo: Process, said: Path) -> str:
    """Where the demo serves, as soon as it has said so."""
    with trio.move_on_after(START_S_MAX):
        while demo.poll() is None:
            if found := re.search(r"Write at (http://\S+)", _text_of(said)):
                return found[1]
            await trio.sleep(0.1)
    raise ConfigurationError(f"coach does not start: {_text_of(said).strip()}")


def _text_of(log: Path) -> str:
    return log.read_text(errors="replace")


def _workers_of(pid: int) -> set[int]:
    """The web workers below a process."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            command = (stat.parent / "cmdline").read_bytes().split(b"\0")
            if b"worker" in command and b"coach" in command and _descends(stat.parent, pid):
                found.add(int(stat.parent.name))
    return found


def _descends(process: Path, pid: int) -> bool:
    number = int(process.name)
    while number > 1:
        if number == pid:
            return True
        number = int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])
    return False


async def _token(url: str) -> str:
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:  # noqa: S501  plain HTTP
        token: str = (await client.post(f"{url}/api/token")).json()["token"]
        return token


async def _look(url: str, worker: int) -> Look:
    async with httpx.AsyncClient(verify=False, trust_env=False) as client:  # noqa: S501  plain HTTP
        text = (await client.get(f"{url}/metrics", timeout=30)).text
    found = re.search(r"^coach_tasks (\S+)$", text, re.MULTILINE)
    return _seen(worker, tasks=int(float(found[1])) if found else -1)


def _seen(worker: int, *, tasks: int) -> Look:
    pages = int(Path(f"/proc/{worker}/statm").read_text().split()[1])
    return Look(
        resident_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
        files=len(list(Path(f"/proc/{worker}/fd").iterdir())),
        tasks=tasks,
    )


async def _look_settled(url: str, worker: int, before: Look) -> Look:
    """A look once what has ended is gone, or at the latest after `SETTLE_S_MAX`."""
    deadline = trio.current_time() + SETTLE_S_MAX
    while True:
        await trio.sleep(2)
        look = await _look(url, worker)
        if _is_back(look, before) or trio.current_time() > deadline:
            return look


def _is_back(look: Look, before: Look) -> bool:
    return (
        look.files <= before.files + FILES_MORE_MAX and look.tasks <= before.tasks + TASKS_MORE_MAX
    )


def _report(
    fuzz: Fuzz, took_s: float, looks: list[Look], writers: list[Writers], *, lives: bool, log: str
) -> int:
    begun, warm, ended = looks
    growth = ended.resident_bytes - warm.resident_bytes
    during, after = writers
    faults = [line for line in log.splitlines() if "connection_failed" in line]
    faults += re.findall(r"^(?: *\| )?(\w*(?:Error|Exception)\b.*)$", log, re.MULTILINE)
    checks = {
        "the worker lives": lives,
        "no connection broke anything": not faults,
        "all could connect": fuzz.refused == 0,
        "the server has ended all in its time": not fuzz.overdue,
        "files and tasks are as before": _is_back(ended, warm),
        f"memory grew by {GROWTH_BYTES_MAX / 1024**2:.0f} MiB at most": growth <= GROWTH_BYTES_MAX,
        "the student had all feedback meanwhile": during.completed > 0 and not during.errors,
        "and afterwards": after.completed > 0 and not after.errors,
    }
    total = fuzz.kinds.total()
    print(f"connections    {total:,} in {took_s:.0f} s, {total / took_s:,.0f} a second")
    print("               " + ", ".join(f"{n:,} {kind}" for kind, n in fuzz.kinds.most_common()))
    print("answers        " + ", ".join(f"{n:,} {how}" for how, n in fuzz.statuses.most_common()))
    print("worker         begun / after a tenth / ended")
    memory = " / ".join(f"{look.resident_bytes / 1024**2:.1f}" for look in looks)
    print(f"  memory       {memory} MiB")
    print(f"  open files   {begun.files} / {warm.files} / {ended.files}")
    print(f"  tasks        {begun.tasks} / {warm.tasks} / {ended.tasks}")
    print(f"student        {during.completed} of {during.turns} answers, then {after.completed}")
    for kind, count in fuzz.overdue.items():
        print(f"  overdue      {count} {kind}")
    for code, count in (during.errors + after.errors).items():
        print(f"  error        {count} {code}")
    for fault, count in Counter(faults).most_common(10):
        print(f"  fault        {count} {fault:.160}")
    for what, holds in checks.items():
        if not holds:
            print(f"NOT SO         {what}")
    print("good" if all(checks.values()) else "NOT GOOD")
    return 0 if all(checks.values()) else 1
