"""The simulator's authority outlives it: clients need no new certificate for the next one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coach.errors import ConfigurationError
from coach.simulator.authority import CA_NAME, KEY_NAME, server_context


def test_the_next_simulator_has_the_same_authority(tmp_path: Path) -> None:
    server_context(tmp_path)
    first = (tmp_path / CA_NAME).read_bytes()
    server_context(tmp_path)
    assert (tmp_path / CA_NAME).read_bytes() == first
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o077 == 0


def test_simulators_that_start_together_share_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(server_context, [tmp_path / "new"] * 4))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [KEY_NAME, CA_NAME]


def test_what_cannot_be_used_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / KEY_NAME).write_text("no key")
    with pytest.raises(ConfigurationError, match=r"simulator-ca\.key is damaged: remove it"):
        server_context(tmp_path)
    with pytest.raises(ConfigurationError, match="cannot write to"):
        server_context(tmp_path / KEY_NAME)
