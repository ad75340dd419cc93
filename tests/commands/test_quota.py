"""`coach quota`: what an operator reads and types, and what workers then do."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio
from typer.testing import CliRunner, Result

from coach import config
from coach.budget import Ask, open_endpoint_budget
from coach.cli import cli
from coach.errors import ConfigurationError
from coach.store import open_embedded, open_redis

pytestmark = pytest.mark.real_time

QUOTA = config.Quota(requests_per_minute=100, output_tokens_per_minute=10_000)
SETTINGS = """
[[provider]]
name = "opus"
kind = "anthropic"
base_url = "https://127.0.0.1:1"
model = "m"
api_key = "k"
quota = { requests_per_minute = 100, output_tokens_per_minute = 10000 }
"""


def run(tmp_path: Path, *arguments: str) -> Result:
    path = tmp_path / "coach.toml"
    path.write_text(SETTINGS)
    options = ("--config", str(path), "--data-dir", str(tmp_path))
    return CliRunner().invoke(cli, ["quota", *arguments, *options])


async def test_an_operator_sees_a_quota_and_changes_it_for_all_workers(tmp_path: Path) -> None:
    async with (
        open_embedded(tmp_path) as server,
        open_redis(server.url) as redis,
        open_endpoint_budget(
            redis, endpoint="opus", quota=QUOTA, settings=config.Budget(), worker="w"
        ) as budget,
    ):

        async def say(*arguments: str) -> str:
            result = await trio.to_thread.run_sync(run, tmp_path, *arguments)
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output

        async with budget.admit(Ask(1, 1_000), lane="interactive", org="o") as admission:
            admission.settle(Ask(1, 1_000))
        assert await say("show") == (
            "opus: requests 100 a minute, 1% used and 94 left;"
            " output 10,000 a minute, 10% used and 8,500 left (from the settings)\n"
        )
        said = await say("set", "opus", "--output-tokens", "2000", "--hours", "2")
        assert said == (
            "opus: requests 100 a minute, 1% used and 94 left;"
            " output 2,000 a minute, 50% used and 900 left (set by coach quota, for 2.0 h)\n"
        )
        # the worker follows with its next request: 1,000 and 1,000 are more than its hard share
        with trio.move_on_after(0.3) as scope:
            async with budget.admit(Ask(1, 1_000), lane="interactive", org="o"):
                pytest.fail("admitted beyond what the operator said")
        assert scope.cancelled_caught

        # without --may-exceed, no more than the settings say
        assert "output 10,000 a minute" in await say("set", "opus", "--output-tokens", "50000")
        async with budget.admit(Ask(1, 8_000), lane="interactive", org="o"):
            pass
        with trio.move_on_after(0.3) as scope:
            async with budget.admit(Ask(1, 9_000), lane="interactive", org="o"):
                pytest.fail("admitted beyond the settings")
        assert scope.cancelled_caught
        await say("set", "opus", "--output-tokens", "50000", "--may-exceed")
        async with budget.admit(Ask(1, 20_000), lane="interactive", org="o"):
            pass

        (record,) = msgspec.json.decode(await say("show", "--json"))
        assert record["quota"] == {"requests": 100, "output": 50_000}
        assert 86_000 < record["said_for_s"] <= 86_400
        assert "(from the settings)" in await say("reset", "opus")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["set", "sonnet", "--tokens", "1"], "no provider 'sonnet': opus"),
        (["set", "opus"], "say --requests"),
        (["reset", "sonnet"], "no provider 'sonnet'"),
    ],
    ids=["unknown", "nothing", "reset"],
)
def test_a_mistake_is_told_before_redis_is_asked(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = run(tmp_path, *arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert complaint in str(result.exception)
