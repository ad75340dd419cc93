"""`coach limits`: what users and orgs may use in any minute, seen and changed while coach runs.

Figures go to standard output, as text or (`--json`) as one JSON value; complaints to standard
error.
"""

from __future__ import annotations

import getpass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import attrs
import msgspec
import typer

from ..errors import ConfigurationError
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from ..budget import Limit, Rule
    from ..store import Redis

cli = typer.Typer(
    help="The limits of users and orgs: what they are, how they stand, live changes.",
    no_args_is_help=True,
)

OrgOption = Annotated[str, typer.Option("--org", help="Whose.")]
UserOption = Annotated[str | None, typer.Option("--user", help="One user of the org.")]
EachUserOption = Annotated[
    bool, typer.Option("--each-user", help="Each user of the org without a rule of their own.")
]
LimitOption = Annotated[str | None, typer.Option(help="In any 60 s; - for as in the settings.")]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON value instead of text.")]


@cli.command()
def show(
    org: OrgOption,
    user: UserOption = None,
    as_json: JsonOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print the limits of an org, or of a user and their org: used, left, who set them."""
    from ..budget import show_limits, show_rules

    settings = load(config_file, data_dir)

    async def look(redis: Redis) -> tuple[list[Limit], list[Rule]]:
        limits = await show_limits(redis, settings.limits, org=org, user=user)
        return limits, await show_rules(redis, org=org)

    limits, rules = ask_redis(settings, look)
    if as_json:
        value = {"limits": list(map(_as_dict, limits)), "rules": list(map(attrs.asdict, rules))}
        typer.echo(msgspec.json.format(msgspec.json.encode(value)))
        return
    if settings.limits.mode == "shadow":
        typer.echo("mode shadow: nobody is refused")
    whose = {"user": "set for this user", "users": "set for each user", "org": "set for the org"}
    for limit in limits:
        origin = whose.get(limit.origin, "from the settings")
        typer.echo(
            f"{limit.name.replace('_', ' '):<14} {limit.most:>13,} a minute"
            f" {limit.used:>13,} used {limit.left:>13,} left   {origin}"
        )
    for rule in rules:
        typer.echo(f"rule for {_said(rule)}, by {rule.by} {rule.set_at:%Y-%m-%d %H:%M} UTC")


@cli.command("set")
def set_(
    org: OrgOption,
    user: UserOption = None,
    each_user: EachUserOption = False,
    requests: LimitOption = None,
    tokens: LimitOption = None,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set limits from the next request on: of a user, of each user, or else of the whole org."""
    given = {"requests": requests, "tokens": tokens}
    limits = {unit: _limit(unit, text) for unit, text in given.items() if text is not None}
    if not limits:
        raise ConfigurationError("say --requests or --tokens, or both; coach limits reset ends it")
    _change(limits, org, user, each_user, config_file, data_dir)


@cli.command()
def reset(
    org: OrgOption,
    user: UserOption = None,
    each_user: EachUserOption = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Take a rule back: what is more general counts again, at last the settings."""
    _change({"requests": None, "tokens": None}, org, user, each_user, config_file, data_dir)


def _change(
    limits: dict[str, int | None], org: str, user: str | None, each_user: bool, *where: Any
) -> None:
    from ..budget import set_rule

    if each_user and user is not None:
        raise ConfigurationError("--user or --each-user, not both")
    by = getpass.getuser()
    before, after = ask_redis(
        load(*where),
        partial(set_rule, org=org, user=user, each_user=each_user, limits=limits, by=by),
    )
    typer.echo(f"{org}: was {_said(before)}; is {_said(after)}")


def _limit(unit: str, text: str) -> int | None:
    """A limit as it was typed; None: as in the settings."""
    from ..budget import LIMIT_MAX

    if text == "-":
        return None
    plain = text.replace("_", "").replace(",", "")
    if not plain.isdecimal() or not 1 <= int(plain) <= LIMIT_MAX:
        raise ConfigurationError(f"--{unit} {text}: a whole number from 1 to {LIMIT_MAX:,}, or -")
    return int(plain)


def _said(rule: Rule | None) -> str:
    if rule is None:
        return "no rule"
    whose = {"users": "each user", "org": "the org"}.get(rule.whose, rule.whose)
    parts = [
        f"{getattr(rule, unit):,} {unit}"
        for unit in ("requests", "tokens")
        if getattr(rule, unit) is not None
    ]
    return f"{whose}: {', '.join(parts)} a minute"


def _as_dict(limit: Limit) -> dict[str, Any]:
    return {**attrs.asdict(limit), "left": limit.left}
