"""The limits of users and orgs, counted by each worker for itself.

For the flag `shared_limits`: servers that share no state count so, and with three processes let
through up to three times what the limits say. A window slides exactly, as the shared one does, and
what is settled counts as used; rules that operators have set in Redis are not known here.

Memory: some 200 bytes for each request of the last minute, and nothing for whoever made none.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final, final

import attrs
import trio

from .. import config
from ..ops import metrics
from .limit_scripts import NAMES, Over
from .limits import COUNTS_S, Reservation, refusal
from .rules import limits_in
from .scripts import Patience

WINDOWS_KEPT: Final = 1_000
"""Beyond so many, and twice as many as were left the last time, empty ones are looked for."""


@final
class LocalLimits:
    """Like `UserLimits`, without Redis: one for each worker."""

    def __init__(self, settings: config.Limits) -> None:
        self._is_enforced = settings.mode == "enforce"
        self._limits: Final = dict(zip(NAMES, limits_in(settings), strict=True))
        self._windows: dict[tuple[str, str | None], _Window] = {}
        # by org and user; user None: the org's own. Empty ones are dropped now and then
        self._windows_max = WINDOWS_KEPT

    @asynccontextmanager
    async def reserve(
        self,
        *,
        user: str,
        org: str,
        tokens: int,
        tokens_least: int = 0,
        patience: Patience | None = None,
    ) -> AsyncIterator[Reservation]:
        """As `UserLimits.reserve`, in this process' windows alone. Never `Overloaded`."""
        del patience  # there is nothing to wait for
        await trio.lowlevel.checkpoint()
        limits, now_s = self._limits, trio.current_time()
        whole = min(limits["user_tokens"], limits["org_tokens"])
        if self._is_enforced:
            tokens = min(tokens, max(whole, tokens_least))
        if len(self._windows) > self._windows_max:
            self._drop_empty(now_s)
        windows = {"user": self._window(org, user), "org": self._window(org, None)}
        if self._is_enforced and (over := self._over(windows, tokens, now_s)) is not None:
            metrics.limit_refusals_total.labels(over.limit, "enforce").inc()
            raise refusal(over, tokens_least)
        entries = [(window, window.add(tokens, now_s)) for window in windows.values()]
        reservation = Reservation(tokens)
        try:
            yield reservation
        finally:
            for window, entry in entries:
                window.settle(entry, reservation.used)

    def _over(self, windows: dict[str, _Window], tokens: int, now_s: float) -> Over | None:
        """The first limit that a request of so many tokens would pass; None: it fits."""
        for name, most in self._limits.items():
            owner, unit = name.split("_")
            window, ask = windows[owner], tokens if unit == "tokens" else 1
            window.slide(now_s)
            used = window.tokens if unit == "tokens" else window.requests
            if used + ask > most:
                retry_s = None if ask > most else window.frees_s(unit, used + ask - most, now_s)
                return Over(limit=name, most=most, left=max(0, most - used), retry_s=retry_s)
        return None

    def _window(self, org: str, user: str | None) -> _Window:
        return self._windows.setdefault((org, user), _Window())

    def _drop_empty(self, now_s: float) -> None:
        for key, window in list(self._windows.items()):
            window.slide(now_s)
            if not window.entries:
                del self._windows[key]
        self._windows_max = max(WINDOWS_KEPT, 2 * len(self._windows))


@attrs.define(eq=False)
class _Entry:
    at_s: float
    tokens: int
    requests: int = 1


@attrs.define(eq=False)
class _Window:
    """The last minute of one user or org; totals are those of the entries."""

    entries: deque[_Entry] = attrs.field(factory=deque)
    requests: int = 0
    tokens: int = 0

    def slide(self, now_s: float) -> None:
        """Forget what is a minute old."""
        while self.entries and self.entries[0].at_s <= now_s - COUNTS_S:
            self._change(self.entries.popleft(), requests=0, tokens=0)

    def add(self, tokens: int, now_s: float) -> _Entry:
        """Count a request."""
        entry = _Entry(now_s, tokens)
        self.entries.append(entry)
        self.requests += 1
        self.tokens += tokens
        return entry

    def settle(self, entry: _Entry, used: int | None) -> None:
        """Count what was used instead; None: nothing was sent. What has slid out stays out."""
        if entry.requests:
            self._change(entry, requests=0 if used is None else 1, tokens=used or 0)

    def frees_s(self, unit: str, much: int, now_s: float) -> float:
        """How long it takes until so much has slid out, as it looks now."""
        for entry in self.entries:
            much -= entry.tokens if unit == "tokens" else entry.requests
            if much <= 0:
                return entry.at_s + COUNTS_S - now_s
        return COUNTS_S

    def _change(self, entry: _Entry, *, requests: int, tokens: int) -> None:
        self.requests += requests - entry.requests
        self.tokens += tokens - entry.tokens
        entry.requests, entry.tokens = requests, tokens
