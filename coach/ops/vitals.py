"""What an operator looks at first, drawn from the metrics of all workers of a host; pure.

A `Reading` is what the metrics say at a moment. Two readings give what happened between them:
`vitals` makes one record of it, with what is wrong first. The thresholds are those of
deploy/prometheus/coach.rules.yml, which asks the same of Prometheus.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from math import inf
from typing import Final, Literal

import attrs
import msgspec
from prometheus_client.metrics_core import Metric

TTFT_WARN_S: Final = 0.35
TTFT_PAGE_S: Final = 0.6
TTFT_COUNT_MIN: Final = 5
"""Turns within the window below which a percentile says nothing."""
SUBMISSIONS_MAX: Final = 200
STUDENTS: Final = ("interactive", "submission")
"""Lanes in which somebody waits; who grades in the background may do so at night only."""
BUDGET_HARD: Final = 0.95

_HOUR_S: Final = 3_600
_REFUSED: Final = {
    "rate_limited": "answered 429",
    "accelerated": "answered 429",
    "spend_cap": "refuses: a spend limit is reached",
    "auth": "refuses its key",
}
_LEVELS: Final[dict[str, Literal["page", "warn"]]] = {
    "rate_limited": "warn",
    "accelerated": "warn",
    "spend_cap": "page",
    "auth": "page",
}

Labels = tuple[tuple[str, str], ...]


@attrs.frozen
class Reading:
    """All samples of the metrics at one moment, by name and sorted labels."""

    at: float
    """Seconds since the epoch."""
    samples: Mapping[tuple[str, Labels], float]

    def each(self, name: str) -> Iterable[tuple[dict[str, str], float]]:
        """The samples of one name, with their labels."""
        return [
            (dict(labels), value) for (key, labels), value in self.samples.items() if key == name
        ]

    def one(self, name: str, **labels: str) -> float:
        """One sample; 0.0 where there is none."""
        return self.samples.get((name, tuple(sorted(labels.items()))), 0.0)


def read(metrics: Iterable[Metric], at: float) -> Reading:
    """Read coach's own metrics."""
    return Reading(
        at,
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for metric in metrics
            if metric.name.startswith("coach_")
            for sample in metric.samples
        },
    )


class Percentiles(msgspec.Struct, frozen=True):
    """Of a latency, milliseconds; None: nothing came. Between a bucket's ends taken to be even."""

    p50: float | None
    p95: float | None
    p99: float | None
    count: int


class Alert(msgspec.Struct, frozen=True):
    """Something that wants an operator."""

    level: Literal["page", "warn"]
    text: str


class LaneVitals(msgspec.Struct, frozen=True):
    """A lane of the grading queue."""

    ready: int
    oldest_s: float
    paused: bool


class ProviderVitals(msgspec.Struct, frozen=True):
    """A provider's endpoint."""

    name: str
    share: float
    """Of the requests that its breaker lets in: 1 closed, 0 open."""
    used: dict[str, float]
    """Share of the quota in the rolling minute, per limited dimension."""
    line: dict[str, int]
    """Requests that wait, per lane."""
    connections: int
    streams: int


class WorkerVitals(msgspec.Struct, frozen=True):
    """A worker of `coach serve`."""

    slot: str
    """Its place; two workers in one: the one with the lower pid drains, as a rule."""
    pid: int
    sessions: int


@attrs.frozen
class Today:
    """What the books say of this day (UTC), all hosts together."""

    nano: int
    """Spent, billionths of a US dollar."""
    writer_s: float
    """That students were connected."""


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """A host at a moment; counts are of the time since the earlier reading."""

    at: float
    window_s: float
    sessions: int
    turns: int
    connections: int
    streams: int
    ttft: Percentiles
    event_p95_ms: float | None
    score: Percentiles
    ended: dict[str, int]
    """Feedback turns by how they ended."""
    errors: dict[str, int]
    """Sent to clients, by code."""
    moved_on: dict[str, int]
    """Failovers by "provider kind"."""
    refusals: dict[str, int]
    """By providers, by "provider kind": 429s above all, which no student sees."""
    resumes: dict[str, int]
    """Students who came back to their session, by how."""
    dollars_hour: float
    """Spent, as it would be in an hour that goes on like this."""
    dollars_writer_hour: float | None
    """Likewise, for each student connected; None: nobody was."""
    dollars_today: float | None
    """Since midnight (UTC), on all hosts; None: the books were not read yet."""
    dollars_writer_hour_today: float | None
    providers: list[ProviderVitals]
    lanes: dict[str, LaneVitals]
    jobs: dict[str, int]
    """Delayed, leased, dead."""
    graders: int | None
    """On all machines; None: nobody has counted them."""
    workers: list[WorkerVitals]
    flags: dict[str, int]
    alerts: list[Alert]
    """What is worst first."""


def vitals(before: Reading, now: Reading, today: Today | None = None) -> Vitals:
    """What `now` shows, and what has happened since `before`; `today` comes from the books."""
    ttft = percentiles(before, now, "coach_ttft_seconds")
    providers = _providers(now)
    lanes = {
        labels["lane"]: LaneVitals(
            ready=int(depth),
            oldest_s=now.one("coach_queue_oldest_seconds", **labels),
            paused=now.one("coach_queue_paused", **labels) > 0,
        )
        for labels, depth in now.each("coach_queue_depth")
    }
    jobs = {labels["state"]: int(count) for labels, count in now.each("coach_queue_jobs")}
    moved_on = since(before, now, "coach_failovers_total", "provider", "kind")
    refusals = since(before, now, "coach_provider_refusals_total", "provider", "kind")
    dollars = _growth(before, now, "coach_cost_nanodollars_total") / 1e9
    writer_s = writing_s(before, now)
    counted = now.samples.get(("coach_graders", ()))
    graders = None if counted is None else int(counted)
    return Vitals(
        at=now.at,
        window_s=now.at - before.at,
        sessions=int(now.one("coach_sessions")),
        turns=int(now.one("coach_turns_running")),
        connections=int(now.one("coach_provider_connections")),
        streams=int(now.one("coach_provider_streams")),
        ttft=ttft,
        event_p95_ms=percentiles(before, now, "coach_event_latency_seconds").p95,
        score=percentiles(before, now, "coach_time_to_score_seconds"),
        ended=since(before, now, "coach_turns_total", "outcome"),
        errors=since(before, now, "coach_client_errors_total", "code"),
        moved_on=moved_on,
        refusals=refusals,
        resumes=since(before, now, "coach_resumes_total", "how"),
        dollars_hour=round(dollars * _HOUR_S / (now.at - before.at), 4),
        dollars_writer_hour=round(dollars * _HOUR_S / writer_s, 5) if writer_s > 0 else None,
        dollars_today=None if today is None else round(today.nano / 1e9, 4),
        dollars_writer_hour_today=None
        if today is None or not today.writer_s
        else round(today.nano / 1e9 * _HOUR_S / today.writer_s, 5),
        providers=providers,
        lanes=lanes,
        jobs=jobs,
        graders=graders,
        workers=_workers(now),
        flags={labels["flag"]: int(share) for labels, share in now.each("coach_flag_percent")},
        alerts=_alerts(ttft, providers, lanes, jobs, refusals, graders),
    )


def since(before: Reading, now: Reading, name: str, *labels: str) -> dict[str, int]:
    """How much a counter has grown, by the values of these labels; without what has not."""
    grown: dict[str, int] = defaultdict(int)
    for found, value in now.each(name):
        grown[" ".join(found[label] for label in labels)] += int(value - before.one(name, **found))
    return {key: count for key, count in grown.items() if count > 0}


def writing_s(before: Reading, now: Reading) -> float:
    """For how long students were connected meanwhile, all together."""
    return _growth(before, now, "coach_writer_seconds_total")


def _growth(before: Reading, now: Reading, name: str) -> float:
    """By how much a counter has grown, all its labels together."""
    return sum(value - before.one(name, **labels) for labels, value in now.each(name))


def percentiles(before: Reading, now: Reading, name: str) -> Percentiles:
    """Of what a histogram has counted between two readings."""
    bounds: dict[float, float] = defaultdict(float)
    for labels, value in now.each(f"{name}_bucket"):
        bounds[float(labels["le"])] += value - before.one(f"{name}_bucket", **labels)
    count = max(bounds.values(), default=0.0)

    def at(share: float) -> float | None:
        low = below = 0.0
        for bound in sorted(bounds):
            if count and bounds[bound] >= share * count:
                if bound == inf:
                    return round(1_000 * low, 1)
                within = (share * count - below) / (bounds[bound] - below)
                return round(1_000 * (low + within * (bound - low)), 1)
            low, below = bound, bounds[bound]
        return None

    return Percentiles(at(0.5), at(0.95), at(0.99), int(count))


def _providers(now: Reading) -> list[ProviderVitals]:
    shares = {labels["endpoint"]: value for labels, value in now.each("coach_circuit_share_ratio")}
    used: dict[str, dict[str, float]] = defaultdict(dict)
    for labels, value in now.each("coach_budget_used_ratio"):
        used[labels["endpoint"]][labels["dimension"]] = round(value, 4)
    line: dict[str, dict[str, int]] = defaultdict(dict)
    for labels, value in now.each("coach_line_length"):
        line[labels["endpoint"]][labels["lane"]] = int(value)
    return [
        ProviderVitals(
            name,
            share,
            used.get(name, {}),
            line.get(name, {}),
            connections=int(now.one("coach_endpoint_connections", endpoint=name)),
            streams=int(now.one("coach_endpoint_streams", endpoint=name)),
        )
        for name, share in shares.items()
    ]


def _workers(now: Reading) -> list[WorkerVitals]:
    """Those of `coach serve`; without one, metrics know no process."""
    found = [
        WorkerVitals(labels["slot"], int(labels["pid"]), int(sessions))
        for labels, sessions in now.each("coach_worker_sessions")
        if "pid" in labels
    ]
    return sorted(found, key=lambda worker: (len(worker.slot), worker.slot, worker.pid))


def _alerts(
    ttft: Percentiles,
    providers: list[ProviderVitals],
    lanes: Mapping[str, LaneVitals],
    jobs: Mapping[str, int],
    refusals: Mapping[str, int],
    graders: int | None,
) -> list[Alert]:
    found = []
    p95_s = (ttft.p95 or 0.0) / 1_000 if ttft.count >= TTFT_COUNT_MIN else 0.0
    if p95_s > TTFT_PAGE_S:
        found.append(Alert("page", f"first words take {p95_s:.2f} s (p95), 0.6 at most"))
    elif p95_s > TTFT_WARN_S:
        found.append(Alert("warn", f"first words take {p95_s:.2f} s (p95), 0.35 is good"))
    for refused, count in refusals.items():
        provider_name, kind = refused.rsplit(" ", 1)
        if kind in _REFUSED:
            found.append(Alert(_LEVELS[kind], f"{provider_name} {_REFUSED[kind]}, {count} times"))
    for provider in providers:
        if provider.share < 1:
            state = "open" if provider.share == 0 else f"at {provider.share:.0%}"
            found.append(Alert("page", f"{provider.name}: its breaker is {state}"))
        if max(provider.used.values(), default=0.0) >= BUDGET_HARD:
            found.append(Alert("warn", f"{provider.name}: its quota is used up, requests wait"))
    found += _queue_alerts(lanes, jobs, graders)
    return sorted(found, key=lambda alert: alert.level)  # "page" before "warn"


def _queue_alerts(
    lanes: Mapping[str, LaneVitals], jobs: Mapping[str, int], graders: int | None
) -> list[Alert]:
    found = []
    for name, lane in lanes.items():
        if lane.paused:
            found.append(Alert("warn", f"lane {name} is paused"))
    submissions = lanes["submission"].ready if "submission" in lanes else 0
    waiting = sum(
        lane.ready for name, lane in lanes.items() if name in STUDENTS and not lane.paused
    )
    if waiting and graders == 0:
        found.append(Alert("page", f"{waiting:,} essays wait and no grader works: coach grade"))
    if submissions > SUBMISSIONS_MAX:
        found.append(Alert("page", f"{submissions:,} essays wait for their grade"))
    if jobs.get("dead", 0):
        found.append(Alert("warn", f"{jobs['dead']:,} essays were given up: retry or drop them"))
    return found
