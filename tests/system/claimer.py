"""A grader process for test_queue.py: the real grader, queue and judges, with providers that wait.

    python -m tests.system.claimer URL LOG SEED

Lines of LOG, each written in one piece: "began <seed>", once it is about to claim; "asked <essay>
<judge>", before a provider is; "saved <submission> <judge>" and "finished <submission> <attempt>",
once Redis has said so.
"""

from __future__ import annotations

import os
import random
import sys

import attrs
import trio

from coach import config
from coach.grading import LENSES, Claim, Grade, Judge, Queue, Reviews, run_grader
from coach.grading.jobs import Receiver
from coach.providers import Prompt, Pseudonyms
from coach.store import Redis, open_redis
from tests.grading.fakes import RUBRIC, FakeBudget, FakeProvider, bench_of, essay_in, judged
from tests.support.costs import new_costs

OPTIONS = config.Grading(
    lease_s=1.0,
    heartbeat_s=0.3,
    retry_base_s=0.05,
    retry_s_max=0.5,
    retry_per_s=1_000,
    attempts_max=100,
    concurrency=8,
    drain_s=2.0,
    review_percent=0,
)
JUDGES = ("first", "second")
ANSWER_S = (0.005, 0.12)
"""At least and at most; one judge's answer is often kept while the other's is still to come."""


@attrs.frozen
class Log:
    """A file that all claimers append to."""

    file: int

    def write(self, *words: object) -> None:
        """One line; in the file, in order, whatever kills the process next."""
        os.write(self.file, (" ".join(map(str, words)) + "\n").encode())


class LoggedQueue(Queue):
    """Writes down what Redis has confirmed."""

    def __init__(self, redis: Redis, log: Log) -> None:
        super().__init__(redis, OPTIONS)
        self._log = log

    async def save(self, claim: Claim, judge: str, answer: bytes) -> bool:
        kept = await super().save(claim, judge, answer)
        if kept:
            self._log.write("saved", claim.id, judge)
        return kept

    async def finish(self, claim: Claim, grade: Grade) -> Receiver | None:
        receiver = await super().finish(claim, grade)
        if receiver is not None:
            self._log.write("finished", claim.id, claim.attempt)
        return receiver


def new_judge(name: str, log: Log, rng: random.Random) -> Judge:
    """A judge whose provider takes its time; essays begin with their submission's id."""

    async def answer(prompt: Prompt) -> str:
        essay = essay_in(prompt)
        log.write("asked", essay.split()[0], name)
        await trio.sleep(rng.uniform(*ANSWER_S))
        return judged(essay)

    return Judge(
        name,
        [bench_of(FakeProvider(name=name, answer=answer), FakeBudget())],
        RUBRIC,
        costs=new_costs(),
        pseudonyms=Pseudonyms("k"),
        lens=LENSES[0],
    )


async def main(url: str, path: str, seed: str) -> None:
    log = Log(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    rng = random.Random(seed)
    async with open_redis(url, wait_s=5) as redis:
        log.write("began", seed)
        queue = LoggedQueue(redis, log)
        await run_grader(
            queue=queue,
            reviews=Reviews(redis, queue, OPTIONS),
            judges=[new_judge(name, log, rng) for name in JUDGES],
            rubric=RUBRIC,
            settings=OPTIONS,
            costs=new_costs(),
            worker=f"claimer-{seed}",
            stopping=trio.Event(),
        )


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
