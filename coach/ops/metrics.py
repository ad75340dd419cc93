"""Prometheus metrics of one worker, summed over the workers of a host when they are scraped.

With `PROMETHEUS_MULTIPROC_DIR` set (the supervisor does that) every process writes its figures to
memory-mapped files there, and any worker answers `/metrics` for all. Without it the registry is
the process's own.

Gauges are sampled once a second by `coach.app`; nothing here is touched per token. Event latency
is observed once per wake-up of a provider connection, which may carry many events: the time the
last of them waited.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import attrs
from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_LATENCY_BUCKETS: Final = (
    *(0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01),
    *(0.025, 0.05, 0.1, 0.25, 0.5, 1.0),
)
_TTFT_BUCKETS: Final = (0.05, 0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2, 4, 8, 16)
_WAIT_BUCKETS: Final = (0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 60)
_GRADE_BUCKETS: Final = (0.25, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 10, 15, 30, 60)

ttft_seconds: Final = Histogram(
    "coach_ttft_seconds",
    "From a student's `feedback` message to the first delta written to the student's socket.",
    buckets=_TTFT_BUCKETS,
)
event_latency_seconds: Final = Histogram(
    "coach_event_latency_seconds",
    "From a provider connection's wake-up to the last of its events handed to students' sockets.",
    buckets=_LATENCY_BUCKETS,
)
score_seconds: Final = Histogram(
    "coach_time_to_score_seconds",
    "From a student's `submit` message to the grade written to the student's socket.",
    buckets=_GRADE_BUCKETS,
)
turns_total: Final = Counter(
    "coach_turns_total", "Feedback turns by how they ended: done or an error code.", ["outcome"]
)
submissions_total: Final = Counter(
    "coach_submissions_total",
    "Submissions by how they ended: graded or an error code.",
    ["outcome"],
)
tokens_total: Final = Counter(
    "coach_tokens_total",
    "Tokens of feedback turns as the provider counted them.",
    ["provider", "kind"],
)
client_errors_total: Final = Counter(
    "coach_client_errors_total", "Errors sent to clients, by wire code.", ["code"]
)
limit_refusals_total: Final = Counter(
    "coach_limit_refusals_total",
    "Requests over a limit of their user or org, by limit; mode shadow: let through all the same.",
    ["limit", "mode"],
)
failovers_total: Final = Counter(
    "coach_failovers_total",
    "Feedback turns that went on to another provider, by who failed and how.",
    ["provider", "kind"],
)
cache_leaders_total: Final = Counter(
    "coach_cache_leaders_total",
    "Requests that others with the same prefix waited for, or would have.",
    ["provider"],
)
cache_followers_total: Final = Counter(
    "coach_cache_followers_total",
    "Requests that waited for another one's prefix, by why they went on: warm, released or late.",
    ["provider", "outcome"],
)
cache_wait_seconds: Final = Histogram(
    "coach_cache_wait_seconds",
    "How long requests waited for another one's prefix.",
    buckets=(*_LATENCY_BUCKETS, 1.5, 2.0, 5.0),
)
cache_requests_total: Final = Counter(
    "coach_cache_requests_total",
    "Requests by what the provider's cache did with them: read, write or plain.",
    ["provider", "outcome"],
)
cache_pings_total: Final = Counter(
    "coach_cache_pings_total",
    "Pings that keep a prefix warm: read, write (it was gone), plain, late or failed; and those "
    "that were not sent: poor (not worth it) or cold (too late).",
    ["provider", "outcome"],
)
cache_ping_tokens_total: Final = Counter(
    "coach_cache_ping_tokens_total",
    "Tokens of those pings, as the provider counted them.",
    ["provider", "kind"],
)
judge_answers_total: Final = Counter(
    "coach_grading_answers_total",
    "Judges' answers by what they were worth: usable, evidence_missing (a quote that is not in the "
    "essay), invalid.",
    ["judge", "provider", "outcome"],
)
grades_total: Final = Counter(
    "coach_grading_grades_total",
    "Grades given: whole or degraded.",
    ["outcome"],
)
reviews_total: Final = Counter(
    "coach_grading_reviews_total",
    "Grades put before a person: disagreement or sample.",
    ["reason"],
)
batch_requests_total: Final = Counter(
    "coach_batch_requests_total",
    "Judges asked in batches: answered, invalid (no use), refused, expired; all but the first are "
    "asked again live.",
    ["provider", "outcome"],
)
webhook_attempts_total: Final = Counter(
    "coach_webhook_attempts_total",
    "Attempts to tell an integrator's server: delivered, refused (an answer other than 2xx), "
    "failed (no answer), dead (given up with this one).",
    ["webhook", "outcome"],
)
webhook_seconds: Final = Histogram(
    "coach_webhook_seconds",
    "From the end of an essay until an integrator's server had taken the news.",
    buckets=(0.5, 1, 2, 5, 10, 30, 60, 300, 1_800, 3_600, 21_600, 86_400),
)
webhook_jobs: Final = Gauge(
    "coach_webhook_jobs",
    "News for integrators' servers: announced (not yet made into deliveries), ready, delayed, "
    "leased (under way), dead (given up).",
    ["state"],
    multiprocess_mode="livemostrecent",
)
circuit_share: Final = Gauge(
    "coach_circuit_share_ratio",
    "Share of requests that an endpoint's breaker lets in: 1 closed, 0 open.",
    ["endpoint"],
    multiprocess_mode="livemostrecent",
)
sessions: Final = Gauge(
    "coach_sessions", "Students who are connected.", multiprocess_mode="livesum"
)
sessions_away: Final = Gauge(
    "coach_sessions_away",
    "Sessions whose students are not connected just now.",
    multiprocess_mode="livesum",
)
resumes_total: Final = Counter(
    "coach_resumes_total",
    "Clients that came back with a token: here, elsewhere (taken over), or expired.",
    ["how"],
)
replayed_total: Final = Counter(
    "coach_replayed_messages_total", "Messages said again to clients that came back."
)
snapshots_total: Final = Counter(
    "coach_resume_snapshots_total",
    "Clients that came back and got a snapshot, since what they had missed was not kept.",
)
resume_seconds: Final = Histogram(
    "coach_resume_seconds",
    "From a `hello` that resumes to the `welcome` written.",
    buckets=_LATENCY_BUCKETS,
)
worker_sessions: Final = Gauge(
    "coach_worker_sessions",
    "Students who are connected to a worker; workers of one slot: one drains.",
    ["slot"],
    multiprocess_mode="liveall",
)
turns_running: Final = Gauge(
    "coach_turns_running", "Feedback turns under way.", multiprocess_mode="livesum"
)
connections_refused: Final = Counter(
    "coach_connections_refused_total", "Connections refused because the worker was full."
)
connections_limited: Final = Counter(
    "coach_connections_limited_total",
    "Connections refused because one address or user opened too many.",
    ["limit"],
)
tasks: Final = Gauge(
    "coach_tasks",
    "Tasks of the workers: what does not go down again leaks.",
    multiprocess_mode="livesum",
)
messages_held: Final = Counter(
    "coach_messages_held_total",
    "Messages, pings and pieces of them that were read later, since a user sent too many.",
)
provider_connections: Final = Gauge(
    "coach_provider_connections", "Open provider connections.", multiprocess_mode="livesum"
)
provider_streams: Final = Gauge(
    "coach_provider_streams", "Open provider streams.", multiprocess_mode="livesum"
)
endpoint_connections: Final = Gauge(
    "coach_endpoint_connections",
    "Open connections of an endpoint; endpoints at one address share theirs.",
    ["endpoint"],
    multiprocess_mode="livesum",
)
endpoint_streams: Final = Gauge(
    "coach_endpoint_streams", "Open streams, likewise.", ["endpoint"], multiprocess_mode="livesum"
)
provider_handshakes: Final = Gauge(
    "coach_provider_handshakes",
    "Provider connections opened since the worker's start.",
    multiprocess_mode="livesum",
)
flag_percent: Final = Gauge(
    "coach_flag_percent",
    "Of how many users of a hundred a rollout flag is on.",
    ["flag"],
    multiprocess_mode="livemostrecent",
)
flag_off_turns_total: Final = Counter(
    "coach_flag_off_turns_total", "Feedback turns for which a rollout flag was off.", ["flag"]
)
flag_off_submissions_total: Final = Counter(
    "coach_flag_off_submissions_total", "Submissions for which a rollout flag was off.", ["flag"]
)
queue_depth: Final = Gauge(
    "coach_queue_depth",
    "Grading jobs that wait, per lane.",
    ["lane"],
    multiprocess_mode="livemostrecent",
)
queue_oldest: Final = Gauge(
    "coach_queue_oldest_seconds",
    "Age of the oldest unfinished grading job, per lane; 0 without one.",
    ["lane"],
    multiprocess_mode="livemostrecent",
)
queue_paused: Final = Gauge(
    "coach_queue_paused",
    "1 while an operator keeps a lane from being handed out.",
    ["lane"],
    multiprocess_mode="livemostrecent",
)
queue_jobs: Final = Gauge(
    "coach_queue_jobs",
    "Grading jobs that do not wait: delayed (put off), leased (with a grader), dead (given up).",
    ["state"],
    multiprocess_mode="livemostrecent",
)
line_length: Final = Gauge(
    "coach_line_length",
    "Requests of all workers that wait for a provider's budget.",
    ["endpoint", "lane"],
    multiprocess_mode="livemostrecent",
)
budget_used: Final = Gauge(
    "coach_budget_used_ratio",
    "Share of a provider's quota that is spent or reserved in the rolling minute; 1 is all of it.",
    ["endpoint", "dimension"],
    multiprocess_mode="livemostrecent",
)
loop_lag_seconds: Final = Histogram(
    "coach_loop_lag_seconds",
    "By how much a worker's event loop was late, looked at 20 times a second in each worker.",
    buckets=_LATENCY_BUCKETS,
)
redis_latency_seconds: Final = Histogram(
    "coach_redis_latency_seconds",
    "From a PING to Redis until its answer, once a second from each worker.",
    buckets=_LATENCY_BUCKETS,
)
budget_wait_seconds: Final = Histogram(
    "coach_budget_wait_seconds",
    "From a feedback request's wish to be sent until its provider's budget let it, Redis included.",
    ["endpoint"],
    buckets=_WAIT_BUCKETS,
)
provider_refusals_total: Final = Counter(
    "coach_provider_refusals_total",
    "Requests that a provider refused by a quota, its load, a spend cap or a bad key.",
    ["provider", "kind"],
)
graders: Final = Gauge(
    "coach_graders",
    "Graders of all machines that have said within 15 s that they work.",
    multiprocess_mode="livemostrecent",
)
worker_cpu: Final = Gauge(
    "coach_worker_cpu_ratio",
    "Of one core, what the busiest worker used in the last second: it can use no more than 1.",
    multiprocess_mode="livemax",
)
worker_cpu_seconds_total: Final = Counter(
    "coach_worker_cpu_seconds_total", "CPU time of all workers, user and system."
)
open_files: Final = Gauge(
    "coach_open_files_ratio",
    "Share of its limit of open files that the worker with most of them uses.",
    multiprocess_mode="livemax",
)

cost_nanodollars: Final = Counter(
    "coach_cost_nanodollars_total",
    "What was spent, in billionths of a US dollar.",
    ["provider", "model", "reason"],
)
cost_requests: Final = Counter(
    "coach_cost_requests_total",
    "Requests that cost something.",
    ["provider", "model", "reason"],
)
cost_unpriced_tokens: Final = Counter(
    "coach_cost_unpriced_tokens_total",
    "Tokens of models whose price is not known: what they cost is in no other figure.",
    ["provider", "model", "reason"],
)
cost_budget_used: Final = Gauge(
    "coach_cost_budget_used_ratio",
    "Share of an org's monthly budget that is spent, of the hard one where there is one.",
    ["org"],
    multiprocess_mode="livemostrecent",
)
cost_budget_alerts: Final = Counter(
    "coach_cost_budget_alerts_total", "Monthly budgets that were spent.", ["org", "level"]
)
cost_budget_refusals: Final = Counter(
    "coach_cost_budget_refusals_total",
    "Turns refused, and gradings put off, because a hard budget was spent.",
    ["org"],
)
writer_seconds: Final = Counter(
    "coach_writer_seconds_total", "Time that students were connected, all together."
)


@attrs.frozen(kw_only=True)
class Histogrammed:
    """A histogram that was counted elsewhere."""

    counts: list[tuple[float, int]]
    """Upper ends in seconds, rising, with what lies between one and the last; not cumulative."""
    beyond: int
    sum: float
    """Seconds."""


class QueueHistory(Collector):
    """What graders have counted in Redis, on whatever machine: every host shows the same.

    Sampled as gauges are. Empty until the first sample.
    """

    def __init__(self) -> None:
        self.events: dict[tuple[str, str], int] = {}
        """By event and lane."""
        self.pickup: dict[str, Histogrammed] = {}
        self.total: dict[str, Histogrammed] = {}

    def collect(self) -> Iterator[Metric]:
        """The metrics as they were sampled last."""
        events = CounterMetricFamily(
            "coach_queue_events",
            "Grading jobs submitted, retried, lost (leases), dead, cancelled, replayed.",
            labels=["event", "lane"],
        )
        for labels, count in self.events.items():
            events.add_metric(labels, count)
        yield events
        for name, what, found in (
            ("coach_queue_pickup_seconds", "to its first claim", self.pickup),
            ("coach_queue_total_seconds", "to its grade", self.total),
        ):
            family = HistogramMetricFamily(
                name, f"From a job's submission {what}, per lane.", labels=["lane"]
            )
            for lane, histogram in found.items():
                family.add_metric([lane], _cumulative(histogram), histogram.sum)
            yield family


def _cumulative(histogram: Histogrammed) -> list[tuple[str, float]]:
    buckets, total = [], 0
    for bound, count in histogram.counts:
        total += count
        buckets.append((str(bound), float(total)))
    return [*buckets, ("+Inf", float(total + histogram.beyond))]


queue_history: Final = QueueHistory()
REGISTRY.register(queue_history)


def exposition() -> bytes:
    """Every metric of all workers of this host, in Prometheus' text format."""
    return generate_latest(registry())


def registry() -> CollectorRegistry:
    """Every metric of all workers of this host."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    shared = CollectorRegistry()
    shared.register(queue_history)
    MultiProcessCollector(shared)  # type: ignore[no-untyped-call]  # the library has no types here
    return shared
