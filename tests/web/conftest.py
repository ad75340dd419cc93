"""The browser of these tests ends with them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.browser import close_browser


@pytest.fixture(scope="session", autouse=True)
def _browser() -> Iterator[None]:
    yield
    close_browser()
