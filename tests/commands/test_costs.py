"""`coach costs` and `coach costs budget`: what an operator reads and types."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec
import pytest
import trio
from typer.testing import CliRunner, Result

from coach import config
from coach.cli import cli
from coach.errors import ConfigurationError
from coach.ops import Costs, load_prices
from coach.store import open_embedded, open_redis
from tests.ops.test_costs import book

pytestmark = pytest.mark.real_time


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["costs", *arguments, "--data-dir", str(tmp_path)])


async def test_an_operator_reads_the_bill_and_sets_budgets(tmp_path: Path) -> None:
    async with open_embedded(tmp_path) as server, open_redis(server.url) as redis:
        costs = Costs(load_prices(config.Settings()), config.Costs(), worker="w")
        book(costs)
        book(costs, reason="wasted-cancel", user="ben")
        book(costs, model="a-model-without-a-price", assignment="[/b] as [red]typed")
        await costs.close(redis)

        async def say(*arguments: str) -> str:
            result = await trio.to_thread.run_sync(run, tmp_path, *arguments)
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output

        table = await say("--by", "reason")
        lines = [line.split() for line in table.splitlines()]
        assert lines[0][:2] == ["reason", "requests"]
        assert ["feedback", "2", "2,000", "0", "0", "200", "0.0045", "50.0", "%", "1,100"] in lines
        assert ["total", "3", "3,000", "0", "0", "300", "0.0090", "1,100"] in lines

        assert "[/b] as [red]typed" in await say("--by", "assignment")
        record = msgspec.json.decode(await say("--by", "user", "--json", "--currency", "EUR"))
        assert record["total"]["cost"] == "0.00774"
        assert {line["user"] for line in record["lines"]} == {"ana", "ben"}
        (row,) = csv.DictReader(io.StringIO(await say("--by", "org", "--csv")))
        assert (row["org"], row["cost"], row["unpriced"]) == ("school", "0.009", "1100")

        of_org = ("--org", "school")
        assert "no budget" in await say("budget", "show", *of_org)
        said = await say("budget", "set", *of_org, "--soft", "5", "--hard", "20")
        assert said.startswith("school: 0.0090 USD spent; soft 5.0000, hard 20.00, set by coach")
        assert "no budget" in await say("budget", "clear", *of_org)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--by", "week"), "--by: some of org"),
        (("--currency", "XTS"), "no rate is known for XTS"),
        (("--from", "x"), "--from: a month"),
        (("budget", "set", "--org", "a"), "say --soft or --hard"),
        (("budget", "set", "--org", "a", "--soft", "x"), "not an amount of money"),
        (("budget", "set", "--org", "a", "--soft", "3", "--hard", "2"), "--soft is above --hard"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    result = run(tmp_path, *arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert expected in str(result.exception)
    assert "\n" not in str(result.exception)
