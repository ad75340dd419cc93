"""`coach queue`: what an operator does with the grading queue.

Figures and what was done go to standard output, as text or (`--json`) as one JSON value; questions
and complaints to standard error.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import trio
import typer

from ..errors import CoachError
from .jobs import (
    IdsArgument,
    JsonOption,
    State,
    YesOption,
    at_desk,
    choose,
    confirm,
    each,
    jobs_table,
    lanes_table,
    show_value,
)
from .options import ConfigOption, DataDirOption

if TYPE_CHECKING:
    from .. import config
    from ..grading import Desk
    from ..store import Redis

Lane = Literal["interactive", "submission", "background"]
LANES: Final[tuple[Lane, ...]] = ("interactive", "submission", "background")

DRAIN_LOOK_S: Final = 1.0
"""Between two looks at a lane that is being drained."""

cli = typer.Typer(
    help="Look into the grading queue; repeat or drop jobs; stop and start lanes.",
    no_args_is_help=True,
)

LanesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[LANE]...", help=", ".join(LANES))
]
LaneOption = Annotated[Lane | None, typer.Option("--lane", help="Only of this lane.")]
AllLanesOption = Annotated[bool, typer.Option("--all", help="All lanes.")]


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
            show_value(jobs_table(jobs), jobs, as_json)
            return
        statistics = await desk.queue.statistics()
        show_value(lanes_table(statistics), statistics, as_json)

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
    chosen = choose(ids, everything)

    async def repeat(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state, lane=lane)]
        await each(named, desk.replay, "ready now", as_json, unmoved=("ready", "leased"))

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
    chosen = choose(ids, everything)

    async def throw_away(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state, lane=lane)]
        if named:
            confirm(f"drop {len(named)} {'job' if len(named) == 1 else 'jobs'}", yes)
        cancel = partial(desk.cancel, reason="dropped by the operator")
        await each(named, cancel, "dropped", as_json)

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
    confirm(f"refuse new essays in {', '.join(named)} until `coach queue resume`", yes)

    async def empty(desk: Desk) -> None:
        left = await desk.set_mode(named, "draining")
        while wait and left:
            typer.echo(f"{left} left", err=True)
            await trio.sleep(DRAIN_LOOK_S)
            statistics = await desk.queue.statistics()
            left = sum(statistics.lanes[lane].unfinished for lane in named)
        show_value(
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
        show_value(
            f"{', '.join(lanes)}: {mode}, {left} unfinished",
            {"lanes": lanes, "mode": mode, "unfinished": left},
            as_json,
        )

    _run(change, *where)


def _run(work: Callable[[Desk], Awaitable[None]], *where: Any) -> None:
    def open_desk(redis: Redis, settings: config.Settings) -> Desk:
        from ..grading import Desk

        return Desk(redis, settings.grading)

    at_desk(open_desk, work, *where)


def _lanes(lanes: list[str] | None, all_lanes: bool) -> list[Lane]:
    if bool(lanes) == all_lanes:
        raise CoachError(f"name lanes ({', '.join(LANES)}), or say --all")
    unknown = set(lanes or ()).difference(LANES)
    if unknown:
        raise CoachError(f"{min(unknown)!r} is no lane: {', '.join(LANES)}")
    return [lane for lane in LANES if all_lanes or lane in (lanes or ())]
