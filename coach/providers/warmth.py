"""Which prefixes a provider's cache holds, and who asks first for one that it does not hold yet.

A provider writes a prefix into its cache when the response to the first request begins. When a
class starts together, thirty requests before that moment pay for thirty writes. So one request in
the whole cluster leads, and the others follow when its response has begun, or failed, or after
`cache.lead_s_max`, whichever comes first.

    unknown ──first visit──> led ──the response begins──> warm ──its life ends──> unknown
                              │ ^
             the leader fails │ │ the leader is cancelled: a follower leads
                  v           │ │
       everybody goes       followers wait here

Within a worker that takes no round trip but the leader's; for a prefix that the worker knows to be
warm, none at all. Between workers it is a lease in Redis (cache_lead.lua), so a leader that dies is
followed no longer than that. Without Redis each worker has a leader of its own.

That something is cached is believed, never relied on: a provider may drop what it likes, and what
was read or written is known by the answer's own figures. A prefix that was seen not to be cached,
since it is too short for the model, is not waited for again for a while.

Memory: `prefixes_max` prefixes of some 10 KB, their text, which a ping needs (keepwarm.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, final

import attrs
import msgspec
import structlog
import trio

from ..nurseries import running
from ..ops import metrics
from ..store import Redis, RedisError, script
from .records import BYTES_PER_TOKEN, size_of

if TYPE_CHECKING:
    from .. import config
    from .cacheable import Terms
    from .records import Block, Prompt, Usage

log = structlog.get_logger()

LEASE_PER_WAIT: Final = 2.0
"""The lease of a leader, in times the longest wait: its first token may take longer than that."""
MARGIN_SHARE: Final = 0.04
"""Of an entry's life; what is left of it then counts as gone: clocks and ways differ."""
SURE_SHARE: Final = 0.2
"""Of an entry's life that must be left before anybody counts on reading it."""
TOLD_PER_LIFE: Final = 10
"""How often in an entry's life a worker that uses it says so."""
PLAIN_S: Final = 600.0
"""How long a prefix that was seen not to be cached is taken for one that never is."""
HORIZON_LIVES: Final = 2.0
"""How long requests are remembered, in lives of an entry: the time in which they fade to 1/e."""
RETRY_S: Final = 0.5

How = Literal["warm", "failed", "dropped"]
Answer = Literal["ping", "later", "taken", "poor", "cold"]
Tail = Literal["none", "new", "old"]
"""What of a prompt is cached behind the prefix: nothing; what nobody has asked with before; perhaps
a conversation that is held already."""


@attrs.define(eq=False)
class Interest:
    """Somebody who may come back to the prefixes they have used: a session that is open."""

    org: str
    _prefixes: dict[Prefix, None] = attrs.field(factory=dict)  # empty, it is smaller than a set

    def take(self, prefix: Prefix) -> None:
        """It has asked with this prefix."""
        self._prefixes[prefix] = None
        prefix.interests[self] = None

    def close(self) -> None:
        """It will not come back. May be said twice."""
        for prefix in self._prefixes:
            prefix.interests.pop(self, None)
        self._prefixes.clear()


@attrs.define(eq=False)
class Prefix:
    """A prompt's beginning at one endpoint, as one worker knows it. Times are trio's."""

    key: str
    system: tuple[Block, ...]
    schema: Any
    size: int
    warm_until: float = -inf
    """Until then the provider's cache holds it, less the margin; as far as is known."""
    began_at: float = -inf
    """When the last response to it began."""
    tokens: int = 0
    """Of what was read or written, as last counted where it was nothing else; 0: not yet."""
    plain_until: float = -inf
    """Until then the provider does not cache it, whatever is asked."""
    taken: bool = False
    """Somebody in this worker leads, or finds out in Redis who does."""
    leased: bool = False
    """Redis may have this worker as the leader."""
    waiting: int = 0
    """Followers in this worker."""
    released: int = 0
    """How often everybody was told to go without waiting for more."""
    changed: trio.Event = attrs.field(factory=trio.Event)
    """Set, and replaced, when any of the above should be looked at again."""
    arrivals: int = 0
    """Requests that Redis was not told of."""
    told_at: float = -inf
    interests: dict[Interest, None] = attrs.field(factory=dict)
    """Who may come back, in the order in which they last came."""
    ping_at: float = inf
    """When to think about a ping."""
    pinging: bool = False

    def notify(self) -> None:
        """Have everybody look again."""
        self.changed.set()
        self.changed = trio.Event()


@attrs.frozen(kw_only=True)
class WarmthStatistics:
    """An endpoint's prefixes as this worker knows them."""

    prefixes: int
    warm: int
    waiting: int


@final
class Visit:
    """One request with a prefix; lent out by `Warmth.visit`. No method is a checkpoint."""

    __slots__ = ("_ended", "_prefix", "_tail", "_warmth", "leads")

    def __init__(self, warmth: Warmth, prefix: Prefix | None, *, tail: Tail) -> None:
        self._warmth = warmth
        self._prefix = prefix
        self._tail = tail
        self._ended = prefix is None  # the first word counts
        self.leads = False
        """Others wait for this one: its answer should be streamed, to know early that it begins."""

    def began(self, usage: Usage) -> None:
        """The response has begun.

        Args:
          usage: what the provider has counted so far.
        """
        if not self._ended and self._prefix is not None:
            self._ended = True
            self._warmth._began(self._prefix, usage, tail=self._tail, leads=self.leads)  # noqa: SLF001  made there

    def failed(self) -> None:
        """There will be no response: who waits for it should not wait for another one."""
        if not self._ended and self._prefix is not None:
            self._ended = True
            if self.leads:
                self._warmth._release(self._prefix)  # noqa: SLF001  likewise

    def left(self) -> None:
        """It is over; without a word before, somebody else may lead. Said last."""
        if not self._ended and self._prefix is not None:
            self._ended = True
            if self.leads:
                self._warmth._hand_on(self._prefix)  # noqa: SLF001  likewise


@final
class Warmth:
    """The prefixes of one endpoint in one worker; lent out by `open_warmth`."""

    def __init__(
        self,
        redis: Redis,
        *,
        endpoint: str,
        model: str,
        terms: Terms | None,
        settings: config.Cache,
        worker: str,
    ) -> None:
        self.endpoint = endpoint
        self.terms = terms
        self.changed = trio.Event()
        """Set, and replaced, when a prefix's `ping_at` has moved."""
        self._redis = redis
        self._model = model
        self._settings = settings
        self._worker = worker
        self._prefixes: OrderedDict[str, Prefix] = OrderedDict()
        """By key, the longest unused first."""
        self._news: dict[Prefix, How] = {}
        """What Redis is still to be told; the last word counts."""
        self._something = trio.Event()
        """Set while there are news."""

    def statistics(self) -> WarmthStatistics:
        """How many there are."""
        now = trio.current_time()
        prefixes = self._prefixes.values()
        return WarmthStatistics(
            prefixes=len(prefixes),
            warm=sum(prefix.warm_until > now for prefix in prefixes),
            waiting=sum(prefix.waiting for prefix in prefixes),
        )

    @asynccontextmanager
    async def visit(self, prompt: Prompt, interest: Interest | None = None) -> AsyncIterator[Visit]:
        """Wait until the request may be sent: at once, unless another one leads.

        A checkpoint only where the prefix is not known to be warm. Waits `cache.lead_s_max` at
        most, Redis included, and raises nothing: at worst a prefix is written twice.

        Args:
          prompt: what will be asked.
          interest: who asks, where they may come back.

        Cancellation: a follower leaves no trace; a leader's place is another's at once.
        """
        prefix = self._find(prompt)
        visit = Visit(self, prefix, tail=_tail_of(prompt))
        if prefix is not None:
            prefix.arrivals += 1
            if interest is not None:
                interest.take(prefix)
        try:
            if prefix is not None and self._is_led(prefix):
                await self._enter(prefix, visit)
            yield visit
        finally:
            visit.left()

    def expected_read(self, prompt: Prompt) -> int:
        """Tokens that this prompt will read from the cache and that will not count, or 0.

        Not more than the provider has counted itself, and only where it is sure to hold them for
        a while. Where it does not after all, the first response says so, and nobody counts on it.
        """
        if self.terms is None or not self.terms.spares_quota:
            return 0
        prefix = self._prefixes.get(self._key(prompt))
        if prefix is None:
            return 0
        sure_until = prefix.warm_until - self.terms.ttl_s * SURE_SHARE
        return prefix.tokens if trio.current_time() < sure_until else 0

    # -- for the one who keeps it warm ---------------------------------------------------------

    def due(self) -> tuple[list[Prefix], float]:
        """Prefixes that somebody may come back to and whose life ends soon; when the next does."""
        now, due, next_at = trio.current_time(), list[Prefix](), inf
        for prefix in self._prefixes.values():
            if prefix.pinging or not prefix.interests:
                continue
            if prefix.ping_at <= now:
                due.append(prefix)
            else:
                next_at = min(next_at, prefix.ping_at)
        return due, next_at

    async def claim(self, prefix: Prefix, *, arrivals_min: float) -> tuple[Answer, float]:
        """Ask Redis for leave to ping.

        Args:
          prefix: of this endpoint.
          arrivals_min: so many requests, as Redis remembers them, pay for a ping.

        Returns:
          The answer of cache_ping.lua, and for how many seconds the prefix is warm.

        Raises:
          RedisError: no answer.
        """
        assert self.terms is not None
        arrivals, prefix.arrivals = prefix.arrivals, 0
        reply, left_ms = await script("cache_ping")(
            self._redis,
            self._keys(prefix)[:1],
            [
                self._worker,
                _ms(self.terms.ping_ahead_s),
                _ms(self.terms.ping_ahead_s / 2),
                arrivals,
                self._horizon_ms,
                round(min(arrivals_min, 1e9) * 1000),
            ],
        )
        answer: Answer = reply.decode()
        if answer == "later":
            self._is_warm(prefix, left_ms / 1000)
        return answer, left_ms / 1000

    def wake(self) -> None:
        """Have the one who pings look again."""
        self.changed.set()
        self.changed = trio.Event()

    def pinged(self, prefix: Prefix, usage: Usage) -> None:
        """A ping was answered."""
        self._began(prefix, usage, tail="none", leads=False)

    # -- the service -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Tell Redis what there is to tell, until cancelled."""
        while True:
            await self._something.wait()
            while self._news:
                prefix = next(iter(self._news))
                how = self._news.pop(prefix)
                if how != "warm" and prefix.taken:
                    continue  # somebody here leads again
                try:
                    await self._tell(prefix, how)
                except RedisError as error:
                    log.warning("cache_not_told", endpoint=self.endpoint, error=str(error))
                    await trio.sleep(RETRY_S)
            self._something = trio.Event()

    async def _tell(self, prefix: Prefix, how: How) -> None:
        assert self.terms is not None
        arrivals, prefix.arrivals = prefix.arrivals, 0
        age_s = trio.current_time() - prefix.began_at if how == "warm" else 0.0
        await script("cache_tell")(
            self._redis,
            self._keys(prefix),
            [
                *(self._worker, how, min(3_600_000, _ms(age_s)), _ms(self.terms.ttl_s)),
                *(arrivals, self._horizon_ms),
            ],
        )

    # -- who leads -------------------------------------------------------------------------------

    def _is_led(self, prefix: Prefix) -> bool:
        now = trio.current_time()
        return self._settings.single_flight and now >= max(prefix.warm_until, prefix.plain_until)

    async def _enter(self, prefix: Prefix, visit: Visit) -> None:
        """Lead, or wait for who does."""
        began_at, released = trio.current_time(), prefix.released
        prefix.waiting += 1
        try:
            with trio.move_on_after(self._settings.lead_s_max):
                while self._is_led(prefix) and prefix.released == released:
                    if prefix.taken:
                        await prefix.changed.wait()
                    elif await self._take(prefix):
                        visit.leads = True
                        break
        finally:
            prefix.waiting -= 1
            self._give_up_lease(prefix)
        if visit.leads:
            metrics.cache_leaders_total.labels(self.endpoint).inc()
            return
        how = "late" if self._is_led(prefix) else "warm"
        how = "released" if prefix.released != released else how
        metrics.cache_followers_total.labels(self.endpoint, how).inc()
        metrics.cache_wait_seconds.observe(trio.current_time() - began_at)

    async def _take(self, prefix: Prefix) -> bool:
        """Find out in Redis who leads; True: this request. Otherwise returns when that has ended.

        Without Redis this worker's first one leads the others here.
        """
        terms = self.terms
        assert terms is not None
        prefix.taken = prefix.leased = True
        leads = False
        try:
            try:
                reply = await script("cache_lead")(
                    self._redis,
                    self._keys(prefix),
                    [
                        self._worker,
                        _ms(self._settings.lead_s_max * LEASE_PER_WAIT),
                        _ms(terms.ttl_s * MARGIN_SHARE),
                    ],
                )
                if reply[0] == b"lead":
                    leads = True
                else:
                    prefix.leased = False
                    await self._follow(prefix, reply)
            except RedisError as error:
                log.warning("cache_leads_alone", endpoint=self.endpoint, error=str(error))
                leads, prefix.leased = True, False
        finally:
            if not leads:
                prefix.taken = False
                prefix.notify()
        return leads

    async def _follow(self, prefix: Prefix, reply: list[Any]) -> None:
        """Wait for another worker's leader, if there is one."""
        if reply[0] == b"warm":
            self._is_warm(prefix, reply[1] / 1000)
            return
        _, lease_ms, last_id = reply
        _, told = self._keys(prefix)
        streams: Any = await self._redis.execute_command(
            "XREAD", "COUNT", 1, "BLOCK", max(1, lease_ms), "STREAMS", told, last_id
        )
        for entries in (streams or {}).values():
            for _, fields in entries:
                if fields[b"how"] == b"warm":
                    self._is_warm(prefix, int(fields[b"left"]) / 1000)
                elif fields[b"how"] == b"failed":
                    prefix.released += 1

    def _is_warm(self, prefix: Prefix, left_s: float) -> None:
        """Another worker has said so."""
        assert self.terms is not None
        until = trio.current_time() + left_s - self.terms.ttl_s * MARGIN_SHARE
        prefix.warm_until = max(prefix.warm_until, until)

    def _began(self, prefix: Prefix, usage: Usage, *, tail: Tail, leads: bool) -> None:
        terms = self.terms
        assert terms is not None
        now = trio.current_time()
        held = usage.cache_read + usage.cache_write
        if terms.counts_at_start:
            what = "read" if usage.cache_read else "write" if usage.cache_write else "plain"
            metrics.cache_requests_total.labels(self.endpoint, what).inc()
            if not held:
                prefix.plain_until, prefix.warm_until, prefix.tokens = now + PLAIN_S, -inf, 0
                if leads:
                    self._release(prefix)
                return
            prefix.plain_until = -inf
            if tail == "none":
                prefix.tokens = held
            elif tail == "new" and usage.cache_read and usage.cache_write:
                prefix.tokens = usage.cache_read  # what it wrote is its own
        prefix.began_at = now
        prefix.warm_until = now + terms.ttl_s * (1 - MARGIN_SHARE)
        prefix.ping_at = now + terms.ttl_s - terms.ping_ahead_s if terms.may_ping else inf
        if leads:
            prefix.taken = False
        prefix.leased = False
        prefix.notify()
        self.wake()
        if leads or now - prefix.told_at >= terms.ttl_s / TOLD_PER_LIFE:
            prefix.told_at = now
            self._tell_soon(prefix, "warm")

    def _release(self, prefix: Prefix) -> None:
        """The leader has failed: let everybody go."""
        prefix.released += 1
        prefix.taken = prefix.leased = False
        prefix.notify()
        self._tell_soon(prefix, "failed")

    def _hand_on(self, prefix: Prefix) -> None:
        """The leader is gone: a follower here leads, as this worker has the lease, or anybody."""
        prefix.taken = False
        prefix.notify()
        self._give_up_lease(prefix)

    def _give_up_lease(self, prefix: Prefix) -> None:
        if prefix.leased and not prefix.taken and not prefix.waiting:
            prefix.leased = False
            self._tell_soon(prefix, "dropped")

    # -- inside ----------------------------------------------------------------------------------

    @property
    def _horizon_ms(self) -> int:
        assert self.terms is not None
        return _ms(self.terms.ttl_s * HORIZON_LIVES)

    def _tell_soon(self, prefix: Prefix, how: How) -> None:
        self._news.pop(prefix, None)
        self._news[prefix] = how
        self._something.set()

    def _key(self, prompt: Prompt) -> str:
        digest = blake2b(digest_size=16)
        for part in (self._model, prefix_digest(prompt)):
            digest.update(b"%d:%b" % (len(part), part.encode("utf-8", "surrogatepass")))
        return digest.hexdigest()

    def _keys(self, prefix: Prefix) -> tuple[str, str]:
        name = f"cache:{{{self.endpoint}:{prefix.key}}}"
        return name, f"{name}:told"

    def _find(self, prompt: Prompt) -> Prefix | None:
        """The prompt's prefix; None: it is not cached, or as many are known as may be."""
        if self.terms is None or not (prompt.system and prompt.system[-1].cache):
            return None
        size = sum(size_of(block.text) for block in prompt.system)
        if size / BYTES_PER_TOKEN < self.terms.tokens_min:
            return None
        key = self._key(prompt)
        prefix = self._prefixes.get(key)
        if prefix is None:
            if len(self._prefixes) >= self._settings.prefixes_max and not self._forget_one():
                return None
            prefix = Prefix(key, prompt.system, prompt.schema, size)
            self._prefixes[key] = prefix
        self._prefixes.move_to_end(key)
        return prefix

    def _forget_one(self) -> bool:
        for key, prefix in self._prefixes.items():
            if not (prefix.taken or prefix.waiting or prefix.interests or prefix in self._news):
                del self._prefixes[key]
                return True
        return False


@asynccontextmanager
async def open_warmth(
    redis: Redis,
    *,
    endpoint: str,
    model: str,
    terms: Terms | None,
    settings: config.Cache,
    worker: str,
    keep: Callable[[Warmth], Any] | None = None,
) -> AsyncIterator[Warmth]:
    """Open what one worker knows of an endpoint's cache; needs Redis neither to enter nor to leave.

    Args:
      redis: where all workers meet.
      endpoint: its name, the same in all workers.
      model: the one that is asked there: caches of models are apart.
      terms: how it caches; None: it does not, or nobody knows.
      settings: how long to wait.
      worker: unique to one run of one process.
      keep: makes a service of it that runs beside, until the block ends (keepwarm.py).
    """
    warmth = Warmth(
        redis, endpoint=endpoint, model=model, terms=terms, settings=settings, worker=worker
    )

    async def serve() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(warmth.run)
            if keep is not None and terms is not None:
                nursery.start_soon(keep(warmth))

    async with running(serve):
        yield warmth


def _tail_of(prompt: Prompt) -> Tail:
    if not any(block.cache for message in prompt.messages for block in message.blocks):
        return "none"
    return "new" if len(prompt.messages) == 1 else "old"


def prefix_digest(prompt: Prompt) -> str:
    """A name for what stands before the messages: the same for the same text and schema."""
    digest = blake2b(digest_size=16)
    for block in prompt.system:
        data = block.text.encode("utf-8", "surrogatepass")
        digest.update(b"%d:%b" % (len(data), data))
    if prompt.schema is not None:
        digest.update(msgspec.json.encode(prompt.schema))
    return digest.hexdigest()


def _ms(seconds: float) -> int:
    return max(0, round(seconds * 1000))
