"""Pings that keep a prefix in a provider's cache over a pause, where that is worth its price.

**The rule.** A ping reads the prefix and writes one token:

    ping   = tokens x read + 1 x output
    saving = tokens x (write - read) x p,   p = 1 - exp(-arrivals / HORIZON_LIVES)

Without it, the first request after the entry's end pays a write; with it, a read, if it comes
within the next life: with probability p. `arrivals` are the cluster's requests for the prefix, each
counting exp(-age / horizon) with a horizon of HORIZON_LIVES lives. At a steady rate that is the
rate times the horizon, and in a pause it falls by itself, so p is taken from how often they come,
the present silence included. With Anthropic's multipliers (write 1.25, read 0.1, output 5 times
the input) and 1,500 tokens, a ping costs 155 token prices and saves 1,725 x p: it pays from p =
0.09, that is from 0.19 arrivals on. One student who has asked three times is kept warm for some 28
minutes, a class of thirty for 51; an entry of an hour (write 2.0, saving 2,850 x p) accordingly
longer.

**Who.** One worker of the cluster for each prefix (cache_ping.lua), only while a session that has
used it is open, and shortly before the entry ends, since any request before that refreshes it at
no extra cost. A ping stands in the background lane: where students fill the quota, it gives way.

**Where.** Anthropic, whose entries live for a documented time and are refreshed by a read. The
one token is asked for since `max_tokens: 0`, which Anthropic documents for warming, is refused by
gateways and together with a JSON schema. OpenAI drops entries by its own load, 5 minutes to an hour
after their last use, keeps them for 24 hours where the model allows it, and charges nothing, or as
for input, to write: nobody can say what a ping would save, and coach sends none.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, Protocol, final

import structlog
import trio

from ..errors import CoachError
from ..ops import metrics
from ..store import RedisError
from .cacheable import CachePrice, Terms
from .records import Block, Message, Prompt
from .warmth import HORIZON_LIVES, Prefix, Warmth

if TYPE_CHECKING:
    from .records import Usage

log = structlog.get_logger()

PINGS_MAX: Final = 4
"""Of one endpoint and worker, at once."""
RETRY_S: Final = 1.0
CHARACTERS_MANY: Final = 5
"""A token has at most so many, while nobody has counted a prefix."""
PING_OUTPUT_TOKENS: Final = 1


class Ping(Protocol):
    """Sends a ping within the budget and books what it cost."""

    def __call__(self, prompt: Prompt, *, org: str) -> Awaitable[Usage | None]:
        """Ask; None: it was not sent, or not answered.

        Cancellation: what was reserved is given back, what was sent is settled.

        Raises:
          CoachError, RedisError: as sending does.
        """


def arrivals_min(price: CachePrice, tokens: int) -> float:
    """So many arrivals pay for a ping; `inf`: none do. The rule stands at the head of this file.

    Args:
      price: of the model.
      tokens: of the prefix, 0 or more.
    """
    ping = tokens * price.read + PING_OUTPUT_TOKENS * price.output
    saving = tokens * (price.write - price.read)
    if ping >= saving:
        return math.inf
    return -math.log1p(-ping / saving) * HORIZON_LIVES


def ping_prompt(prefix: Prefix) -> Prompt:
    """The prefix and as little as can be asked behind it."""
    return Prompt(
        system=prefix.system,
        messages=(Message("user", (Block("."),)),),
        output_tokens_max=PING_OUTPUT_TOKENS,
        schema=prefix.schema,
    )


@final
class KeepWarm:
    """The service that pings, for one endpoint in one worker."""

    def __init__(self, warmth: Warmth, terms: Terms, price: CachePrice, ping: Ping) -> None:
        self._warmth = warmth
        self._terms = terms
        self._price = price
        self._ping = ping
        self._slots = trio.Semaphore(PINGS_MAX)

    async def run(self) -> None:
        """Ping what is due, until cancelled. Sleeps until then."""
        async with trio.open_nursery() as nursery:
            while True:
                changed = self._warmth.changed
                due, next_at = self._warmth.due()
                for prefix in due:
                    prefix.pinging = True
                    prefix.ping_at = math.inf
                    nursery.start_soon(self._consider, prefix)
                with trio.CancelScope(deadline=next_at):
                    await changed.wait()

    async def _consider(self, prefix: Prefix) -> None:
        try:
            async with self._slots:
                retry_s = await self._consider_now(prefix)
            if retry_s is not None:
                prefix.ping_at = min(prefix.ping_at, trio.current_time() + retry_s)
        finally:
            prefix.pinging = False
            self._warmth.wake()

    async def _consider_now(self, prefix: Prefix) -> float | None:
        """Ping it if it is this worker's to do and pays; gives when to think again, in seconds."""
        worth = arrivals_min(self._price, prefix.tokens or prefix.size // CHARACTERS_MANY)
        try:
            answer, left_s = await self._warmth.claim(prefix, arrivals_min=worth)
        except RedisError as error:
            log.warning("ping_not_claimed", endpoint=self._warmth.endpoint, error=str(error))
            return RETRY_S
        if answer == "ping":
            await self._send(prefix, left_s)
            return None
        if answer in ("later", "taken"):
            ahead_s = self._terms.ping_ahead_s
            return max(left_s - ahead_s, 0.0) + (ahead_s / 2 if answer == "taken" else 0.0)
        metrics.cache_pings_total.labels(self._warmth.endpoint, answer).inc()
        return None

    async def _send(self, prefix: Prefix, left_s: float) -> None:
        """Ping, if its turn comes before the entry ends."""
        org = next(reversed(prefix.interests)).org if prefix.interests else ""
        outcome, usage = "late", None
        try:
            with trio.move_on_after(left_s):
                usage = await self._ping(ping_prompt(prefix), org=org)
        except (CoachError, RedisError) as error:
            outcome = "failed"
            log.warning("ping_failed", endpoint=self._warmth.endpoint, error=str(error))
        if usage is not None:
            outcome = "read" if usage.cache_read else "write" if usage.cache_write else "plain"
            self._warmth.pinged(prefix, usage)
            for kind in ("input", "cache_write", "cache_read", "output"):
                count = getattr(usage, kind)
                metrics.cache_ping_tokens_total.labels(self._warmth.endpoint, kind).inc(count)
        metrics.cache_pings_total.labels(self._warmth.endpoint, outcome).inc()


def keep_warm(
    terms: Terms, price: CachePrice, ping: Ping
) -> Callable[[Warmth], Callable[[], Awaitable[None]]]:
    """What `open_warmth` takes as `keep`."""
    return lambda warmth: KeepWarm(warmth, terms, price, ping).run
