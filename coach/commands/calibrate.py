"""`coach calibrate`: judges' offsets and scales out of an evaluation, for all graders."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import typer

from ..errors import ConfigurationError
from .evaluate import EVALUATED, need_packages
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from .. import config
    from ..agreement import Evaluation, Report
    from ..grading import Calibration, Reading, Rubric
    from ..store import Redis

WORSE_QWK = 0.02
"""A calibration that loses more on held-out essays is refused."""

cli = typer.Typer(
    help="Calibration: what people's scores say of each judge, used by all graders.",
    no_args_is_help=True,
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value.")]


@cli.command("fit")
def fit(
    results: Annotated[
        Path | None,
        typer.Argument(help="What coach evaluate wrote: ESSAYS.coach, or its evaluation.json."),
    ] = None,
    org: Annotated[
        str | None,
        typer.Option(help="Instead: the scores that this org's educators entered on /review."),
    ] = None,
    assignment: Annotated[
        str | None, typer.Option(help="With --org: only essays of this assignment.")
    ] = None,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="With --org: only scores given before the grade was seen."),
    ] = False,
    coverage: Annotated[
        float, typer.Option(min=0.5, max=0.99, help="Of the intervals around grades.")
    ] = 0.9,
    stage: Annotated[
        Literal["best", "offset", "scale"],
        typer.Option(help="How far to go; best: for each judge by cross-validation."),
    ] = "best",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be set; set nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also if held-out essays agree less by it.")
    ] = False,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Fit each judge's offset and scale, keep them under a new version, use them from now on."""
    from ..agreement import calibration_of, report
    from ..grading import keep_calibration, load_rubric

    need_packages()
    if (results is None) == (org is None):
        raise ConfigurationError("name what coach evaluate wrote, or --org for scores of /review")
    settings = load(config_file, data_dir)
    rubric = load_rubric(settings.grading.rubric)
    if org is not None:
        evaluation = _entered(settings, rubric, org, assignment, blind=blind)
    else:
        assert results is not None
        evaluation = _read(results)
    found = report(
        evaluation,
        rubric,
        coverage=coverage,
        stage=None if stage == "best" else stage,
    )
    calibration = calibration_of(evaluation, found, made_at=round(time.time(), 3))
    _check(found, calibration, force=force)
    version = 0
    if not dry_run:
        version = ask_redis(settings, partial(keep_calibration, calibration=calibration))
    _print(version, calibration, in_use=not dry_run, as_json=as_json)


@cli.command("show")
def show(
    as_json: JsonOption = False, config_file: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """Print the calibration in use."""
    from ..grading import read_calibration

    version, calibration = ask_redis(load(config_file, data_dir), read_calibration)
    if calibration is None:
        typer.echo("null" if as_json else "none: grades are as judged")
        return
    _print(version, calibration, in_use=True, as_json=as_json)


@cli.command("history")
def history(
    as_json: JsonOption = False, config_file: ConfigOption = None, data_dir: DataDirOption = None
) -> None:
    """List the calibrations that are kept, the newest first; an asterisk is on the one in use."""
    from ..grading import read_history

    current, kept = ask_redis(load(config_file, data_dir), read_history)
    if as_json:
        records = [_record(version, each, version == current) for version, each in kept.items()]
        typer.echo(msgspec.json.format(msgspec.json.encode(records)))
        return
    if not kept:
        typer.echo("none")
    for version, each in kept.items():
        typer.echo(
            f"{'*' if version == current else ' '} {version:>4}  {_when(each)}  "
            f"{each.essays} essays of {each.source}, QWK {_change(each.qwk)}"
        )


@cli.command("use")
def use(
    version: Annotated[int, typer.Argument(min=1, help="Which one; coach calibrate history.")],
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Use a calibration that is kept; graders follow within two seconds."""
    from ..grading import use_calibration

    settings = load(config_file, data_dir)
    if not ask_redis(settings, partial(use_calibration, version=version)):
        raise ConfigurationError(
            f"no calibration {version} is kept: coach calibrate history lists them"
        )
    typer.echo(f"calibration {version} is in use")


@cli.command("reset")
def reset(config_file: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Use none: grades are as judged again, within two seconds. All that are kept stay."""
    from ..grading import use_calibration

    ask_redis(load(config_file, data_dir), partial(use_calibration, version=0))
    typer.echo("none: grades are as judged")


def _entered(
    settings: config.Settings, rubric: Rubric, org: str, assignment: str | None, *, blind: bool
) -> Evaluation:
    """What people entered on /review, and what the judges of those essays had said."""
    from ..agreement import evaluation_of
    from ..grading import Queue, Readings

    async def read(redis: Redis) -> list[Reading]:
        readings = Readings(redis, Queue(redis, settings.grading), settings.grading, rubric)
        return [each async for each in readings.scored(org, assignment)]

    found = ask_redis(settings, read)
    return evaluation_of(found, rubric, source=f"/review, {org}", blind=blind)


def _read(path: Path) -> Evaluation:
    from ..agreement import Evaluation

    file = path / EVALUATED if path.is_dir() else path
    try:
        return msgspec.json.decode(file.read_bytes(), type=Evaluation)
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {file}: {error.strerror}; coach evaluate writes it"
        ) from error
    except msgspec.DecodeError as error:
        raise ConfigurationError(f"{file} is not from coach evaluate: {error}") from error


def _check(found: Report, calibration: Calibration, *, force: bool) -> None:
    """Refuse what would do nothing, or harm."""
    if not calibration.margins and all(stage == "none" for stage in found.stages.values()):
        raise ConfigurationError(
            f"{found.essays} essays give no reason to change anything, and intervals need about "
            f"{found.essays_needed}: nothing was set"
        )
    before, after = calibration.qwk
    if not force and before is not None and after is not None and after < before - WORSE_QWK:
        raise ConfigurationError(
            f"{found.held_out} held-out essays agree less by it (QWK {before:.2f}, then "
            f"{after:.2f}): nothing was set; have more essays scored, or say --force"
        )


def _record(version: int, calibration: Calibration, in_use: bool) -> dict[str, Any]:
    return {"version": version, "in_use": in_use, **msgspec.to_builtins(calibration)}


def _print(version: int, calibration: Calibration, *, in_use: bool, as_json: bool) -> None:
    if as_json:
        record = _record(version, calibration, in_use)
        typer.echo(msgspec.json.format(msgspec.json.encode(record)))
        return
    typer.echo(
        f"calibration {version}: " if in_use else "would be set: ",
        nl=False,
    )
    typer.echo(f"{_when(calibration)}, {calibration.essays} essays of {calibration.source}")
    for judge, line in calibration.lines.items():
        model = calibration.models[judge]
        typer.echo(f"  {judge} ({model}): {line.offset:+.1f}, × {line.scale:.2f}")
    for panel, margin in calibration.margins.items():
        typer.echo(f"  {panel}: ± {margin} holds {calibration.coverage:.0%}")
    typer.echo(
        f"held-out essays: QWK {_change(calibration.qwk)}, bias {_change(calibration.bias)}"
        + ("" if calibration.covered is None else f", {calibration.covered:.0%} in the interval")
    )


def _change(pair: tuple[float | None, float | None]) -> str:
    before, after = ("–" if value is None else f"{value:.2f}" for value in pair)
    return f"{before}, then {after}"


def _when(calibration: Calibration) -> str:
    return f"{datetime.fromtimestamp(calibration.made_at, UTC):%Y-%m-%d %H:%M} UTC"
