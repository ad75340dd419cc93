"""`coach limits`: what an operator reads and types."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import trio
from typer.testing import CliRunner, Result

from coach.cli import cli
from coach.errors import ConfigurationError
from coach.store import open_embedded

pytestmark = pytest.mark.real_time


def run(tmp_path: Path, *arguments: str) -> Result:
    return CliRunner().invoke(cli, ["limits", *arguments, "--data-dir", str(tmp_path)])


async def test_an_operator_sees_limits_and_changes_them(tmp_path: Path) -> None:
    async with open_embedded(tmp_path):

        async def say(*arguments: str) -> str:
            result = await trio.to_thread.run_sync(run, tmp_path, *arguments)
            assert result.exit_code == 0, (result.output, result.exception)
            return result.output

        async def lines(*arguments: str) -> list[str]:
            return [" ".join(line.split()) for line in (await say(*arguments)).splitlines()]

        assert await lines("show", "--org", "school") == [
            "org requests 6,000 a minute 0 used 6,000 left from the settings",
            "org tokens 6,000,000 a minute 0 used 6,000,000 left from the settings",
        ]
        said = await say("set", "--org", "school", "--each-user", "--tokens", "9_000")
        assert said == "school: was no rule; is each user: 9,000 tokens a minute\n"
        await say("set", "--org", "school", "--user", "ana b", "--requests", "7")
        shown = await lines("show", "--org", "school", "--user", "ana b")
        assert shown[:2] == [
            "user requests 7 a minute 0 used 7 left set for this user",
            "user tokens 9,000 a minute 0 used 9,000 left set for each user",
        ]
        assert shown[-1].startswith("rule for user:ana b: 7 requests a minute, by ")

        record = msgspec.json.decode(await say("show", "--org", "school", "--json"))
        assert [limit["name"] for limit in record["limits"]] == ["org_requests", "org_tokens"]
        assert {rule["whose"] for rule in record["rules"]} == {"users", "user:ana b"}

        said = await say("reset", "--org", "school", "--user", "ana b")
        assert said == "school: was user:ana b: 7 requests a minute; is no rule\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["set", "--org", "o"], "--requests or --tokens"),
        (["set", "--org", "o", "--tokens", "0"], "--tokens 0: a whole number from 1"),
        (["set", "--org", "o", "--requests", "many"], "--requests many"),
        (["set", "--org", "o", "--user", "u", "--each-user", "--tokens", "1"], "not both"),
    ],
    ids=["nothing", "0", "no number", "both"],
)
def test_a_mistake_is_told_before_redis_is_asked(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    result = run(tmp_path, *arguments)
    assert isinstance(result.exception, ConfigurationError)
    assert complaint in str(result.exception)
