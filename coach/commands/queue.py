"""`coach queue`: what an operator does with the grading queue.

Figures and what was done go to standard output, as text or (`--json`) as one JSON value; questions
and complaints to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
import trio
import typer

from ..errors import CoachError
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from rich.table import Table

    from ..grading import Desk, Done, JobView, QueueStatistics
    from ..store import Redis

T = TypeVar("T")

Lane = Literal["interactive", "submission", "background"]
LANES: Final[tuple[Lane, ...]] = ("interactive", "submission", "background")
State = Literal["ready", "delayed", "leased", "dead"]

DRAIN_LOOK_S: Final = 1.0
"""Between two looks at a lane that is being drained."""

cli = typer.Typer(
    help="Look into the grading queue; repeat or drop jobs; stop and start lanes.",
    no_args_is_help=True,
)

IdsArgument = Annotated[list[str] | None, typer.Argument(metavar="[ID]...", help="Submissions.")]
LanesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[LANE]...", help=", ".join(LANES))
]
LaneOption = Annotated[Lane | None, typer.Option("--lane", help="Only of this lane.")]
AllLanesOption = Annotated[bool, typer.Option("--all", help="All lanes.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]
YesOption = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@cli.command()
def show(
    state: Annotated[
        State | None, typer.Option(help="List these jobs instead of the lanes.")
    ] = None,
    lane: LaneOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Jobs to list.")] = 20,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show how much waits and for how long, or list the jobs of one state."""

    async def look(desk: Desk) -> None:
        if state is not None:
            jobs = [job async for job in desk.jobs(state, lane=lane, count_max=limit)]
            _print(_jobs_table(jobs), jobs, as_json)
            return
        statistics = await desk.queue.statistics()
        _print(_lanes_table(statistics), statistics, as_json)

    _run(look, config_file, data_dir)


@cli.command()
def retry(
    ids: IdsArgument = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every job of --state, of --lane if given.")
    ] = False,
    state: Annotated[Literal["dead", "delayed"], typer.Option(help="What --all means.")] = "dead",
    lane: LaneOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Grade again now what was given up or put off."""
    chosen = _chosen(ids, everything)

    async def repeat(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state, lane=lane)]
        await _each(named, desk.replay, "ready now", as_json, unmoved=("ready", "leased"))

    _run(repeat, config_file, data_dir)


@cli.command()
def drop(
    ids: IdsArgument = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every job of --state, of --lane if given.")
    ] = False,
    state: Annotated[State, typer.Option(help="What --all means.")] = "dead",
    lane: LaneOption = None,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take jobs out of the queue for good; students whose essays waited are told."""
    chosen = _chosen(ids, everything)

    async def throw_away(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state, lane=lane)]
        if named:
            _confirm(f"drop {len(named)} {'job' if len(named) == 1 else 'jobs'}", yes)
        cancel = partial(desk.cancel, reason="dropped by the operator")
        await _each(named, cancel, "dropped", as_json)

    _run(throw_away, config_file, data_dir)


@cli.command()
def pause(
    lanes: LanesArgument = None,
    all_lanes: AllLanesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Hand out no more jobs of a lane, from now on; essays are still taken in."""
    _set_mode(_lanes(lanes, all_lanes), "paused", as_json, config_file, data_dir)


@cli.command()
def resume(
    lanes: LanesArgument = None,
    all_lanes: AllLanesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Open a lane that was paused or drained; graders go on at once."""
    _set_mode(_lanes(lanes, all_lanes), "open", as_json, config_file, data_dir)


@cli.command()
def drain(
    lanes: LanesArgument = None,
    all_lanes: AllLanesOption = False,
    wait: Annotated[bool, typer.Option(help="Until the lanes are empty.")] = True,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Refuse new essays of a lane until `resume`, and wait until it is empty.

    Ctrl-C stops the waiting and nothing else.
    """
    named = _lanes(lanes, all_lanes)
    _confirm(f"refuse new essays in {', '.join(named)} until `coach queue resume`", yes)

    async def empty(desk: Desk) -> None:
        left = await desk.set_mode(named, "draining")
        while wait and left:
            typer.echo(f"{left} left", err=True)
            await trio.sleep(DRAIN_LOOK_S)
            statistics = await desk.queue.statistics()
            left = sum(statistics.lanes[lane].unfinished for lane in named)
        _print(
            f"{', '.join(named)}: draining, {left} left",
            {"lanes": named, "mode": "draining", "unfinished": left},
            as_json,
        )

    _run(empty, config_file, data_dir)


# -- what they have in common ------------------------------------------------------------------


def _set_mode(
    lanes: Sequence[Lane], mode: Literal["open", "paused"], as_json: bool, *where: Any
) -> None:
    async def change(desk: Desk) -> None:
        left = await desk.set_mode(lanes, mode)
        _print(
            f"{', '.join(lanes)}: {mode}, {left} unfinished",
            {"lanes": lanes, "mode": mode, "unfinished": left},
            as_json,
        )

    _run(change, *where)


def _run(work: Callable[[Desk], Awaitable[None]], *where: Any) -> None:
    settings = load(*where)

    async def run(redis: Redis) -> None:
        from ..grading import Desk

        await redis.ping()
        await work(Desk(redis, settings.grading))

    ask_redis(settings, run)


async def _each(
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
    _print("\n".join(lines), {"done": done, "unknown": unknown}, as_json)
    if unknown:
        raise typer.Exit(1)


def _chosen(ids: list[str] | None, everything: bool) -> list[str]:
    """The jobs that were named; none where all are meant."""
    if bool(ids) == everything:
        raise CoachError("name submissions, or say --all: `coach queue show --state dead`")
    return ids or []


def _lanes(lanes: list[str] | None, all_lanes: bool) -> list[Lane]:
    if bool(lanes) == all_lanes:
        raise CoachError(f"name lanes ({', '.join(LANES)}), or say --all")
    unknown = set(lanes or ()).difference(LANES)
    if unknown:
        raise CoachError(f"{min(unknown)!r} is no lane: {', '.join(LANES)}")
    return [lane for lane in LANES if all_lanes or lane in (lanes or ())]


def _confirm(what: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise CoachError(f"say --yes to {what}")
    typer.confirm(f"{what[0].upper()}{what[1:]}?", abort=True, err=True)


def _print(text: str | Table, value: object, as_json: bool) -> None:
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


def _lanes_table(statistics: QueueStatistics) -> Table:
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


def _jobs_table(jobs: Sequence[JobView]) -> Table:
    from rich.table import Table

    columns = ("submission", "lane", "kind", "org", "attempts", "failures", "at", "age", "reason")
    table = Table(*columns, box=None, pad_edge=False)
    now = time.time()
    for job in jobs:
        at = "" if job.at is None else time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(job.at))
        counts = (str(job.attempts), str(job.failures))
        age = f"{max(0.0, now - job.submitted_at):.0f} s"
        table.add_row(job.id, job.lane, job.kind, job.org, *counts, at, age, job.reason)
    return table
