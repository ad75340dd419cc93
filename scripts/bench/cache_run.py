"""The cache benchmark itself: a provider and a backend for each case, and what the answers cost."""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import httpx
import trio
from budget_worker import Silent
from rich.console import Console
from rich.table import Table
from simulated import Simulated, open_simulated

from coach import config
from coach.backend import Backend, open_backend
from coach.errors import ConfigurationError, first_error
from coach.ops import load_prices
from coach.ops.prices import TokenPrice
from coach.providers import (
    Completion,
    Conversation,
    Interest,
    Question,
    Usage,
    feedback_prompt,
)
from coach.simulator.corpus import load_essays
from coach.simulator.keystrokes import Typed, keystrokes
from coach.store import open_embedded

CLASS: Final = 30
BEFORE_PAUSE: Final = 3
"""Turns of the student who then pauses: a habit, or a ping would not be worth its price."""
MODEL: Final = "claude-sonnet-4-5"
UNCACHED: Final = ("--cache-tokens-min", "1000000")
HOUR_S, TURN_EVERY_S, CHARS_PER_S, SEED = 3_600.0, 30.0, 4.0, 1


@attrs.frozen
class Case:
    """What is tried."""

    name: str
    writes: bool = False
    """One student writes for an hour, whose pauses nobody waits for."""
    grows: bool = True
    """Later questions tell what has changed."""
    cached: bool = True
    """The provider keeps what it has read."""
    single_flight: bool = True
    keep_warm: bool = False
    pause_s: float = 0.0
    """0: a class; else one student, and this pause."""


def main() -> int:
    """Run from the command line; returns the exit code."""
    options = _parser().parse_args()
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    price = load_prices(config.Settings()).find(provider="simulator", model=options.model)
    if price is None:
        print(f"cache: no price of {options.model!r} is known", file=sys.stderr)
        return 2
    cases = [
        Case("a class of 30 at once, each for itself", single_flight=False),
        Case("a class of 30 at once, single flight"),
        Case("an hour, whole drafts, no cache", writes=True, grows=False, cached=False),
        Case("an hour, whole drafts", writes=True, grows=False),
        Case("an hour, what has changed", writes=True),
    ]
    if options.pause:
        minutes = f"{options.pause / 60:g} minutes"
        cases += [
            Case(f"back after {minutes}", pause_s=options.pause),
            Case(f"back after {minutes}, kept warm", keep_warm=True, pause_s=options.pause),
        ]
    complaint = ""
    rows: list[dict[str, Any]] = []
    try:
        rows = trio.run(_measure_all, cases, price, console)
    except* (trio.TooSlowError, httpx.TransportError):
        complaint = "the simulator did not come up in time"
    except* ConfigurationError as group:
        complaint = str(first_error(group))
    if complaint:
        print(f"cache: {complaint}", file=sys.stderr)
        return 2
    console.print(_table(rows))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.markdown is not None:
        options.markdown.write_text(_markdown(rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cache", description="What the prompt cache saves.")
    add = parser.add_argument
    add("--pause", type=float, default=360.0, metavar="S", help="0: leave it out (360)")
    add("--model", default=MODEL, help=f"whose prices count ({MODEL})")
    add("--json", type=Path, metavar="FILE", help="write the figures there as well")
    add("--markdown", type=Path, metavar="FILE", help="write the table there as well")
    return parser


async def _measure_all(
    cases: Sequence[Case], price: TokenPrice, console: Console
) -> list[dict[str, Any]]:
    """All at once: nearly all of the time is a pause."""
    found: dict[str, dict[str, Any]] = {}

    async def one(case: Case) -> None:
        found[case.name] = await _measure(case, price)
        console.print(f"{case.name}: done", style="dim")

    async with trio.open_nursery() as nursery:
        for case in cases:
            nursery.start_soon(one, case)
    return [found[case.name] for case in cases]


async def _measure(case: Case, price: TokenPrice) -> dict[str, Any]:
    async with _open(case) as (backend, simulator):
        interest = Interest("school")
        if case.pause_s:
            for _ in range(BEFORE_PAUSE):
                await _ask(backend, _first(0), interest)
            await trio.sleep(case.pause_s)
            before = await simulator.stats()
            usages = [(await _ask(backend, _first(1), interest)).usage]
            pings = before["requests"] - BEFORE_PAUSE
        elif case.writes:
            usages = [usage async for usage in _hour(backend, interest, grows=case.grows)]
            pings = 0
        else:
            usages = []

            async def student(number: int) -> None:
                usages.append((await _ask(backend, _first(number), interest)).usage)

            async with trio.open_nursery() as nursery:
                for number in range(CLASS):
                    nursery.start_soon(student, number)
            pings = 0
        interest.close()
    ping = sum(usage.cache_read for usage in usages[:1]) * price.cache_read + price.output
    nano = sum(price.nano(usage) for usage in usages)
    return {
        "case": case.name,
        "turns": len(usages),
        "writes": sum(usage.cache_write > 0 and not usage.cache_read for usage in usages),
        "reads": sum(usage.cache_read > 0 for usage in usages),
        "pings": int(pings),
        "prompt_tokens": round(
            sum(usage.input + usage.cache_write + usage.cache_read for usage in usages)
            / len(usages)
        ),
        "output_tokens": round(sum(usage.output for usage in usages) / len(usages)),
        "millidollars_per_turn": round(nano / len(usages) / 1e6, 3),
        "prompt_millidollars_per_turn": round(
            sum(price.nano(attrs.evolve(usage, output=0)) for usage in usages) / len(usages) / 1e6,
            3,
        ),
        "pings_millidollars": round(pings * ping / 1e9, 3),
    }


async def _hour(backend: Backend, interest: Interest, *, grows: bool) -> AsyncIterator[Usage]:
    """The turns of a student who writes one essay after the other and asks every half minute."""
    rng, now_s = random.Random(SEED), 0.0  # noqa: S311  seeded typing
    essays = sorted(load_essays(), key=lambda _: rng.random())
    for essay in itertools.cycle(essays):
        conversation, draft = Conversation(), ""
        duration_s = len(essay.text) / CHARS_PER_S
        for step in keystrokes(
            essay.text, duration_s=duration_s, think_every_s=TURN_EVERY_S, rng=rng
        ):
            now_s += step.pause_s
            if now_s > HOUR_S:
                return
            if isinstance(step, Typed):
                draft = step.text
                continue
            question = conversation.ask(draft, None, now_s=now_s, grows=grows)
            completion = await _ask(backend, question, interest)
            conversation = question.answered(completion.text)
            yield completion.usage


async def _ask(backend: Backend, question: Question, interest: Interest) -> Completion:
    """One turn of feedback, as a session asks for it but for budgets and breakers."""
    endpoint = backend.endpoints[0]
    prompt = feedback_prompt(
        rubric=backend.rubric.as_text(),
        assignment=backend.rubric.task(None),
        question=question,
        output_tokens_max=400,
    )
    async with endpoint.warmth.visit(prompt, interest) as visit:
        completion = await endpoint.provider.stream(prompt, Silent())
        visit.began(completion.usage)
    return completion


def _first(number: int) -> Question:
    """A student's first question."""
    essays = load_essays()
    draft = f"{number}. {essays[number % len(essays)].text}"
    return Conversation().ask(draft, None, now_s=trio.current_time())


@asynccontextmanager
async def _open(case: Case) -> AsyncIterator[tuple[Backend, Simulated]]:
    """A backend of coach before an empty provider."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coach-cache-")))
        redis = await stack.enter_async_context(open_embedded(folder))
        simulator = await stack.enter_async_context(
            open_simulated(folder, "--events-per-s", "200", *(() if case.cached else UNCACHED))
        )
        path = folder / "coach.toml"
        path.write_text(
            f"""
data_dir = "{folder}"
[redis]
url = "{redis.url}"
[cache]
single_flight = {str(case.single_flight).lower()}
keep_warm = {str(case.keep_warm).lower()}
[log]
level = "error"
[[provider]]
name = "simulator"
kind = "anthropic"
base_url = "{simulator.url}"
model = "{MODEL}"
api_key = "bench"
ca_file = "{simulator.ca}"
"""
        )
        backend = await stack.enter_async_context(open_backend(config.load(path), role="bench"))
        yield backend, simulator


COLUMNS: Final = {
    "case": "case",
    "turns": "turns",
    "writes": "writes",
    "reads": "reads",
    "pings": "pings",
    "prompt_tokens": "prompt",
    "output_tokens": "answer",
    "prompt_millidollars_per_turn": "prompt, m$ a turn",
    "millidollars_per_turn": "all, m$ a turn",
    "pings_millidollars": "pings, m$",
}


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(*COLUMNS.values(), box=None)
    for row in rows:
        table.add_row(*(str(row[name]) for name in COLUMNS))
    return table


def _markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = [
        f"| {' | '.join(COLUMNS.values())} |",
        "| " + " | ".join("---" for _ in COLUMNS) + " |",
        *(f"| {' | '.join(str(row[name]) for name in COLUMNS)} |" for row in rows),
    ]
    return "\n".join(lines) + "\n"
