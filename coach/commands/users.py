"""`coach users`: what is kept of a user, erased."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import attrs
import typer

from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from ..erasure import Erased
    from ..store import Redis

cli = typer.Typer(help="What is kept of a user.", no_args_is_help=True)


@cli.callback()
def _group() -> None:
    """So that the only command has a name of its own."""


@cli.command()
def erase(
    user: Annotated[str, typer.Argument(help="As in the user's token.")],
    org: Annotated[str, typer.Option("--org", help="Whose user it is.")],
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Erase a user: sessions, essays, grades, limits; costs become nobody's. There is no way back.

    Safe to repeat. Until it finds nothing: a user who was online may leave traces for a minute.
    """
    from ..erasure import erase_user
    from ..grading import Queue

    settings = load(config_file, data_dir)

    async def do(redis: Redis) -> Erased:
        queue = Queue(redis, settings.grading)
        return await erase_user(redis, queue, settings, org=org, user=user)

    found = attrs.asdict(ask_redis(settings, do))
    said = [f"{count:,} {name}" for name, count in found.items() if count]
    typer.echo(f"erased: {', '.join(said)}" if said else "nothing is left of this user")
