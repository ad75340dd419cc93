"""The command line: what an operator gets wrong is one line on standard error and exit code 2."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import jwt
import pytest
import trio

from coach import __version__
from coach.store import open_embedded

pytestmark = pytest.mark.real_time

ROOT = Path(__file__).parent.parent
PROVIDER = """
[[provider]]
name = "p"
base_url = "https://127.0.0.1:1"
model = "m"
api_key = "k"
"""
NO_REDIS = "[redis]\nurl = 'redis://:secret@127.0.0.1:1'\nwait_s = 0.1\n"


MISTAKES: dict[str, tuple[str, list[str], str]] = {
    # name: settings file, arguments, what the line says
    "unknown key": ("[server]\nworkerz = 1", ["serve"], "contains unknown field `workerz`"),
    "unknown section": ("[sever]\nworkers = 1", ["grade"], "contains unknown field `sever`"),
    "wrong type": ("[server]\nworkers = 'many'", ["serve"], "$.server.workers"),
    "out of range": ("[server]\nworkers = 0", ["serve"], "$.server.workers"),
    "bad TOML": ("[server", ["serve"], "is not TOML"),
    "bad bind": ("", ["serve", "--bind", "8000"], "server.bind: '8000' is not host:port"),
    "bad lanes": ("", ["grade", "--lanes", "submission,fast"], "Invalid enum value 'fast'"),
    "hours of students": ("", ["grade", "--hours", "22-06"], "say --lanes background too"),
    "bad hours": (
        "",
        ["grade", "--lanes", "background", "--hours", "22"],
        "write two times of day",
    ),
    "bad zone": (
        "",
        ["grade", "--lanes", "background", "--hours", "22-06", "--time-zone", "Mars"],
        "'Mars' is unknown",
    ),
    "no provider": ("", ["grade"], "no [[provider]] is configured"),
    "no provider for a worker": (NO_REDIS, ["serve", "--bind", "127.0.0.1:0"], "no [[provider]]"),
    "no Redis": (PROVIDER + NO_REDIS, ["grade"], "redis.url: no answer from redis://:***@"),
    "no Redis for a worker": (
        PROVIDER + NO_REDIS,
        ["serve", "--bind", "127.0.0.1:0", "--workers", "2"],
        "redis.url: no answer from redis://:***@127.0.0.1:1",
    ),
    "no certificate": (
        PROVIDER + NO_REDIS + "[server]\ntls_certificate = 'none.pem'\ntls_key = 'none.pem'",
        ["serve", "--bind", "127.0.0.1:0"],
        "server.tls_certificate: cannot read none.pem: No such file or directory",
    ),
    "bad role": ("", ["token", "--role", "king"], "role 'king': one of "),
    "bad rubric": (PROVIDER + "[grading]\nrubric = 'none.toml'", ["grade"], "none.toml"),
}


@pytest.mark.parametrize("name", MISTAKES)
async def test_a_mistake_is_one_line(tmp_path: Path, name: str) -> None:
    text, arguments, expected = MISTAKES[name]
    (tmp_path / "coach.toml").write_text(text)
    done = await coach(*arguments, cwd=tmp_path)
    assert expected in refusal(done)
    assert b"secret" not in done.stderr


async def test_an_option_that_names_nothing_is_one_line(tmp_path: Path) -> None:
    missing = await coach("serve", "--config", str(tmp_path / "none.toml"), cwd=tmp_path)
    assert refusal(missing) == f"cannot read {tmp_path}/none.toml: No such file or directory"
    for command in ("serve", "redis", "token"):
        unwritable = await coach(command, "--data-dir", "/proc/coach", cwd=tmp_path)
        assert "/proc/coach" in refusal(unwritable)


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        line = refusal(await coach("serve", "--bind", bind, cwd=tmp_path))
    assert line.startswith(f"server.bind: {bind}: the port is in use")


async def test_a_token_speaks_for_whom_it_was_made(tmp_path: Path) -> None:
    secret = {"COACH_AUTH__SECRET": "s" * 32}
    done = await coach("token", "--user", "ana", "--org", "school", environ=secret, cwd=tmp_path)
    claims = jwt.decode(done.stdout.strip(), "s" * 32, algorithms=["HS256"])
    assert (claims["sub"], claims["org"], claims["role"]) == ("ana", "school", "student")
    assert (done.returncode, done.stderr) == (0, b"")
    assert not (tmp_path / ".coach").exists()


async def test_flags_are_set_for_all_workers_and_given_back_to_the_settings(
    tmp_path: Path,
) -> None:
    async with open_embedded(tmp_path / "valkey") as server:
        (tmp_path / "coach.toml").write_text(
            f"[redis]\nurl = '{server.url}'\n[rollout]\nbackpressure = 50"
        )
        done = await coach("flags", "set", "pool", "25", cwd=tmp_path)
        assert done.stdout == b"pool: 25 %\n"
        shown = (await coach("flags", "show", cwd=tmp_path)).stdout.decode().splitlines()
        said = dict(line.split()[:2] for line in shown)
        whole = {"shared_limits": "100", "queue": "100"}
        assert said == {"pool": "25", "backpressure": "50", **whole}
        await coach("flags", "reset", "pool", cwd=tmp_path)
        shown = (await coach("flags", "show", cwd=tmp_path)).stdout.decode().splitlines()
        assert "100 %  from the settings" in shown[0]
        assert "there is no flag 'poool'" in refusal(
            await coach("flags", "set", "poool", "1", cwd=tmp_path)
        )


async def test_help_names_every_command_and_the_version_is_the_packages(tmp_path: Path) -> None:
    for arguments in (["--help"], []):
        text = (await coach(*arguments, cwd=tmp_path)).stdout.decode()
        for command in ("serve", "grade", "demo", "redis", "token", "version"):
            assert f" {command} " in text
        assert "│ worker " not in text  # `coach serve` alone starts these
    assert (await coach("version", cwd=tmp_path)).stdout.decode().strip() == __version__


async def coach(
    *arguments: str, cwd: Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Run the command line in `cwd`, in a process of its own that leaves none behind."""
    with trio.fail_after(20):
        return await trio.run_process(
            [sys.executable, "-m", "coach", *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environ or {})},
        )


def refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    """The one line of a command that was refused."""
    said = done.stderr.decode()
    assert done.returncode == 2, said
    assert done.stdout == b""
    assert said.startswith("coach: "), said
    assert said.count("\n") == 1, said
    return said.removeprefix("coach: ").strip()
