"""What broke first: the limits that a run has reached, in their order, with evidence; pure.

A limit counts once it has been reached in `SUSTAINED` samples in a row, so that no hiccup is taken
for an end; what is counted (errors, 429s) counts at once. Limits of the load generator and of the
simulated provider are told apart: where one of them is first, the run says how much they can do,
and nothing about the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final, Literal

import attrs

from .timeline import ROLES, Sample

SUSTAINED: Final = 3
PROCESS_CPU: Final = 0.9
"""Of a core: a process of one thread that uses more has no time left for anybody."""
MACHINE_CPU: Final = 0.95
OURS_LEAST: Final = 0.7
"""Of what the machine does: where less is the server's and the load's, others do the rest."""
LOOP_LAG_MS: Final = 100.0
REDIS_MS: Final = 25.0
FILES_SHARE: Final = 0.8
QUEUE: Final = 200
"""Essays that wait, as in the alert rules."""
BUDGET_WAIT_MS: Final = 250.0
OWN_LAG_MS: Final = 100.0
PROVIDER_LATE_MS: Final = 50.0
TTFT_MS: Final = 600.0
"""As the alert that pages somebody."""

Whose = Literal[
    "server", "machine", "other work", "load generator", "simulated provider", "students"
]
NOT_THE_SERVER: Final[tuple[Whose, ...]] = ("other work", "load generator", "simulated provider")


_EXCUSES: Final[dict[Whose, str]] = {
    "load generator": "the load generator was at its end first; use more --processes",
    "simulated provider": "the simulated provider was at its end first; start more of them",
    "other work": "others used this machine; wait until it is yours, or use another one",
}


@attrs.frozen
class Reached:
    """A limit that was reached."""

    name: str
    whose: Whose
    at_s: float
    writers: int
    evidence: str
    """Figures at that moment, in words."""

    def __str__(self) -> str:
        """One line."""
        return f"{self.name}, at {self.at_s:.0f} s with {self.writers} writers: {self.evidence}"


@attrs.frozen
class Verdict:
    """What a run says."""

    reached: tuple[Reached, ...]
    """By time; causes before what students noticed in the same moment."""
    most: int
    """Writers connected at the most."""

    @property
    def first(self) -> Reached | None:
        """The first limit of anything but the students' patience."""
        return next((each for each in self.reached if each.whose != "students"), None)

    @property
    def noticed(self) -> Reached | None:
        """When the students noticed first."""
        return next((each for each in self.reached if each.whose == "students"), None)

    @property
    def valid(self) -> bool:
        """Whether the run says something about the server.

        It does not where those who put the load on it were at their end before it was, nor where
        somebody else had taken the machine.
        """
        first = self.first
        return first is None or first.whose not in NOT_THE_SERVER

    def words(self) -> list[str]:
        """For people: what broke first, who noticed, what came after; a sentence each."""
        first, noticed = self.first, self.noticed
        if first is None and noticed is None:
            return [f"Nothing broke: no limit was reached with up to {self.most} writers."]
        lines = []
        if first is not None:
            lines.append(f"What broke first: {first}.")
        else:
            lines.append(f"No limit that is watched was reached with up to {self.most} writers.")
        if not self.valid and first is not None:
            lines.append(
                f"INVALID: {_EXCUSES[first.whose]} before you conclude anything about the server."
            )
        if noticed is not None:
            lines.append(f"Students noticed: {noticed}.")
        elif first is not None:
            lines.append("Students noticed nothing of it.")
        others = [each for each in self.reached if each not in (first, noticed)]
        if others:
            lines.append("Then: " + "; ".join(map(str, others)) + ".")
        return lines

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "valid": self.valid,
            "first": None if self.first is None else attrs.asdict(self.first),
            "noticed": None if self.noticed is None else attrs.asdict(self.noticed),
            "reached": [attrs.asdict(each) for each in self.reached],
            "words": self.words(),
        }


@attrs.frozen(kw_only=True)
class _Rule:
    """A limit: what is looked at, and from where on it is reached."""

    name: str
    whose: Whose
    value: Callable[[Sample], float | None]
    least: float
    told: Callable[[Sample], str]
    at_once: bool = False
    """One sample is enough: it counts what must not happen."""

    def find(self, samples: Sequence[Sample]) -> Reached | None:
        in_a_row = 0
        for number, sample in enumerate(samples):
            value = self.value(sample)
            in_a_row = in_a_row + 1 if value is not None and value >= self.least else 0
            if in_a_row == (1 if self.at_once else SUSTAINED):
                first = samples[number - in_a_row + 1]
                return Reached(self.name, self.whose, first.at_s, first.writers, self.told(sample))
        return None


def judge(samples: Sequence[Sample], *, ttft_ms: float = TTFT_MS, cores: int = 1) -> Verdict:
    """Say what a run has reached.

    Args:
      samples: in their order.
      ttft_ms: from where on a first token (p95) counts as late.
      cores: of the machine.
    """
    found = [rule.find(samples) for rule in _rules(ttft_ms, cores)]
    reached = sorted(filter(None, found), key=lambda each: each.at_s)
    return Verdict(tuple(reached), max((sample.writers for sample in samples), default=0))


def _rules(ttft_ms: float, cores: int) -> Iterator[_Rule]:
    for name, whose, of_others in (
        ("the cores of the machine", "machine", False),
        ("other work on this machine", "other work", True),
    ):
        yield _Rule(
            name=name,
            whose=whose,  # type: ignore[arg-type]  # a literal of the line above
            value=partial(_machine, cores=cores, of_others=of_others),
            least=MACHINE_CPU,
            told=lambda sample: (
                f"{sample.machine or 0:.0%} of {cores} cores are in use ({_shares(sample)})"
            ),
        )
    for role in ("worker", "grader", "redis"):
        yield _Rule(
            name=f"the CPU of a {role}" if role != "redis" else "the CPU of Redis",
            whose="server",
            value=lambda sample, role=role: sample.busiest(role),  # type: ignore[misc]  # see mypy 15459
            least=PROCESS_CPU,
            told=lambda sample, role=role: (  # type: ignore[misc]
                f"the busiest one uses {sample.busiest(role):.0%} of a core"
            ),
        )
    yield _Rule(
        name="a worker's event loop",
        whose="server",
        value=lambda sample: sample.loop_lag_p99_ms,
        least=LOOP_LAG_MS,
        told=lambda sample: (
            f"it is {sample.loop_lag_p99_ms or 0:.0f} ms late (p99);"
            f" workers {_cpu(sample, 'worker')}"
        ),
    )
    yield _Rule(
        name="Redis' answers",
        whose="server",
        value=lambda sample: sample.redis_p99_ms,
        least=REDIS_MS,
        told=lambda sample: (
            f"a round trip takes {sample.redis_p99_ms or 0:.0f} ms (p99);"
            f" Redis {_cpu(sample, 'redis')}"
        ),
    )
    yield _Rule(
        name="open files",
        whose="server",
        value=_files_share,
        least=FILES_SHARE,
        told=lambda sample: f"{_files_share(sample) or 0:.0%} of the limit; raise `ulimit -n`",
    )
    yield _Rule(
        name="the provider's quota",
        whose="server",
        value=lambda sample: sample.budget_wait_p95_ms,
        least=BUDGET_WAIT_MS,
        told=lambda sample: (
            f"turns wait {sample.budget_wait_p95_ms or 0:.0f} ms (p95) for its budget, of which"
            f" {sample.budget_used or 0:.0%} is used; {sample.line or 0:.0f} wait in line"
        ),
    )
    yield _Rule(
        name="refusals by the provider",
        whose="server",
        value=lambda sample: max(sample.refusals or 0, sample.provider_429s or 0),
        least=1,
        told=lambda sample: (
            f"{max(sample.refusals or 0, sample.provider_429s or 0):.0f} requests were refused"
            " (429, 529)"
        ),
        at_once=True,
    )
    yield _Rule(
        name="the graders",
        whose="server",
        value=lambda sample: sample.queue,
        least=QUEUE,
        told=lambda sample: (
            f"{sample.queue or 0:.0f} essays wait; graders {_cpu(sample, 'grader')}"
        ),
    )
    yield from _rules_for_the_load()
    yield from _rules_for_students(ttft_ms)


def _rules_for_the_load() -> Iterator[_Rule]:
    """A machine that is full makes its generator late too; then that comes first or at once."""

    def alone(value: float | None, sample: Sample) -> float | None:
        return None if (sample.machine or 0) >= MACHINE_CPU else value

    yield _Rule(
        name="the CPU of the load generator",
        whose="load generator",
        value=lambda sample: sample.busiest("load generator"),
        least=PROCESS_CPU,
        told=lambda sample: f"{sample.busiest('load generator'):.0%} of a core",
    )
    yield _Rule(
        name="the load generator's own event loop",
        whose="load generator",
        value=lambda sample: alone(sample.own_lag_p99_ms, sample),
        least=OWN_LAG_MS,
        told=lambda sample: f"it is {sample.own_lag_p99_ms or 0:.0f} ms late (p99)",
    )
    yield _Rule(
        name="the CPU of the simulated provider",
        whose="simulated provider",
        value=lambda sample: sample.busiest("simulated provider"),
        least=PROCESS_CPU,
        told=lambda sample: f"{sample.busiest('simulated provider'):.0%} of a core",
    )
    yield _Rule(
        name="the simulated provider's own lateness",
        whose="simulated provider",
        value=lambda sample: alone(sample.provider_late_p95_ms, sample),
        least=PROVIDER_LATE_MS,
        told=lambda sample: f"events leave {sample.provider_late_p95_ms or 0:.0f} ms late (p95)",
    )


def _rules_for_students(ttft_ms: float) -> Iterator[_Rule]:
    yield _Rule(
        name="a late first token",
        whose="students",
        value=lambda sample: sample.ttft_p95_ms,
        least=ttft_ms,
        told=lambda sample: f"p95 is {sample.ttft_p95_ms or 0:.0f} ms, {ttft_ms:.0f} may be",
    )
    yield _Rule(
        name="errors",
        whose="students",
        value=lambda sample: float(sample.errors),
        least=1,
        told=lambda sample: ", ".join(
            f"{code} {count}" for code, count in sorted(sample.error_codes.items()) if count
        ),
        at_once=True,
    )


def _machine(sample: Sample, *, cores: int, of_others: bool) -> float | None:
    """The machine's CPU, where it is mostly ours or mostly of others; None: it is not."""
    if sample.machine is None:
        return None
    ours = sum(usage.cpu for usage in sample.usages)
    is_of_others = ours < sample.machine * cores * OURS_LEAST
    return sample.machine if is_of_others is of_others else None


def _shares(sample: Sample) -> str:
    known = {role: sample.cpu(role) for role in ROLES}
    parts = [f"{role} {cpu:.0%}" for role, cpu in known.items() if cpu >= 0.005]
    return ", ".join(parts) + " of a core" if parts else "by whom is not known"


def _cpu(sample: Sample, role: str) -> str:
    return (
        f"use {sample.cpu(role):.0%} of a core"
        if role != "redis"
        else (f"uses {sample.cpu(role):.0%} of a core")
    )


def _files_share(sample: Sample) -> float | None:
    fullest = sample.fullest()
    if fullest is None:
        return sample.files_share
    return max(fullest.files / fullest.files_max, sample.files_share or 0.0)
