"""`coach flags`: parts of coach by percent of users, changed while it runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from ..errors import ConfigurationError
from .options import ConfigOption, DataDirOption, ask_redis, load

cli = typer.Typer(help="Rollout flags: parts of coach by percent of users.", no_args_is_help=True)


@cli.command("show")
def show(config_file: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print every flag: for how many users of a hundred it is on, and who said so."""
    from ..ops import FLAGS, read_flags

    settings = load(config_file, data_dir)
    stored = ask_redis(settings, read_flags)
    for flag in FLAGS:
        percent = stored.get(flag, getattr(settings.rollout, flag))
        whose = "set by coach flags" if flag in stored else "from the settings"
        typer.echo(f"{flag:<14} {percent:>3} %  {whose}")


@cli.command("set")
def set_(
    flag: Annotated[str, typer.Argument(help="Which one; coach flags show lists them.")],
    percent: Annotated[int, typer.Argument(min=0, max=100, help="Of the users.")],
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Use a part of coach for so many users of a hundred; workers follow within a second."""
    _write(flag, percent, config_file, data_dir)


@cli.command("reset")
def reset(
    flag: Annotated[str, typer.Argument(help="Which one.")],
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Let the settings decide again."""
    _write(flag, None, config_file, data_dir)


def _write(name: str, percent: int | None, path: Path | None, data_dir: Path | None) -> None:
    from ..ops import FLAGS, write_flag

    flag = next((each for each in FLAGS if each == name), None)
    if flag is None:
        raise ConfigurationError(f"there is no flag {name!r}: it is one of {', '.join(FLAGS)}")
    ask_redis(load(path, data_dir), partial(write_flag, flag=flag, percent=percent))
    typer.echo(f"{flag}: {'as in the settings' if percent is None else f'{percent} %'}")
