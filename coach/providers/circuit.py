"""An endpoint's circuit breaker, shared by all workers in Redis.

    closed ──faults in a row, or too many of a hundred──> open ──a while──> one probe at a time
      ^                                                     ^                    │
      └── ramping: 10, 25, 50 % are let in <──the probe ends well── or badly ────┘

Asking costs nothing while it is closed: each worker keeps how it stood at its last report. How
requests end is reported together, at once where there is a fault, else after `REPORT_S`; so a
breaker that one worker's faults open is open for the others at their next report. Only the leave to
probe is asked for in Redis, which gives it to one.

Without Redis each worker goes on by what it sees itself.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Final, Literal, final

import attrs
import structlog
import trio

from .. import config
from ..nurseries import running
from ..store import Redis, RedisError, script

log = structlog.get_logger()

REPORT_S: Final = 0.25
"""Between good ends and their report, and between looks at a breaker that is not closed."""
HOLD_S_MAX: Final = 3_600.0

State = Literal["closed", "open", "ramping"]


@attrs.frozen(kw_only=True)
class CircuitStatistics:
    """A breaker as this worker knows it."""

    state: State
    share: float
    """Of requests that are let in, 0.0..1.0."""


@final
class Leave:
    """Leave to send one request; the first word on its end counts. No method is a checkpoint."""

    __slots__ = ("_circuit", "_probe", "_told")

    def __init__(self, circuit: Circuit, probe: str = "") -> None:
        self._circuit = circuit
        self._probe = probe  # its name, where it is one
        self._told = False

    def succeeded(self) -> None:
        """The answer was whole."""
        self._tell(ok=True)

    def failed(self, *, is_fault: bool, hold_s: float | None = None) -> None:
        """There was no whole answer.

        Args:
          is_fault: it counts against the endpoint.
          hold_s: the endpoint is not to be asked for so long.
        """
        if hold_s is not None:
            self._circuit.hold(hold_s)
        if is_fault:
            self._tell(ok=False)
        else:
            self.dropped()

    def dropped(self) -> None:
        """Nothing is known: it was not sent, or not waited for. Said last, to forget none."""
        self._tell(ok=None)

    def _tell(self, *, ok: bool | None) -> None:
        if not self._told:
            self._told = True
            self._circuit._ended(ok, self._probe)  # noqa: SLF001  made there


@final
class Circuit:
    """The breaker of one endpoint in one worker; lent out by `open_circuit`."""

    def __init__(
        self,
        redis: Redis,
        endpoint: str,
        settings: config.Failover,
        rng: random.Random,
    ) -> None:
        self._redis = redis
        self._key = f"circuit:{{{endpoint}}}"
        self._endpoint = endpoint
        self._settings = settings
        self._rng = rng
        self._state: State = "closed"
        self._share = 1.0
        self._probe_at = 0.0  # while it is open: not before this, by trio's clock
        self._held_until = 0.0
        self._ok = self._bad = self._trailing = 0  # not reported yet
        self._hold_s = 0.0  # not reported yet
        self._probe = ("", "")  # how a probe ended, and which; not reported yet
        self._faults = 0  # in a row, seen here
        self._resets = 0
        self._something = trio.Event()  # to report
        self._urgent = trio.Event()  # it must not wait

    def statistics(self) -> CircuitStatistics:
        """How it stands."""
        return CircuitStatistics(state=self._state, share=self._share)

    async def ask(self) -> Leave | None:
        """Leave to send one request, or None: another endpoint should be asked.

        A checkpoint only where it is open and may be probed. Cancelled there, a leave to probe may
        be taken until its lease ends.
        """
        now = trio.current_time()
        if now < self._held_until:
            return None
        if self._state == "closed":
            return Leave(self)
        if self._state == "ramping":
            return Leave(self) if self._rng.random() < self._share else None
        if now < self._probe_at:
            return None
        return await self._ask_for_probe()

    def bypass(self) -> Leave:
        """Leave all the same: every other endpoint has failed, or is closed to us as well."""
        return Leave(self)

    def hold(self, seconds: float) -> None:
        """Nobody is to ask for so long: the provider said so. Not a checkpoint."""
        seconds = min(seconds, HOLD_S_MAX)
        self._held_until = max(self._held_until, trio.current_time() + seconds)
        self._hold_s = max(self._hold_s, seconds)
        self._something.set()
        self._urgent.set()

    async def reset(self) -> None:
        """Let requests in again, whatever it has seen or was told; other workers soon hear of it.

        Raises:
          RedisError: no answer; nothing may have changed.
        """
        self._hold_s = 0.0
        self._resets += 1  # what a report under way is answered is of before
        await self._redis.execute_command("DEL", self._key)
        self._held_until = 0.0
        self._stand("closed", 1.0, 0.0)

    async def run(self) -> None:
        """Report, and look how it stands, until cancelled."""
        while True:
            lets_in = self._state == "closed" and trio.current_time() >= self._held_until
            look_s = inf if lets_in else REPORT_S
            with trio.move_on_after(look_s):
                await self._something.wait()
            if self._something.is_set():
                with trio.move_on_after(REPORT_S):
                    await self._urgent.wait()
            try:
                await self._report()
            except RedisError as error:
                log.warning("circuit_not_reported", endpoint=self._endpoint, error=str(error))
                await trio.sleep(REPORT_S)

    def _ended(self, ok: bool | None, probe: str) -> None:
        if ok:
            self._ok, self._trailing, self._faults = self._ok + 1, 0, 0
        elif ok is False:
            self._bad, self._trailing = self._bad + 1, self._trailing + 1
            self._faults += 1
            self._urgent.set()
            if self._faults >= self._settings.faults_max and self._state != "open":
                self._stand("open", 0.0, self._settings.open_s)
        if probe:
            self._probe = ("ok" if ok else "dropped" if ok is None else "fault", probe)
            self._urgent.set()
        if probe or ok is not None:
            self._something.set()

    async def _ask_for_probe(self) -> Leave | None:
        name = secrets.token_hex(8)
        lease_ms = round(self._settings.probe_s_max * 1000)
        self._probe_at = trio.current_time() + REPORT_S  # the others here need not ask as well
        try:
            reply = await script("circuit_probe")(self._redis, [self._key], [name, lease_ms])
        except RedisError as error:
            log.warning("circuit_probe_failed", endpoint=self._endpoint, error=str(error))
            return None
        if reply == b"probe":
            return Leave(self, name)
        return Leave(self) if reply == b"go" else None

    async def _report(self) -> None:
        settings = self._settings
        ok, bad, trailing, hold_s = self._ok, self._bad, self._trailing, self._hold_s
        resets = self._resets
        how, name = self._probe
        self._ok = self._bad = self._trailing = 0
        self._hold_s, self._probe = 0.0, ("", "")
        self._something, self._urgent = trio.Event(), trio.Event()
        state, share, wait_ms, hold_ms = await script("circuit_report")(
            self._redis,
            [self._key],
            [
                *(ok, bad, trailing, round(hold_s * 1000), how, name),
                *(settings.faults_max, settings.fault_percent, settings.requests_min),
                round(settings.window_s * 1000),
                *(round(settings.open_s * 1000), round(settings.open_s_max * 1000)),
                round(settings.ramp_step_s * 1000),
            ],
        )
        if resets != self._resets:
            return
        now = trio.current_time()
        self._held_until = max(self._held_until, now + hold_ms / 1000) if hold_ms else 0.0
        self._stand(state.decode(), share / 100, wait_ms / 1000)

    def _stand(self, state: State, share: float, wait_s: float) -> None:
        if state != self._state:
            log.warning("circuit_changed", endpoint=self._endpoint, state=state, was=self._state)
            self._faults = 0
        self._state, self._share = state, share
        self._probe_at = trio.current_time() + wait_s


@asynccontextmanager
async def open_circuit(
    redis: Redis, *, endpoint: str, settings: config.Failover, rng: random.Random | None = None
) -> AsyncIterator[Circuit]:
    """Open an endpoint's breaker for one worker; the block's end reports nothing more.

    Args:
      redis: where all workers meet.
      endpoint: its name, the same in all workers.
      settings: when it opens, and for how long.
      rng: decides who is let in while it ramps.
    """
    circuit = Circuit(redis, endpoint, settings, rng or random.Random())  # noqa: S311  no secret
    async with running(circuit.run):
        yield circuit
