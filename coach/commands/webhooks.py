"""`coach webhooks`: news for integrators' servers that waits, and that was given up."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
    show_value,
)
from .options import ConfigOption, DataDirOption

if TYPE_CHECKING:
    from .. import config
    from ..grading import Desk
    from ..store import Redis

cli = typer.Typer(
    help="Look into the news for integrators' servers; send again or drop what was given up.",
    no_args_is_help=True,
)

AllOption = Annotated[bool, typer.Option("--all", help="All of --state.")]
StateOption = Annotated[State, typer.Option(help="What --all means.")]


@cli.command()
def show(
    state: Annotated[
        State | None, typer.Option(help="List these deliveries instead of the figures.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Deliveries to list.")] = 20,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show how much waits and was given up, or list the deliveries of one state."""

    async def look(desk: Desk) -> None:
        if state is not None:
            jobs = [job async for job in desk.jobs(state, count_max=limit)]
            show_value(jobs_table(jobs, "delivery"), jobs, as_json)
            return
        found = await desk.queue.statistics()
        ready = sum(found.ready.values())
        figures = {"ready": ready, "delayed": found.delayed, "leased": found.leased}
        show_value(
            f"{ready} ready, {found.delayed} put off, {found.leased} under way, "
            f"{found.dead} given up",
            {**figures, "dead": found.dead},
            as_json,
        )

    _run(look, config_file, data_dir)


@cli.command()
def retry(
    ids: IdsArgument = None,
    everything: AllOption = False,
    state: StateOption = "dead",
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Send again now what was given up or put off."""
    chosen = choose(ids, everything)

    async def repeat(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state)]
        await each(named, desk.replay, "ready now", as_json, unmoved=("ready", "leased"))

    _run(repeat, config_file, data_dir)


@cli.command()
def drop(
    ids: IdsArgument = None,
    everything: AllOption = False,
    state: StateOption = "dead",
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Give news up for good."""
    chosen = choose(ids, everything)

    async def throw_away(desk: Desk) -> None:
        named = chosen or [job.id async for job in desk.jobs(state)]
        if named:
            confirm(f"drop {len(named)} {'delivery' if len(named) == 1 else 'deliveries'}", yes)
        await each(
            named, partial(desk.cancel, reason="dropped by the operator"), "dropped", as_json
        )

    _run(throw_away, config_file, data_dir)


def _run(work: Callable[[Desk], Awaitable[None]], *where: Any) -> None:
    def open_desk(redis: Redis, settings: config.Settings) -> Desk:
        from ..grading import delivery_desk

        return delivery_desk(redis, settings)

    at_desk(open_desk, work, *where)
