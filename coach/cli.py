"""The command line: `coach serve | grade | demo | doctor | redis | token`, and `commands/`.

A configuration mistake is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from functools import partial
from typing import Annotated, Literal

import trio
import typer

from . import __version__, commands, config
from .commands import ConfigOption, DataDirOption
from .commands import load as _load
from .errors import CoachError, first_error

cli = typer.Typer(
    name="coach",
    help="AI writing coaching: live feedback, graded essays, no provider 429s.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

cli.add_typer(commands.flags.cli, name="flags")
cli.add_typer(commands.costs.cli, name="costs")
cli.add_typer(commands.limits.cli, name="limits")
cli.add_typer(commands.queue.cli, name="queue")
cli.add_typer(commands.quota.cli, name="quota")
cli.command()(commands.regrade.regrade)
cli.add_typer(commands.regrade.cli, name="bulk")
cli.add_typer(commands.sessions.cli, name="sessions")
cli.add_typer(commands.users.cli, name="users")
cli.add_typer(commands.webhooks.cli, name="webhooks")
cli.command()(commands.evaluate.evaluate)
cli.add_typer(commands.calibrate.cli, name="calibrate")

Model = Literal["simulated", "local"]


def main() -> None:
    """Run the command line; the entry point of the `coach` command."""
    code = 0
    try:
        cli()
    except* CoachError as group:  # nurseries pass errors on in groups
        sys.stderr.write(f"coach: {first_error(group)}\n")
        code = 2
    except* KeyboardInterrupt:
        code = 130
    sys.exit(code)


@cli.command()
def serve(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    bind: Annotated[str | None, typer.Option(help="host:port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Web worker processes.")] = None,
) -> None:
    """Serve the pages, the API and the WebSocket with worker processes on one port."""
    from .supervisor import supervise

    if bind is not None:
        os.environ["COACH_SERVER__BIND"] = bind
    if workers is not None:
        os.environ["COACH_SERVER__WORKERS"] = str(workers)
    settings = _load(config_file, data_dir)
    trio.run(partial(supervise, settings, on_ready=lambda url: typer.echo(f"serving {url}")))


@cli.command(hidden=True)
def worker(
    app: Annotated[str, typer.Option(help="What to serve, as module:name.")],
    fd: Annotated[int, typer.Option(help="The listening socket.")],
    ready_fd: Annotated[int, typer.Option(help="Where to say that the worker serves.")],
) -> None:
    """One web worker; `coach serve` starts these."""
    from .worker import run_worker

    sys.exit(trio.run(run_worker, app, fd, ready_fd))


@cli.command()
def grade(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    lanes: Annotated[
        str | None, typer.Option(help="Comma-separated lanes to serve; default all.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Grades at once.")] = None,
    metrics: Annotated[
        str | None, typer.Option(help="host:port where this process answers GET /metrics.")
    ] = None,
    hours: Annotated[
        str | None, typer.Option(help="Grade only then, as 22-06; with --lanes background.")
    ] = None,
    time_zone: Annotated[str, typer.Option(help="Whose hours, as Europe/Berlin.")] = "UTC",
) -> None:
    """Grade submissions from the queue until SIGTERM, then finish what is under way."""
    from .errors import ConfigurationError
    from .graders import run_graders
    from .grading import Hours

    if lanes is not None:
        os.environ["COACH_GRADING__LANES"] = (
            "[" + ",".join(f'"{lane.strip()}"' for lane in lanes.split(",")) + "]"
        )
    if concurrency is not None:
        os.environ["COACH_GRADING__CONCURRENCY"] = str(concurrency)
    if metrics is not None:
        os.environ["COACH_GRADING__METRICS"] = metrics
    settings = _load(config_file, data_dir)
    if hours is None:
        trio.run(run_graders, settings)
        return
    if settings.grading.lanes != ("background",):
        raise ConfigurationError("--hours would let students wait: say --lanes background too")
    trio.run(partial(run_graders, settings, hours=Hours.parse(hours, time_zone)))


@cli.command()
def redis(
    data_dir: DataDirOption = None,
) -> None:
    """Run the embedded Redis in the foreground, for several processes on one machine.

    Where another coach runs it already, stand by and take over when that one ends.
    """
    from .store import keep_embedded

    settings = _load(None, data_dir)

    async def run() -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(keep_embedded, settings.data_path, say=typer.echo))
                await anext(aiter(signals))
                nursery.cancel_scope.cancel("asked to stop")

    trio.run(run)


@cli.command()
def token(
    user: Annotated[str | None, typer.Option(help="User name; default a new one.")] = None,
    org: Annotated[str, typer.Option(help="Organisation the user belongs to.")] = "demo",
    role: Annotated[str, typer.Option(help="student, educator or operator.")] = "student",
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print a signed token for a user, for tests and integrations."""
    from .errors import ConfigurationError
    from .session import open_authority

    authority = open_authority(_load(config_file, data_dir))
    try:
        text, _ = authority.issue(
            user=user or f"student-{secrets.token_hex(6)}", org=org, role=role
        )
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    typer.echo(text)


@cli.command()
def demo(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="Port of the page, 0 for a free one; default 8000."),
    ] = None,
    data_dir: DataDirOption = None,
    config_file: ConfigOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run one writer from typing to grade, then stop.")
    ] = False,
    model: Annotated[
        Model, typer.Option(help="Who answers where no provider is configured.")
    ] = "simulated",
) -> None:
    """Run everything on this machine: Redis, simulated provider, workers and a grader."""
    from .demo import run_demo

    run = partial(
        run_demo,
        port=port,
        data_dir=data_dir,
        config_file=config_file,
        check=check,
        local_model=model == "local",
    )
    sys.exit(trio.run(run))


@cli.command()
def doctor(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    writers: Annotated[
        int | None, typer.Option(min=1, help="How many are to write at once.")
    ] = None,
    ask: Annotated[
        bool, typer.Option(help="Ask every provider for one token: checks key, model and quota.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Check machine, settings, Redis and providers; exit code 1 if something must be mended."""
    from rich.console import Console

    from . import doctor

    settings = _load(config_file, data_dir)
    path = config.path_from_environment()
    findings = trio.run(partial(doctor.examine, settings, path=path, writers=writers, ask=ask))
    if as_json:
        typer.echo(doctor.as_json(findings))
    else:
        doctor.print_report(findings, Console())
    sys.exit(1 if any(each.status == "fail" for each in findings) else 0)


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
