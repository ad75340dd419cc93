"""`coach regrade` and `coach bulk`: essays graded again in the background."""

from __future__ import annotations

import getpass
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import attrs
import trio
import typer

from ..errors import CoachError, ConfigurationError
from .jobs import JsonOption, YesOption, confirm, show_value
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from rich.table import Table

    from .. import config
    from ..grading import Bulk, BulkJob
    from ..store import Redis

LOOK_S: Final = 2.0
"""Between two looks at a job that is waited for."""
SHOWN_MAX: Final = 50

cli = typer.Typer(
    help="See, pause, resume or stop what `coach regrade` has begun.", no_args_is_help=True
)
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="As `coach bulk show` lists it.")]


def regrade(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="[ID]...", help="Submissions; - reads a list.")
    ] = None,
    org: Annotated[str, typer.Option(help="Whose essays.")] = "demo",
    assignment: Annotated[str | None, typer.Option(help="All essays of this assignment.")] = None,
    file: Annotated[
        Path | None, typer.Option("--list", help="A file of submissions, one a line.")
    ] = None,
    audit: Annotated[
        float | None,
        typer.Option(
            min=0.01, max=100, help="Only so many of 100, by chance, and onto the review list."
        ),
    ] = None,
    batch: Annotated[
        bool,
        typer.Option("--batch", help="By the providers' batch APIs: half the price, in a day."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say how many, and what it may cost.")
    ] = False,
    wait: Annotated[bool, typer.Option(help="Until the job has ended; Ctrl-C leaves it.")] = True,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Have a fresh panel grade essays again, in the background, beside their first grade.

    Graders that serve the background lane do it; it goes on when this command ends.
    """
    named = [*(ids or []), *_listed(file)]
    if not named and assignment is None:
        raise CoachError("name submissions, --list FILE or --assignment")

    async def begin(redis: Redis, bulk: Bulk, settings: config.Settings) -> None:
        from ..grading import load_rubric
        from ..ops import load_prices
        from ..second_grades import estimate_regrade

        prices, currency = load_prices(settings), settings.costs.currency
        chosen = await bulk.choose(org, ids=named, assignment=assignment, percent=audit)
        rubric = load_rubric(settings.grading.rubric)
        found = estimate_regrade(chosen, settings, rubric, prices, batch=batch)
        cost = prices.from_nano(found.nano, currency)
        said = (
            f"{found.essays:,} essays, {found.answers:,} answers of judges: about "
            f"{found.input:,} tokens of input, {found.output:,} of output, {cost:.2f} {currency}"
        )
        if found.unpriced:
            said += f", without the price of {', '.join(found.unpriced)}, which nobody knows"
        if dry_run or not chosen:
            show_value(said, found.as_json(prices, currency), as_json)
            return
        if not as_json:
            typer.echo(said, err=True)
        confirm("begin", yes)
        kind: Literal["regrade", "audit"] = "regrade" if audit is None else "audit"
        by = f"operator {getpass.getuser()}"
        way: Literal["live", "batch"] = "batch" if batch else "live"
        id_ = await bulk.open(org, kind, [each.id for each in chosen], by=by, way=way)
        job = await _job(bulk, id_)
        while wait and job.ended_at is None:
            typer.echo(_progress(job), err=True)
            await trio.sleep(LOOK_S)
            job = await _job(bulk, id_)
        show_value(_progress(job), job, as_json)

    _run(begin, config_file, data_dir)


@cli.command()
def show(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="One job.")] = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Show the newest jobs, or one, and how far they are."""

    async def look(redis: Redis, bulk: Bulk, settings: config.Settings) -> None:
        if job is not None:
            found = await _job(bulk, job)
            show_value(_progress(found), found, as_json)
            return
        jobs = (await bulk.jobs())[:SHOWN_MAX]
        show_value(_table(jobs), jobs, as_json)

    _run(look, config_file, data_dir)


@cli.command()
def pause(
    job: JobArgument,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Begin no more essays of a job until `resume`."""
    _set_mode(job, "paused", as_json, config_file, data_dir)


@cli.command()
def resume(
    job: JobArgument,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Go on with a job that was paused."""
    _set_mode(job, "running", as_json, config_file, data_dir)


@cli.command()
def stop(
    job: JobArgument,
    yes: YesOption = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """End a job for good; second grades that are made stay."""
    confirm(f"stop {job} for good", yes)
    _set_mode(job, "stopped", as_json, config_file, data_dir)


def _set_mode(
    job: str, mode: Literal["running", "paused", "stopped"], as_json: bool, *where: Any
) -> None:
    async def change(redis: Redis, bulk: Bulk, settings: config.Settings) -> None:
        found = await bulk.set_mode(await _job(bulk, job), mode)
        show_value(_progress(found), found, as_json)
        if found.mode != mode:
            raise typer.Exit(1)

    _run(change, *where)


def _run(work: Callable[[Redis, Bulk, config.Settings], Awaitable[None]], *where: Any) -> None:
    settings = load(*where)

    async def run(redis: Redis) -> None:
        from ..grading import Bulk, Queue

        await redis.ping()
        grading = settings.grading
        await work(redis, Bulk(redis, Queue(redis, grading), grading), settings)

    ask_redis(settings, run)


async def _job(bulk: Bulk, job: str) -> BulkJob:
    found = await bulk.find(job)
    if found is None:
        raise CoachError(f"{job!r} is no bulk job: `coach bulk show` lists them")
    return found


def _listed(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--list {file}: {error}") from error
    return [line.strip() for line in lines if line.strip()]


def _progress(job: BulkJob) -> str:
    ended = job.graded + job.failed + job.gone
    parts = [f"{job.id}: {job.mode}, {ended:,} of {job.total:,}"]
    parts += [
        f"{count:,} {word}"
        for count, word in (
            (job.running, "under way"),
            (job.failed, "failed"),
            (job.gone, "gone"),
        )
        if count
    ]
    return ", ".join(parts)


def _table(jobs: list[BulkJob]) -> Table:
    from rich.table import Table

    columns = [field.name for field in attrs.fields(type(jobs[0]))][:-2] if jobs else ["id"]
    table = Table(*columns, box=None, pad_edge=False)
    for job in jobs:
        table.add_row(*(str(getattr(job, name)) for name in columns))
    return table
