"""The soak itself: a simulated provider, survivors, and whoever cancels; prints what was seen.

The simulator gives the same answer to the same prompt, so that one undisturbed answer says what
every other must be, delta by delta.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio

from coach import config
from coach.child import start_child, stop_child
from coach.providers import Pool
from coach.providers.exchange import Header, Origin, StreamError, StreamRequest
from coach.providers.pool import open_pool_with
from coach.providers.sse import EventParser
from coach.providers.tls import TlsWire, client_context, dial_tls

START_S_MAX: Final = 15.0
CANCELLERS: Final = 60
RATE: Final = 10.0
"""Deltas a second of each stream."""
CANCEL_AFTER_S: Final = (0.0, 0.01, 0.2, 1.5)
"""Each cancel draws one of these, and comes at random before it."""
RST_MS_MAX: Final = 50.0
ESSAY: Final = (
    "The river was cold that morning, and nobody had told us why we should cross it. " * 8
)
HEADERS: Final[list[Header]] = [
    (b"x-api-key", b"soak"),
    (b"anthropic-version", b"2023-06-01"),
    (b"content-type", b"application/json"),
]


@attrs.frozen
class Plan:
    """What is done."""

    streams: int
    cancels: int
    seconds: float
    seed: int


@attrs.define
class Seen:
    """What came of it."""

    whole: int = 0
    wrong: list[str] = attrs.field(factory=list)
    """Survivors that failed, or whose answer was not what it should have been."""
    cancelled: Counter[str] = attrs.field(factory=Counter)
    """By the phase in which it hit them."""
    rst_ms: list[float] = attrs.field(factory=list)
    """From the moment of the cancel until the kernel had the RST_STREAM."""


class TimedWire:
    """A `Wire` that notes when what was cancelled has gone to the kernel."""

    def __init__(self, wire: TlsWire, seen: Seen) -> None:
        """Stand around `wire`."""
        self.http1 = wire.http1
        self.arrived_at = 0.0
        self.cancelled_at: list[float] = []
        """RST_STREAMs that the next `send` takes along."""
        self._wire = wire
        self._seen = seen

    async def receive(self) -> bytes:
        """See `Wire`."""
        data = await self._wire.receive()
        self.arrived_at = self._wire.arrived_at
        return data

    async def send(self, data: bytes) -> None:
        """See `Wire`."""
        cancelled_at, self.cancelled_at = self.cancelled_at, []
        await self._wire.send(data)
        now = trio.current_time()
        self._seen.rst_ms += [(now - at) * 1_000 for at in cancelled_at]

    async def aclose(self) -> None:
        """See `Wire`."""
        await self._wire.aclose()


class Answer:
    """A receiver that compares each delta with what it must be."""

    def __init__(self, expected: Sequence[str] | None) -> None:
        """Expect these deltas; None: any, which are kept."""
        self.texts: list[str] = []
        self.count = 0
        self.stopped = False
        self._expected = expected
        self._events = EventParser()

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""
        if status != 200:
            raise ValueError(f"status {status}")

    def on_data(self, data: bytes) -> None:
        """A piece of it."""
        for raw in self._events.feed(data):
            event = json.loads(raw)
            if event["type"] == "content_block_delta":
                self._take(event["delta"]["text"])
            self.stopped = self.stopped or event["type"] == "message_stop"

    def _take(self, text: str) -> None:
        if self._expected is None:
            self.texts.append(text)
        elif self.count >= len(self._expected) or self._expected[self.count] != text:
            raise ValueError(f"delta {self.count} is not what it must be")
        self.count += 1


@attrs.define
class Soak:
    """One run."""

    plan: Plan
    pool: Pool
    origin: Origin
    seen: Seen
    rng: random.Random
    expected: list[str] = attrs.field(factory=list)
    left: int = 0

    async def run(self) -> dict[str, float]:
        """Do everything; returns the provider's figures."""
        await self.control(events_per_s=10_000, ttft_ms=0)
        reference = Answer(None)
        async with self.pool.open_stream(self.request(), reference) as stream:
            await stream.wait_end()
        self.expected, self.left = reference.texts, self.plan.cancels
        await self.control(events_per_s=RATE, ttft_ms=150)
        async with trio.open_nursery() as nursery:
            for _ in range(self.plan.streams):
                nursery.start_soon(self.survive)
            await trio.sleep(1)
            nursery.start_soon(self.change_limits)
            for _ in range(CANCELLERS):
                nursery.start_soon(self.cancel_again_and_again)
        await trio.sleep(0.5)  # the last resets are on their way
        return await self.ask("GET", "/stats")

    def request(self, padding: int = 0) -> StreamRequest:
        """The same prompt for all; `padding` bytes of JSON's white space make it longer."""
        body = {
            "model": "m",
            "max_tokens": 1_000_000,
            "stream": True,
            "messages": [{"role": "user", "content": ESSAY}],
        }
        return StreamRequest(
            origin=self.origin,
            method="POST",
            path="/v1/messages",
            headers=HEADERS,
            body=json.dumps(body).encode() + b" " * padding,
        )

    async def survive(self) -> None:
        """Stream one answer to its end."""
        answer = Answer(self.expected)
        try:
            async with self.pool.open_stream(self.request(), answer) as stream:
                await stream.wait_end()
        except Exception as error:
            self.seen.wrong.append(f"after {answer.count} deltas: {error!r} {error.__cause__!r}")
            return
        if answer.stopped and answer.count == len(self.expected):
            self.seen.whole += 1
        else:
            self.seen.wrong.append(f"ended after {answer.count} of {len(self.expected)} deltas")

    async def cancel_again_and_again(self) -> None:
        """Take a share of the cancels."""
        while self.left > 0:
            self.left -= 1
            await self.cancel_one()

    async def cancel_one(self) -> None:
        """Make a request, and cancel it at a moment that nobody foresees."""
        answer = Answer(self.expected)
        after_s = self.rng.random() * self.rng.choice(CANCEL_AFTER_S)
        padding = self.rng.choice([0, 0, 0, 50_000, 1_500_000])
        wire: TimedWire | None = None
        deadline = trio.current_time() + after_s
        with trio.CancelScope(deadline=deadline) as scope:
            try:
                async with self.pool.open_stream(self.request(padding), answer) as stream:
                    wire = _wire_of(stream)
                    await stream.wait_end()
            except StreamError as error:
                self.seen.wrong.append(f"a request to be cancelled: {error!r}")
        if wire is not None and scope.cancelled_caught:  # no checkpoint since RST_STREAM was made
            wire.cancelled_at.append(deadline)
        phase = "answering" if answer.count else "before the first delta"
        self.seen.cancelled[phase if wire is not None else "before it was sent"] += 1

    async def change_limits(self) -> None:
        """Lower the limit of streams half way, and raise it again."""
        await trio.sleep(self.plan.seconds / 2)
        await self.control(max_concurrent_streams=40)
        await trio.sleep(5)
        await self.control(max_concurrent_streams=100)

    async def control(self, **changes: float) -> None:
        """Change the simulator's settings."""
        await self.ask("POST", "/control", json=changes)

    async def ask(self, method: str, path: str, **more: Any) -> dict[str, float]:
        """Ask one of the operator's pages, through the pool too."""
        url = f"https://{self.origin.authority}{path}"
        async with httpx.AsyncClient(transport=self.pool) as client:
            response = await client.request(method, url, **more)
        response.raise_for_status()
        found: dict[str, float] = response.json()
        return found


def main() -> int:
    """Run from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="soak", description="Cancels among live streams.")
    parser.add_argument("--streams", type=int, default=300, help="that survive (default 300)")
    parser.add_argument("--cancels", type=int, default=10_000, help="(default 10000)")
    parser.add_argument("--seconds", type=float, default=75.0, help="of each survivor (default 75)")
    parser.add_argument("--seed", type=int, default=0, help="of the cancels (default 0)")
    plan = Plan(**vars(parser.parse_args()))
    return trio.run(_run, plan)


async def _run(plan: Plan) -> int:
    seen = Seen()
    with tempfile.TemporaryDirectory(prefix="coach-soak-") as folder:
        try:
            with trio.fail_after(3 * plan.seconds + 60):
                figures, resets = await _soak(plan, Path(folder), seen)
        except (OSError, StreamError) as error:
            sys.stderr.write(f"soak: {error}\n")
            return 2
        except trio.TooSlowError:
            seen.wrong.append("the run did not end in time")
            figures, resets = {}, 0
    return _report(plan, seen, figures, resets)


async def _soak(plan: Plan, folder: Path, seen: Seen) -> tuple[dict[str, float], int]:
    log = folder / "simulator.log"
    command = [sys.executable, "-m", "coach.simulator", "--data-dir", str(folder)]
    command += ["--feedback-events-min", str(math.ceil(plan.seconds * RATE))]
    with log.open("wb") as sink:
        process = start_child(command, output=sink)
        try:
            port = await _port(log)
            context = client_context(str(folder / "simulator-ca.pem"))

            async def dial(origin: Origin) -> TimedWire:
                wire = await dial_tls(origin, context)
                assert isinstance(wire, TlsWire)
                return TimedWire(wire, seen)

            limits = config.Pool(connect_s_max=30.0)
            async with open_pool_with(limits, dial) as pool:
                origin = Origin("127.0.0.1", port)
                soak = Soak(plan, pool, origin, seen, random.Random(plan.seed))  # noqa: S311
                return await soak.run(), pool.statistics().resets
        finally:
            await stop_child(process, within_s=5)  # noqa: ASYNC102  it shields itself


def _wire_of(stream: Any) -> TimedWire | None:
    """Where its reset must come out; the pool does not lend its wires."""
    connection = stream._connection  # noqa: SLF001
    found: TimedWire | None = connection and connection._wire  # noqa: SLF001
    return found


async def _port(log: Path) -> int:
    """Where the simulator listens, as soon as it has said so."""
    deadline = trio.current_time() + START_S_MAX
    while trio.current_time() < deadline:
        ready = re.search(r"ready https://[^:]+:(\d+)", _said(log))
        if ready:
            return int(ready[1])
        await trio.sleep(0.05)
    raise OSError(f"the simulator does not start: {_said(log).strip()}")


def _said(log: Path) -> str:
    return log.read_text()


def _report(plan: Plan, seen: Seen, figures: dict[str, float], resets: int) -> int:
    ordered = sorted(seen.rst_ms) or [math.inf]
    p50, p99 = (ordered[math.ceil(len(ordered) * share) - 1] for share in (0.5, 0.99))
    left = figures.get("streams_open", -1) - figures.get("streams_lost", 0)
    good = not seen.wrong and seen.whole == plan.streams and left == 0 and p99 <= RST_MS_MAX
    print(f"survivors      {seen.whole} of {plan.streams} whole and in order")
    for wrong in seen.wrong[:10]:
        print(f"  wrong        {wrong}")
    phases = ", ".join(f"{count} {phase}" for phase, count in sorted(seen.cancelled.items()))
    print(f"cancelled      {seen.cancelled.total()}: {phases}")
    print(f"RST_STREAM     p50 {p50:.2f} ms, p99 {p99:.2f} ms, max {ordered[-1]:.2f} ms")
    shown = ("streams_open", "streams_cancelled", "streams_lost", "streams_peak", "handshakes")
    print("at the provider " + ", ".join(f"{name} {figures.get(name, '?')}" for name in shown))
    print(f"resets sent    {resets}")
    print("good" if good else "NOT GOOD")
    return 0 if good else 1
