"""What holds in every test of this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
from structlog.typing import EventDict


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What was logged. No session may fail, whatever its student does."""
    with structlog.testing.capture_logs() as entries:
        yield entries
    assert "session_failed" not in [entry["event"] for entry in entries], entries
