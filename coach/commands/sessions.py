"""`coach sessions`: sessions that can be gone on with, made void."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import ConfigOption, DataDirOption, ask_redis, load

cli = typer.Typer(help="Sessions of students that can be gone on with.", no_args_is_help=True)


@cli.callback()
def _group() -> None:
    """So that the only command has a name of its own."""


@cli.command()
def revoke(
    session: Annotated[
        str | None, typer.Argument(help="Its id, as in the log; else all of --user.")
    ] = None,
    org: Annotated[str, typer.Option("--org", help="Of the user.")] = "",
    user: Annotated[str, typer.Option("--user", help="Whose sessions, in all workers.")] = "",
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Make sessions void: connected students are cut off, and no resume token opens them again.

    Whoever has a valid token of their own can begin a new session.
    """
    from ..session import revoke_sessions

    if bool(user) != bool(org):
        raise ConfigurationError("say --org and --user, both")
    if session is None and not user:
        raise ConfigurationError("say which session, or --org and --user")
    settings = load(config_file, data_dir)
    revoked = ask_redis(settings, partial(revoke_sessions, org=org, user=user, session=session))
    typer.echo(f"{len(revoked)} revoked")
