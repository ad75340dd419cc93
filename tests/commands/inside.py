"""The command line within the test's process: a new one takes half a second to start."""

from __future__ import annotations

from functools import partial

import trio
from typer.testing import CliRunner

from coach.cli import cli


async def says(*arguments: str) -> str:
    """What a command prints on standard output.

    Raises:
      CoachError: what the operator would be told in one line.
    """
    run = partial(CliRunner().invoke, cli, arguments, catch_exceptions=False)
    done = await trio.to_thread.run_sync(run)
    assert done.exit_code == 0, done.output
    return done.stdout
