"""What workers and graders have in common."""

from __future__ import annotations

import sys

import pytest
import trio

LOWERED = """
import resource
from coach.backend import _raise_file_limit

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
_raise_file_limit()
soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
print(soft == hard)
"""


@pytest.mark.real_time
async def test_a_process_may_open_as_many_files_as_it_is_allowed() -> None:
    done = await trio.run_process([sys.executable, "-c", LOWERED], capture_stdout=True)
    *_, raised, said = done.stdout.splitlines()
    assert b"file_limit_raised" in raised
    assert said == b"True"
