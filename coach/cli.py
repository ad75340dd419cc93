"""The command line: `coach serve | grade | demo | redis | token`.

A configuration mistake is one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import os
import secrets
import signal
import sys
from pathlib import Path
from typing import Annotated

import trio
import typer

from . import __version__, config
from .errors import CoachError

cli = typer.Typer(
    name="coach",
    help="AI writing coaching: live feedback, graded essays, no provider 429s.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (TOML); else $COACH_CONFIG, else ./coach.toml."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder for the embedded Redis, keys and logs.")
]


def main() -> None:
    """Run the command line; the entry point of the `coach` command."""
    try:
        cli()
    except CoachError as error:
        sys.stderr.write(f"coach: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def _load(path: Path | None, data_dir: Path | None = None) -> config.Settings:
    """Read the settings, and hand what the command line said on to child processes."""
    if path is None and "COACH_CONFIG" not in os.environ and Path("coach.toml").is_file():
        path = Path("coach.toml")
    if path is not None:
        os.environ["COACH_CONFIG"] = str(path.absolute())
    if data_dir is not None:
        os.environ["COACH_DATA_DIR"] = str(data_dir.absolute())
    named = os.environ.get("COACH_CONFIG")
    return config.load(Path(named) if named else None)


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
    trio.run(supervise, _load(config_file, data_dir))


@cli.command(hidden=True)
def worker(
    fd: Annotated[int, typer.Option(help="The listening socket.")],
    ready_fd: Annotated[int, typer.Option(help="Where to say that the worker serves.")],
) -> None:
    """One web worker; `coach serve` starts these."""
    from .worker import run_worker

    trio.run(run_worker, fd, ready_fd)


@cli.command()
def grade(
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
    lanes: Annotated[
        str | None, typer.Option(help="Comma-separated lanes to serve; default all.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Grades at once.")] = None,
) -> None:
    """Grade submissions from the queue until SIGTERM, then finish what is under way."""
    from .graders import run_graders

    if lanes is not None:
        os.environ["COACH_GRADING__LANES"] = (
            "[" + ",".join(f'"{lane.strip()}"' for lane in lanes.split(",")) + "]"
        )
    if concurrency is not None:
        os.environ["COACH_GRADING__CONCURRENCY"] = str(concurrency)
    trio.run(run_graders, _load(config_file, data_dir))


@cli.command()
def redis(
    data_dir: DataDirOption = None,
) -> None:
    """Run the embedded Redis in the foreground, for several processes on one machine."""
    from .store import open_embedded

    settings = _load(None, data_dir)

    async def run() -> None:
        async with open_embedded(settings.data_path) as server:
            typer.echo(f"redis at {server.url}")
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for _ in signals:
                    return

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
    port: Annotated[int, typer.Option(min=0, max=65_535, help="Port of the page.")] = 8000,
    data_dir: DataDirOption = None,
    config_file: ConfigOption = None,
    check: Annotated[
        bool, typer.Option("--check", help="Run one writer from typing to grade, then stop.")
    ] = False,
) -> None:
    """Run everything on this machine: Redis, simulated provider, workers and a grader."""
    from .demo import run_demo

    sys.exit(trio.run(run_demo, port, data_dir, config_file, check))


@cli.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)
