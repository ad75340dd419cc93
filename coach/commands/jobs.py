"""What `coach queue` and `coach webhooks` have in common: jobs shown, chosen and settled."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from ..errors import CoachError
from .options import ask_redis, load

if TYPE_CHECKING:
    from rich.table import Table

    from .. import config
    from ..grading import Desk, Done, JobView, QueueStatistics
    from ..store import Redis

State = Literal["ready", "delayed", "leased", "dead"]

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Which.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def at_desk(
    open_desk: Callable[[Redis, config.Settings], Desk],
    work: Callable[[Desk], Awaitable[None]],
    *where: Any,
) -> None:
    """Do some work at the desk of a queue.

    Args:
      open_desk: whose.
      work: what is done there.
      where: the options `--config` and `--data-dir`.
    """
    settings = load(*where)

    async def run(redis: Redis) -> None:
        await redis.ping()
        await work(open_desk(redis, settings))

    ask_redis(settings, run)


async def each(
    ids: Sequence[str],
    act: Callable[[str], Awaitable[list[Done]]],
    said: str,
    as_json: bool,
    *,
    unmoved: tuple[str, ...] = (),
) -> None:
    """Do it to every job; exit code 1 where one of them is unknown."""
    done: list[Done] = []
    unknown = []
    for id_ in ids:
        found = await act(id_)
        done += found
        if not found:
            unknown.append(id_)
    moved = [job for job in done if job.was not in unmoved]
    lines = [f"{len(moved)} {said}"]
    lines += [f"{job.id} is {job.was} already" for job in done if job.was in unmoved]
    lines += [f"{id_} is unknown" for id_ in unknown]
    show_value("\n".join(lines), {"done": done, "unknown": unknown}, as_json)
    if unknown:
        raise typer.Exit(1)


def choose(ids: list[str] | None, everything: bool) -> list[str]:
    """The jobs that were named; none where all are meant."""
    if bool(ids) == everything:
        raise CoachError("name them, or say --all: `show --state dead` lists them")
    return ids or []


def confirm(what: str, yes: bool) -> None:
    """Go on only if the operator agrees, or has done so beforehand."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CoachError(f"say --yes to {what}")
    typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)


def show_value(text: str | Table, value: object, as_json: bool) -> None:
    """Print something for people, or the same for programs."""
    if as_json:
        import attrs

        builtins = msgspec.to_builtins(
            value, enc_hook=lambda record: attrs.asdict(record, recurse=False)
        )
        typer.echo(msgspec.json.format(msgspec.json.encode(builtins)).decode())
    elif isinstance(text, str):
        typer.echo(text)
    else:
        from rich.console import Console

        console = Console()
        if not console.is_terminal:
            console = Console(width=160)
        console.print(text)


def lanes_table(statistics: QueueStatistics) -> Table:
    """How much waits in each lane."""
    from rich.table import Table

    table = Table(
        "lane", "mode", "ready", "unfinished", "oldest", box=None, pad_edge=False,
        caption=f"{statistics.delayed} put off · {statistics.leased} with graders · "
        f"{statistics.dead} dead letters",
        caption_justify="left",
    )  # fmt: skip
    for lane, found in statistics.lanes.items():
        counts = (str(found.ready), str(found.unfinished))
        table.add_row(lane, found.mode, *counts, f"{found.oldest_s:.0f} s")
    return table


def jobs_table(jobs: Sequence[JobView], what: str = "submission") -> Table:
    """Jobs, a line each; `what` they are."""
    from rich.table import Table

    columns = (what, "lane", "kind", "org", "attempts", "failures", "at", "age", "reason")
    table = Table(*columns, box=None, pad_edge=False)
    now = time.time()
    for job in jobs:
        at = "" if job.at is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(job.at))
        counts = (str(job.attempts), str(job.failures))
        age = f"{max(0.0, now - job.submitted_at):.0f} s"
        table.add_row(job.id, job.lane, job.kind, job.org, *counts, at, age, job.reason)
    return table
