"""`coach evaluate` over real sockets: judges of a simulated provider, and a class's essays."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
import trio
from typer.testing import CliRunner

from coach.cli import cli
from coach.errors import ConfigurationError
from coach.simulator.corpus import LEVELS, load_essays
from coach.store import open_embedded
from tests.support.stack import open_simulator
from tests.test_cli import PROVIDER, coach, refusal

pytestmark = pytest.mark.real_time

JUDGES = ("opus", "sonnet", "mini")
SCALE = ("--min", "1", "--max", "4")


def write_essays(path: Path) -> int:
    """The simulated students' essays with the level that each is written at, 1 to 4; how many."""
    essays = load_essays()
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "essay", "score", "score2"])
        for number, essay in enumerate(essays):
            level = LEVELS.index(essay.level) + 1
            second = min(4, max(1, level + (number % 3 == 0)))
            table.writerow([essay.name, essay.text, level, second])
    return len(essays)


async def test_scored_essays_are_judged_once_and_compared(tmp_path: Path) -> None:
    count = write_essays(tmp_path / "essays.csv")
    quick = ("--judge-ms", "40")
    async with open_embedded(tmp_path) as redis, open_simulator(tmp_path, *quick) as url:
        providers = "".join(
            f'[[provider]]\nname = "{name}"\nbase_url = "{url}"\nmodel = "sim-1"\n'
            f'api_key = "test"\nca_file = "{tmp_path}/simulator-ca.pem"\n'
            for name in JUDGES
        )
        settings = f'data_dir = "{tmp_path}"\n{providers}[redis]\nurl = "{redis.url}"\n'
        (tmp_path / "coach.toml").write_text(settings)

        async def evaluate(*options: str) -> str:
            done = await coach("evaluate", "essays.csv", *SCALE, *options, cwd=tmp_path)
            assert done.returncode == 0, done.stderr.decode()
            return done.stdout.decode()

        said = await evaluate("--limit", "4")
        assert "mini + opus + sonnet" in said
        planned = json.loads(await evaluate("--dry-run", "--json"))
        assert (planned["essays"], planned["answers"]) == (count, 3 * (count - 4))
        assert planned["measured"]
        found = json.loads(await evaluate("--json"))
    assert found["spent"]["asked_now"] == 3 * (count - 4)
    assert {each["answers"] for each in found["spent"]["judges"].values()} == {count}
    assert all(float(each["cost"]) > 0 for each in found["spent"]["judges"].values())
    assert len(found["panels"]) == 7
    assert found["panels"][-1]["all"]["qwk"] > 0.3
    assert found["ceilings"]["human"] < found["ceilings"]["perfect"] <= 1
    assert (tmp_path / found["plot"]).read_bytes().startswith(b"\x89PNG")


MISTAKES = {
    "no file": (["none.csv"], "none.csv: cannot read it: No such file"),
    "no columns": (["bad.csv"], "bad.csv: the first line must name the columns"),
    "no scale": (["essays.csv", "--min", "4", "--max", "1"], "set --min, --max and --step"),
    "no assignment": (["essays.csv", *SCALE, "--assignment", "x"], "no assignment 'x'"),
    "no task": (["essays.csv", *SCALE, "--task", "@none"], "cannot read the file"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments, said = MISTAKES[name]
    monkeypatch.chdir(tmp_path)
    write_essays(tmp_path / "essays.csv")
    (tmp_path / "bad.csv").write_text("text,mark\nx,1\n")
    (tmp_path / "coach.toml").write_text(PROVIDER)
    told = CliRunner().invoke(cli, ["evaluate", *arguments]).exception
    assert isinstance(told, ConfigurationError)
    assert said in str(told)
    assert "\n" not in str(told)


async def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    write_essays(tmp_path / "essays.csv")
    (tmp_path / "coach.toml").write_text(PROVIDER)
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'sklearn' else find(name, *rest)\n"
    )
    path = {"PYTHONPATH": f"{hidden}:{Path(__file__).parents[2]}"}
    done = await coach("evaluate", "essays.csv", *SCALE, cwd=tmp_path, environ=path)
    assert refusal(done).endswith("pip install 'coach[evaluate]'")


async def test_the_command_line_starts_without_it(tmp_path: Path) -> None:
    """NumPy alone would make every command a sixth of a second slower."""
    probe = "import sys, coach.cli, coach.graders; print('numpy' in sys.modules)"
    done = await trio.run_process([sys.executable, "-c", probe], capture_stdout=True)
    assert done.stdout.strip() == b"False"
