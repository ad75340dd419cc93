"""Judging essays that people have scored: `coach evaluate`.

The panel is asked directly, in the background lane of the same budgets as everybody, not through
the grading queue: an evaluation needs every judge's own answer, also where a quorum would do, no
student waits for it, and the essays are nobody's submissions to be kept for 90 days. What is kept
instead is a file: one line for each answer, appended when it comes. Killed at any moment, the same
command goes on where it was, and pays for no answer twice.

Memory: the essays, and one answer of 64 KiB at most for each task.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, final

import attrs
import msgspec
import structlog
import trio

from . import config
from .backend import open_backend
from .errors import ConfigurationError
from .graders import judges_of
from .grading import OUTPUT_TOKENS_USUAL, Answer, JudgeOut, Rubric, Usage
from .ops import Prices
from .ops import log as logging
from .providers import estimate_tokens, judge_prompt

if TYPE_CHECKING:
    from .agreement import ScoredEssay
    from .grading import Judge

log = structlog.get_logger()

ANSWERS: Final = "answers.jsonl"
TRIES_MAX: Final = 4
"""How often one essay is brought to one judge in a run."""
OUTS_MAX: Final = 8
"""After so many essays in a row without an answer a judge is asked no more in this run."""
PAUSE_S: Final = 2.0
"""Before an essay is brought to the same judge again; doubled each time."""
PAUSE_S_MAX: Final = 60.0


class SavedAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file."""

    essay: str
    """Key of its text."""
    asked: str
    """Fingerprint of the rubric and the task."""
    judge: str
    model: str
    """As in the settings."""
    answer: Answer
    seconds: float
    nano: int | None
    """What it cost, in nano-dollars; None: nobody knows its price."""


@final
class AnswerFile:
    """The answers there are; made by `open_answers`."""

    def __init__(self, file: IO[bytes], answers: Sequence[SavedAnswer]) -> None:
        """`file` is open for appending."""
        self._file = file
        self._answers = {_key(each): each for each in answers}

    def find(self, essay: str, asked: str, judge: str, model: str) -> SavedAnswer | None:
        """What a judge said of an essay; None where it was not asked so."""
        return self._answers.get((essay, asked, judge, model))

    def add(self, answer: SavedAnswer) -> None:
        """Append a line. Blocks for as long as the kernel takes to copy it."""
        self._file.write(msgspec.json.encode(answer) + b"\n")
        self._file.flush()
        self._answers[_key(answer)] = answer

    def usual(self, judge: str, model: str) -> Usage | None:
        """The mean of what this judge's answers used; None before the first."""
        usages = [
            each.answer.usage
            for each in self._answers.values()
            if (each.judge, each.model) == (judge, model)
        ]
        if not usages:
            return None
        return Usage(
            **{
                name: sum(getattr(usage, name) for usage in usages) // len(usages)
                for name in ("input", "cache_write", "cache_read", "output")
            }
        )


def _key(answer: SavedAnswer) -> tuple[str, str, str, str]:
    return answer.essay, answer.asked, answer.judge, answer.model


@contextmanager
def open_answers(folder: Path) -> Iterator[AnswerFile]:
    """Read what is there, and hold it against a second run at the same time. Blocks.

    A last line that was cut off by a crash is dropped.

    Raises:
      ConfigurationError: it cannot be written, is held by another run, or is something else.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / ANSWERS).open("a+b")
    except OSError as error:
        raise ConfigurationError(f"--results {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"--results {folder}: another coach evaluate writes there; wait for it"
            ) from error
        file.seek(0)
        data = file.read()
        whole = data.rfind(b"\n") + 1
        file.truncate(whole)
        answers = []
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                answers.append(msgspec.json.decode(line, type=SavedAnswer))
            except msgspec.DecodeError as error:
                raise ConfigurationError(
                    f"{folder / ANSWERS}: line {number} is not an answer ({error}); "
                    "choose another folder with --results, or delete the line"
                ) from error
        yield AnswerFile(file, answers)


@attrs.frozen(kw_only=True)
class Work:
    """Who is to be asked about what."""

    essays: Sequence[ScoredEssay]
    rubric: Rubric
    task: str
    judges: dict[str, str]
    """Models, by judge."""

    @property
    def asked(self) -> str:
        """Fingerprint of the rubric and the task."""
        return hashlib.sha256(f"{self.rubric.as_text()}\n{self.task}".encode()).hexdigest()[:12]

    def found(self, answers: AnswerFile) -> dict[tuple[str, str], SavedAnswer]:
        """The answers there are, by essay and judge."""
        found = {}
        for essay in self.essays:
            for judge, model in self.judges.items():
                answer = answers.find(essay.key, self.asked, judge, model)
                if answer is not None:
                    found[essay.key, judge] = answer
        return found

    def missing(self, answers: AnswerFile) -> list[tuple[ScoredEssay, str]]:
        """What is to be asked still; an essay that occurs twice is asked about once."""
        found = self.found(answers)
        pairs: dict[tuple[str, str], ScoredEssay] = {}
        for essay in self.essays:
            for judge in self.judges:
                if (essay.key, judge) not in found:
                    pairs.setdefault((essay.key, judge), essay)
        return [(essay, judge) for (_, judge), essay in pairs.items()]


@attrs.frozen(kw_only=True)
class Estimate:
    """What is to be asked still, and what it may cost."""

    answers: int
    input: int
    output: int
    nano: int
    """What has a price, in nano-dollars."""
    unpriced: tuple[str, ...]
    """Judges whose price nobody knows."""
    measured: bool
    """By this judge's earlier answers, not by the length of the text."""


def estimate(
    work: Work, answers: AnswerFile, settings: config.Settings, prices: Prices
) -> Estimate:
    """What the missing answers may cost; nothing is asked.

    By the mean of the judge's answers in the file. Before there are any: all input as if it were
    not cached, which is too much, and OUTPUT_TOKENS_USUAL of output.
    """
    missing = work.missing(answers)
    schema, rubric_text = work.rubric.schema(), work.rubric.as_text()
    usual = {judge: answers.usual(judge, model) for judge, model in work.judges.items()}
    total, input_, output = 0, 0, 0
    unpriced = set()
    for essay, judge in missing:
        usage = usual[judge]
        if usage is None:
            prompt = judge_prompt(
                rubric=rubric_text,
                assignment=work.task,
                essay=essay.text,
                schema=schema,
                output_tokens_max=OUTPUT_TOKENS_USUAL,
            )
            usage = Usage(input=estimate_tokens(prompt.size()), output=OUTPUT_TOKENS_USUAL)
        price = prices.find(provider=judge, model=work.judges[judge])
        if price is None:
            unpriced.add(judge)
        else:
            total += price.nano(usage, cache=settings.cache.ttl)
        input_ += usage.input + usage.cache_write + usage.cache_read
        output += usage.output
    return Estimate(
        answers=len(missing),
        input=input_,
        output=output,
        nano=total,
        unpriced=tuple(sorted(unpriced)),
        measured=bool(missing) and all(usual[judge] is not None for _, judge in missing),
    )


async def judge_essays(
    settings: config.Settings,
    work: Work,
    answers: AnswerFile,
    *,
    org: str,
    concurrency: int,
    on_answer: Callable[[], None],
) -> dict[str, int]:
    """Have every judge asked that has not answered yet; `answers` has what they said.

    Cancellation: requests under way are reset and settled; what has come is in the file.

    Args:
      settings: whose providers are asked.
      work: who is asked about what.
      answers: what is known, and where new answers go.
      org: who pays.
      concurrency: requests at once.
      on_answer: called after each request, whatever came of it.

    Returns:
      How many answers are missing in the end, by judge.

    Raises:
      ConfigurationError: see `open_backend`.
    """
    logging.configure(settings.log)
    waiting = deque(work.missing(answers))
    async with open_backend(settings, role="evaluate") as backend:
        judges = {judge.name: judge for judge in judges_of(backend, settings.grading)}
        asking = _Asking(work, answers, settings, backend.costs.prices, org)
        async with trio.open_nursery() as nursery:
            for _ in range(min(concurrency, len(waiting))):
                nursery.start_soon(asking.run, judges, waiting, on_answer)
    return dict(Counter(judge for _, judge in work.missing(answers)))


@final
class _Asking:
    def __init__(
        self, work: Work, answers: AnswerFile, settings: config.Settings, prices: Prices, org: str
    ) -> None:
        self._work = work
        self._answers = answers
        self._settings = settings
        self._prices = prices
        self._org = org
        self._outs: Counter[str] = Counter()
        """Essays in a row without an answer, by judge."""

    async def run(
        self,
        judges: dict[str, Judge],
        waiting: deque[tuple[ScoredEssay, str]],
        on_answer: Callable[[], None],
    ) -> None:
        """Ask until nothing waits."""
        while waiting:
            essay, name = waiting.popleft()
            if self._outs[name] < OUTS_MAX:
                await self._ask(judges[name], essay)
            on_answer()

    async def _ask(self, judge: Judge, essay: ScoredEssay) -> None:
        """Try a few times; an answer that does not come is missing, and asked for next time."""
        pause_s = PAUSE_S
        for attempt in range(1, TRIES_MAX + 1):
            started_at = trio.current_time()
            try:
                answer = await judge.ask(
                    task=self._work.task,
                    essay=essay.text,
                    lane="background",
                    org=self._org,
                    reason="evaluation",
                )
            except JudgeOut as out:
                log.warning("judge_out", essay=essay.id, judge=judge.name, reason=str(out))
                if out.kind == "hopeless":
                    return  # of this essay, not of the judge
                if attempt < TRIES_MAX and self._outs[judge.name] < OUTS_MAX:
                    await trio.sleep(min(PAUSE_S_MAX, max(pause_s, out.retry_after_s or 0.0)))
                    pause_s *= 2
                continue
            self._outs[judge.name] = 0
            self._keep(judge.name, essay, answer, trio.current_time() - started_at)
            return
        self._outs[judge.name] += 1

    def _keep(self, judge: str, essay: ScoredEssay, answer: Answer, seconds: float) -> None:
        model = self._work.judges[judge]
        price = self._prices.find(provider=judge, model=model)
        self._answers.add(
            SavedAnswer(
                essay=essay.key,
                asked=self._work.asked,
                judge=judge,
                model=model,
                answer=answer,
                seconds=round(seconds, 3),
                nano=None
                if price is None
                else price.nano(answer.usage, cache=self._settings.cache.ttl),
            )
        )
