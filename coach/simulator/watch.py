"""Looks at everything every second while a load runs: students, server, machine, provider."""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import httpx
import trio

from .conversation import Tally
from .crowd import Crowd
from .exposition import Exposition
from .histogram import Histogram
from .host import Host
from .timeline import Sample

SAMPLE_S: Final = 1.0
WINDOW_SAMPLES: Final = 5
"""Students' percentiles are over so many samples, or there would be too few turns in them."""
SAMPLES_MAX: Final = 1_200
"""A longer run is sampled less often."""
ASK_S_MAX: Final = 2.0
"""For an answer of the server or the provider; later ones are not known."""
_HISTOGRAMS: Final = ("ttft_ms", "started_ms", "event_ms", "score_ms", "late_ms")


@attrs.frozen(kw_only=True)
class Targets:
    """What can be asked beside the students."""

    url: str
    local: bool = True
    """The server's processes are on this machine."""
    provider_url: str | None = None
    """A simulated provider's address, for its own figures."""
    provider_ca: str | None = None


@attrs.define(eq=False)
class Watch:
    """The samples of a run, while it goes on."""

    crowd: Crowd
    targets: Targets
    samples: list[Sample] = attrs.field(factory=list)
    on_sample: Callable[[Sample], None] = lambda _: None
    _earlier: deque[tuple[float, Tally, Histogram]] = attrs.field(
        factory=lambda: deque(maxlen=WINDOW_SAMPLES)
    )
    _scrapes: deque[Exposition] = attrs.field(factory=lambda: deque(maxlen=WINDOW_SAMPLES))

    @property
    def every_s(self) -> float:
        """Between two samples."""
        plan = self.crowd.plan
        return max(SAMPLE_S, (plan.seconds + plan.grace_s) / SAMPLES_MAX)

    async def run(self) -> None:
        """Sample until cancelled. What does not answer is left out; nothing is raised for it."""
        port = urlsplit(self.targets.url).port or 80
        host = Host(port, self.crowd.pids) if self.targets.local else None
        trust = ssl.create_default_context(cafile=self.targets.provider_ca)
        async with (
            httpx.AsyncClient(trust_env=False, timeout=ASK_S_MAX) as server,
            httpx.AsyncClient(trust_env=False, timeout=ASK_S_MAX, verify=trust) as provider,
        ):
            begin_s = due_s = trio.current_time()
            while True:
                if host is not None:
                    host.own = self.crowd.pids
                sample = await self._sample(begin_s, host, server, provider)
                self.samples.append(sample)
                self.on_sample(sample)
                due_s = max(due_s + self.every_s, trio.current_time())
                await trio.sleep_until(due_s)

    async def _sample(
        self,
        begin_s: float,
        host: Host | None,
        server: httpx.AsyncClient,
        provider: httpx.AsyncClient,
    ) -> Sample:
        scrape, stats = None, {}
        # httpx bounds each read, not the whole: a server that starves may take minutes
        with trio.move_on_after(ASK_S_MAX):
            scrape = await self._scrape(server)
        with trio.move_on_after(ASK_S_MAX):
            stats = await self._stats(provider)
        now_s = trio.current_time()
        sample = self._students(now_s, begin_s)
        if scrape is not None:
            sample = attrs.evolve(sample, **self._server(scrape))
        if stats:
            sample = attrs.evolve(
                sample,
                provider_late_p95_ms=stats.get("late_ms_p95"),
                provider_429s=stats.get("rate_limited"),
            )
        if host is not None:
            sample = attrs.evolve(sample, machine=host.machine(), usages=tuple(host.look()))
        return sample

    def _students(self, now_s: float, begin_s: float) -> Sample:
        tally, presence = self.crowd.tally, self.crowd.presence
        before_s, before, lag_before = (
            self._earlier[0] if self._earlier else (begin_s, Tally(), Histogram())
        )
        recent = {name: getattr(tally, name).since(getattr(before, name)) for name in _HISTOGRAMS}
        elapsed_s = max(1e-3, now_s - before_s)
        sample = Sample(
            at_s=now_s - begin_s,
            writers=presence.connected,
            turns_per_s=(tally.turns - before.turns) / elapsed_s,
            events_per_s=(tally.deltas - before.deltas) / elapsed_s,
            ttft_p50_ms=recent["ttft_ms"].percentile(50),
            ttft_p95_ms=recent["ttft_ms"].percentile(95),
            started_p95_ms=recent["started_ms"].percentile(95),
            event_gap_p95_ms=recent["event_ms"].percentile(95),
            score_p95_ms=recent["score_ms"].percentile(95),
            queued=tally.queued,
            errors=tally.errors.total(),
            error_codes=dict(tally.errors),
            submissions=tally.submissions,
            graded=tally.graded,
            own_lag_p99_ms=presence.lag_ms.since(lag_before).percentile(99),
            late_p99_ms=recent["late_ms"].percentile(99),
            tokens=dict(tally.tokens),
        )
        kept = Tally(turns=tally.turns, deltas=tally.deltas)
        for name in _HISTOGRAMS:
            setattr(kept, name, getattr(tally, name).copy())
        self._earlier.append((now_s, kept, presence.lag_ms.copy()))
        return sample

    def _server(self, scrape: Exposition) -> dict[str, Any]:
        before = self._scrapes[0] if self._scrapes else scrape
        self._scrapes.append(scrape)

        def quantile_ms(name: str, share: float) -> float | None:
            value = scrape.quantile(name, share, before)
            return None if value is None else value * 1_000

        spent = scrape.total("coach_cost_nanodollars_total") / 1e9
        spent -= before.total("coach_cost_nanodollars_total") / 1e9
        hours = scrape.total("coach_writer_seconds_total") / 3_600
        hours -= before.total("coach_writer_seconds_total") / 3_600
        return {
            "cost_per_writer_hour": spent / hours if spent > 0 and hours > 0 else None,
            "sessions": scrape.total("coach_sessions"),
            "streams": scrape.total("coach_provider_streams"),
            "loop_lag_p99_ms": quantile_ms("coach_loop_lag_seconds", 0.99),
            "redis_p99_ms": quantile_ms("coach_redis_latency_seconds", 0.99),
            "budget_wait_p95_ms": quantile_ms("coach_budget_wait_seconds", 0.95),
            "budget_used": scrape.largest("coach_budget_used_ratio"),
            "line": scrape.total("coach_line_length"),
            "queue": scrape.total("coach_queue_depth"),
            "refusals": scrape.total("coach_provider_refusals_total"),
            "files_share": scrape.largest("coach_open_files_ratio"),
        }

    async def _scrape(self, client: httpx.AsyncClient) -> Exposition | None:
        with suppress(httpx.HTTPError):
            response = await client.get(f"{self.targets.url}/metrics")
            if response.status_code == httpx.codes.OK:
                return Exposition(response.text)
        return None

    async def _stats(self, client: httpx.AsyncClient) -> dict[str, float]:
        if self.targets.provider_url is not None:
            with suppress(httpx.HTTPError, ValueError):
                found: dict[str, float] = (
                    await client.get(f"{self.targets.provider_url}/stats")
                ).json()
                return found
        return {}
