"""The panel of one grade: its judges side by side, until all have answered or time is up.

asked ──────────────── deadline ─────────────────────── as long again
  all have answered ──> enough      quorum reached ──> enough
                          quorum at the deadline ──> enough, without the others
                          fewer: the student is told,     still fewer ──> tried again later
                          and the judges go on
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf

import attrs
import trio

from ..nurseries import open_plain_nursery
from .answers import Answer
from .judges import Judge, JudgeOut


@attrs.define
class Hearing:
    """What a panel has come to."""

    answers: dict[str, Answer]
    """By judge; those of earlier attempts are among them."""
    outs: dict[str, JudgeOut] = attrs.field(factory=dict)
    """By judge, who gives no answer."""
    late: list[str] = attrs.field(factory=list)
    """Judges that were not waited for."""

    def absent(self) -> dict[str, str]:
        """Who is missing, and why in a word."""
        words = {"away": "away", "failed": "no usable answer", "hopeless": "refused"}
        found = {name: words[out.kind] for name, out in self.outs.items()}
        return {**found, **dict.fromkeys(self.late, "late")}


async def hear(
    judges: Sequence[Judge],
    ask: Callable[[Judge], Awaitable[Answer]],
    *,
    kept: Mapping[str, Answer],
    quorum: int,
    deadline_s: float = inf,
    on_answer: Callable[[Judge, Answer], Awaitable[None]],
    on_late: Callable[[], Awaitable[None]],
) -> Hearing:
    """Ask every judge that has not answered before.

    Cancellation: every judge's request is given up and settled.

    Args:
      judges: the panel.
      ask: has one judge answer, or raises JudgeOut.
      kept: answers of earlier attempts, by judge.
      quorum: how many answers are enough at the deadline.
      deadline_s: from now; after it, and for as long again, the first quorum is enough.
      on_answer: called beside the others with each answer; one that comes with the last moment is
        cut short.
      on_late: called beside the judges at the deadline, if there is no quorum.
    """
    hearing = Hearing(answers=dict(kept))
    running = {judge.name for judge in judges if judge.name not in kept}
    stirred = trio.Event()

    async def run(judge: Judge) -> None:
        nonlocal stirred
        try:
            answer = await ask(judge)
            hearing.answers[judge.name] = answer
            await on_answer(judge, answer)
        except JudgeOut as out:
            hearing.outs[judge.name] = out
        running.discard(judge.name)
        stirred.set()
        stirred = trio.Event()

    async def until(holds: Callable[[], bool], within_s: float) -> None:
        with trio.move_on_after(within_s):
            while not holds():
                await stirred.wait()

    async with open_plain_nursery() as nursery:
        for judge in judges:
            if judge.name in running:
                nursery.start_soon(run, judge)
        await until(lambda: not running, deadline_s)
        if running and len(hearing.answers) < quorum:
            nursery.start_soon(on_late)
            await until(lambda: not running or len(hearing.answers) >= quorum, deadline_s)
        nursery.cancel_scope.cancel("the panel is closed")
    hearing.late = sorted(running - set(hearing.answers))
    return hearing
