"""`coach costs`: the bill, and the budgets of orgs.

Figures go to standard output, as a table, `--json` or `--csv`; complaints to standard error.
"""

from __future__ import annotations

import csv
import sys
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer

from ..errors import BadMessage, ConfigurationError
from .options import ConfigOption, DataDirOption, ask_redis, load

if TYPE_CHECKING:
    from rich.table import Table

    from ..ops import Prices
    from ..ops.bill import Bill
    from ..store import Redis

CENT: Final = Decimal("0.01")
FINE: Final = Decimal("0.0001")

cli = typer.Typer(help="The bill: what every answer cost. And what orgs may cost in a month.")
budget_cli = typer.Typer(help="What orgs may cost in a month (UTC).", no_args_is_help=True)
cli.add_typer(budget_cli, name="budget")

OrgOption = Annotated[str, typer.Option("--org", help="Whose.")]


@cli.callback(invoke_without_command=True)
def costs(
    context: typer.Context,
    org: Annotated[str | None, typer.Option(help="Only of this org.")] = None,
    user: Annotated[str | None, typer.Option(help="Only of this user.")] = None,
    by: Annotated[
        str,
        typer.Option(
            help="org, hour, day, month, user, assignment, provider, model, reason; "
            "or several with commas."
        ),
    ] = "day",
    since: Annotated[
        str | None, typer.Option("--from", help="2026-11, 2026-11-25 or 2026-11-25T08, UTC.")
    ] = None,
    until: Annotated[
        str | None, typer.Option("--to", help="Likewise, included; default now.")
    ] = None,
    currency: Annotated[str | None, typer.Option(help="EUR, …; default costs.currency.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values.")] = False,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Print what was spent, this month by day if nothing else is asked."""
    if context.invoked_subcommand is not None:
        return
    from ..ops import load_prices
    from ..ops.bill import ask_for_bill, read_bill

    settings = load(config_file, data_dir)
    prices, shown_in = load_prices(settings), currency or settings.costs.currency
    prices.rate(shown_in)
    try:
        question = ask_for_bill(org=org, user=user, by=by, since=since, until=until)
    except BadMessage as error:
        raise ConfigurationError(f"--{error}") from error
    bill = ask_redis(settings, partial(read_bill, question=question))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(bill.as_json(prices, shown_in))))
    elif as_csv:
        _print_csv(bill, prices, shown_in)
    else:
        _print(_table(bill, prices, shown_in))


@budget_cli.command("show")
def show(org: OrgOption, config_file: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Print an org's budget, who set it, and how much of it is spent."""
    from ..ops import load_prices
    from ..ops.bill import read_budget, spent_this_month

    settings = load(config_file, data_dir)
    prices, currency = load_prices(settings), settings.costs.currency

    async def look(redis: Redis) -> None:
        live = await read_budget(redis, org)
        spent = await spent_this_month(redis, org, f"{datetime.now(UTC):%Y-%m}")
        amounts: dict[str, Decimal | None] = {"soft": None, "hard": None}
        whose = "no budget"
        if live is not None:
            whose = "set by coach costs budget set"
            for name in amounts:
                nano = getattr(live, name)
                amounts[name] = None if nano is None else prices.from_nano(nano, currency)
        elif of_org := settings.costs.budget.get(org) or settings.costs.budget.get("*"):
            whose = "from the settings"
            amounts = {"soft": of_org.soft, "hard": of_org.hard}
        said = [f"{name} {_rounded(n)}" for name, n in amounts.items() if n is not None]
        spent_text = _rounded(prices.from_nano(spent, currency))
        typer.echo(f"{org}: {spent_text} {currency} spent; {', '.join([*said, whose])}")

    ask_redis(settings, look)


@budget_cli.command("set")
def set_(
    org: OrgOption,
    soft: Annotated[
        str | None, typer.Option(help="Beyond it you are told, in costs.currency.")
    ] = None,
    hard: Annotated[
        str | None, typer.Option(help="Beyond it feedback is refused and grading waits.")
    ] = None,
    config_file: ConfigOption = None,
    data_dir: DataDirOption = None,
) -> None:
    """Set an org's monthly budget while coach runs, in place of the settings'."""
    from ..ops import load_prices
    from ..ops.bill import LiveBudget, amount_of, set_budget

    settings = load(config_file, data_dir)
    prices, currency = load_prices(settings), settings.costs.currency
    if soft is None and hard is None:
        raise ConfigurationError("say --soft or --hard, or both; coach costs budget clear ends it")
    try:
        amounts = [None if text is None else amount_of(text) for text in (soft, hard)]
    except BadMessage as error:
        raise ConfigurationError(str(error)) from error
    if None not in amounts and amounts[0] > amounts[1]:  # type: ignore[operator]  # just checked
        raise ConfigurationError("--soft is above --hard")
    of_soft, of_hard = (
        None if amount is None else prices.to_nano(amount, currency) for amount in amounts
    )
    budget = LiveBudget(soft=of_soft, hard=of_hard)
    ask_redis(settings, partial(set_budget, org=org, budget=budget))
    show(org, config_file, data_dir)


@budget_cli.command("clear")
def clear(org: OrgOption, config_file: ConfigOption = None, data_dir: DataDirOption = None) -> None:
    """Let the settings decide again."""
    from ..ops.bill import set_budget

    ask_redis(load(config_file, data_dir), partial(set_budget, org=org, budget=None))
    show(org, config_file, data_dir)


def _table(bill: Bill, prices: Prices, currency: str) -> Table:
    from rich.markup import escape
    from rich.table import Table

    headings = ("requests", "input", "cache written", "cache read", "output")
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    total = bill.total
    for at, name in enumerate(bill.question.by):
        table.add_column(name, "" if at else "total", no_wrap=True)
    for heading, amount in zip(headings, total, strict=False):
        table.add_column(heading, f"{amount:,}", justify="right", no_wrap=True)
    unpriced = total[-1]
    for heading, text in [
        (currency, _rounded(prices.from_nano(total[-2], currency))),
        ("share", ""),
        *([("tokens without a price", f"{unpriced:,}")] if unpriced else []),
    ]:
        table.add_column(heading, text, justify="right", no_wrap=True)
    for group, amounts in bill.lines.items():
        table.add_row(
            *(escape(value) or "–" for value in group),
            *(f"{amount:,}" for amount in amounts[: len(headings)]),
            _rounded(prices.from_nano(amounts[-2], currency)),
            f"{Decimal(100 * amounts[-2]) / (total[-2] or 1):.1f} %",
            *([f"{amounts[-1]:,}"] if unpriced else []),
        )
    return table


def _rounded(amount: Decimal) -> str:
    """To a cent; below ten of the currency to a hundredth of one."""
    return f"{amount.quantize(FINE if amount < 10 else CENT):,}"


def _print(table: Table) -> None:
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console.width = 200  # for a pipe nothing is folded
    console.print(table)


def _print_csv(bill: Bill, prices: Prices, currency: str) -> None:
    record = bill.as_json(prices, currency)
    names = [*bill.question.by, *(name for name in record["total"])]
    writer = csv.DictWriter(sys.stdout, names)
    writer.writeheader()
    writer.writerows(record["lines"])
