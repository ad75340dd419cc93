"""Bulk work by providers' batch APIs: judges' answers at half the price, within a day.

A batch answers for judges before an essay goes into the queue; a grader then asks live only those
that have not answered: what has expired, was refused or is no use. Essays of a job are cut into
chunks, and each provider gets a batch of each chunk:

    (not asked) ──> asking ──> batch <id> ──> done
                     └── whoever asked has died: look at the provider what became of it

Each arrow is a compare-and-set in Redis (bulk_swap.lua), so that one process asks. Neither provider
has an idempotency key: "asking" is written before, and after a death the provider's own list says
whether a batch came in; only when it surely has not, another is asked. Costs of an answer are
booked by whoever stores it first.

Memory: the requests of one chunk, CHUNK_BYTES at most, and its results.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final, final

import msgspec
import structlog
import trio

from ..ops import metrics
from ..providers import BatchRequest, ProviderError
from ..store import script
from .answers import InvalidAnswer
from .records import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from .. import config
    from ..ops import Costs
    from ..providers import BatchApi, BatchResult
    from ..store import Redis
    from .bulk import BulkJob
    from .judges import Judge
    from .queue import Queue
    from .rubric import Rubric

log = structlog.get_logger()

CHUNK_ESSAYS: Final = 500
CHUNK_BYTES: Final = 2_000_000
"""Of requests, at a guess. Providers take a hundred times as much, but all or nothing."""
SEATS_MAX: Final = 9
"""As `grading.judges` allows."""
ASKING_S: Final = 120.0
"""After which nobody is believed to be asking any more."""
_DAY_S: Final = 86_400


@final
class Batcher:
    """Gets judges' answers in batches, for one process."""

    def __init__(
        self,
        redis: Redis,
        queue: Queue,
        judges: Sequence[Judge],
        apis: Mapping[str, BatchApi],
        rubric: Rubric,
        settings: config.Grading,
        *,
        costs: Costs,
        worker: str,
        wall: Callable[[], float],
    ) -> None:
        """Nothing is asked yet.

        Args:
          redis: the caller's.
          queue: likewise.
          judges: the panel; those at a provider without batches are left to graders.
          apis: by provider.
          rubric: what they judge by.
          settings: how often to look, and lifetimes.
          costs: where answers are booked.
          worker: unique to this process.
          wall: seconds since the epoch.
        """
        self._redis = redis
        self._queue = queue
        self._judges = [judge for judge in judges if judge.provider in apis]
        self._apis = {judge.provider: apis[judge.provider] for judge in self._judges}
        self._rubric = rubric
        self._poll_s = settings.batch_poll_s
        self._ttl_s = settings.result_days * _DAY_S
        self._costs = costs
        self._worker = worker
        self._wall = wall
        self._watched: set[str] = set()
        """Orgs whose standing is known, or was asked for a round ago."""
        self._looked_at: dict[str, float] = {}
        """By batch, on trio's clock; those that have ended are out."""

    async def answers(
        self, shard: int, job: BulkJob, essays: Sequence[str], *, may_ask: bool = True
    ) -> dict[str, dict[str, bytes]]:
        """Go on with a job's batches; what has been answered.

        Cancellation: what was being asked is looked for later, by whoever comes.

        Args:
          shard: of the job.
          job: which.
          essays: those that are to be graded now.
          may_ask: whether new batches may be asked.

        Returns:
          By essay, of those whose batches have all ended: answers by judge, which may be none.

        Raises:
          RedisError: Redis is away; providers' errors are logged, and it is tried again.
        """
        may_ask = may_ask and self._has_money(job.org)
        key = _batches(shard, job.id)
        state = await self._state(key)
        chunks = _chunks_of(state)
        known = {id_ for ids in chunks.values() for id_ in ids}
        new = [id_ for id_ in essays if id_ not in known]
        if new and may_ask:
            await self._cut(key, shard, new, first=len(chunks))
            state = await self._state(key)
            chunks = _chunks_of(state)
        ended: set[str] = set()
        for number, ids in chunks.items():
            done = True
            for provider in self._apis:
                now = state.get(f"asked:{number}:{provider}", "")
                if not (now or may_ask):
                    done = False
                    continue
                try:
                    done &= await self._go_on(shard, job, number, ids, provider, now)
                except ProviderError as error:
                    log.warning("batch_waits", job=job.id, provider=provider, error=str(error))
                    done = False
            if done:
                ended.update(ids)
        return await self._stored(shard, job, [id_ for id_ in essays if id_ in ended])

    def _has_money(self, org: str) -> bool:
        """Whether an org may be asked for; of one that is new here not until the next round."""
        is_new = org not in self._watched
        self._watched.add(org)
        return not self._costs.is_exhausted(org) and not is_new

    async def _cut(self, key: str, shard: int, ids: Sequence[str], *, first: int) -> None:
        """Make chunks of new essays; another process' stay as they are."""
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipe.execute_command("HSTRLEN", self._queue.keys.record(shard, id_), "text")
        sizes: list[int] = await pipe.execute()
        around = self._judges[0].prompt(task="", essay="", org="", user="").size()
        chunks: list[list[str]] = [[]]
        total = 0
        for id_, text in zip(ids, sizes, strict=True):
            size = (text + around) * len(self._judges)
            if chunks[-1] and (len(chunks[-1]) == CHUNK_ESSAYS or total + size > CHUNK_BYTES):
                chunks.append([])
                total = 0
            chunks[-1].append(id_)
            total += size
        for number, chunk in enumerate(chunks, start=first):
            await self._swap(key, f"chunk:{number}", "", msgspec.json.encode(chunk).decode())

    # -- one batch -----------------------------------------------------------------------------

    async def _go_on(
        self,
        shard: int,
        job: BulkJob,
        number: int,
        ids: Sequence[str],
        provider: str,
        now: str,
    ) -> bool:
        """Do what is next for a chunk at a provider, which stands as `now`; whether it is done."""
        key, field = _batches(shard, job.id), f"asked:{number}:{provider}"
        word, _, rest = now.partition(" ")
        api = self._apis[provider]
        label = f"{job.id} {number} {provider}"
        if word == "done":
            return True
        if word == "batch":
            return await self._look(shard, job, ids, provider, key, field, rest)
        at = self._wall()
        since = at
        if word == "asking":
            since, asked_at = map(float, rest.split(" ")[:2])
            if at - asked_at < ASKING_S:
                return False
        asking = f"asking {since:.3f} {at:.3f} {self._worker}"
        if not await self._swap(key, field, now, asking):
            return False
        batch: str | None = None
        if word == "asking":
            batch, is_sure = await self._search(shard, job, ids, api, label, since)
            if batch is None and not is_sure:
                return False
            log.info("batch_looked_for", job=job.id, provider=provider, found=batch)
        if batch is None:
            batch = await self._ask(shard, job, ids, provider, label, key, field, asking)
        if batch is not None:
            # in this order: what is known is never looked for again
            await self._swap(key, field, asking, f"batch {batch}")
            await self._redis.execute_command("SADD", _known(shard), batch)
            await self._redis.execute_command("EXPIRE", _known(shard), self._ttl_s)
        return False

    async def _ask(
        self,
        shard: int,
        job: BulkJob,
        ids: Sequence[str],
        provider: str,
        label: str,
        key: str,
        field: str,
        asking: str,
    ) -> str | None:
        """Hand a batch in; None: there is nothing to ask, or it was refused for now."""
        requests = []
        for id_ in ids:
            essay = await self._essay(shard, id_)
            if essay is None:
                continue  # gone: nobody will miss it
            user, assignment, text = essay
            requests += [
                BatchRequest(
                    custom_id(job.id, id_, seat),
                    judge.prompt(
                        task=self._rubric.task(assignment), essay=text, org=job.org, user=user
                    ),
                )
                for seat, judge in enumerate(self._judges)
                if judge.provider == provider
            ]
        if not requests:
            await self._swap(key, field, asking, "done")
            return None
        batch: str | None = None
        refusal: ProviderError | None = None
        try:
            batch = await self._apis[provider].ask(requests, label=label)
        except ProviderError as error:
            refusal = error
        if refusal is not None:
            if refusal.status is not None and 400 <= refusal.status < 500:
                await self._swap(key, field, asking, "")  # surely not taken in
            raise refusal
        log.info("batch_asked", job=job.id, provider=provider, batch=batch, count=len(requests))
        return batch

    async def _search(
        self,
        shard: int,
        job: BulkJob,
        ids: Sequence[str],
        api: BatchApi,
        label: str,
        since: float,
    ) -> tuple[str | None, bool]:
        """What became of a batch whose asker has died; the second: it surely never came in."""
        ours = {custom_id(job.id, id_, seat) for id_ in ids for seat in range(len(self._judges))}
        is_sure = True
        for found in await api.find(label, since_s=since):
            if found.is_ours:
                return found.batch, True
            if await self._redis.execute_command("SISMEMBER", _known(shard), found.batch):
                continue
            if not await api.is_ended(found.batch):
                is_sure = False  # its results will tell
            elif any(result.id in ours for result in await api.results(found.batch)):
                return found.batch, True
        return None, is_sure

    async def _look(
        self,
        shard: int,
        job: BulkJob,
        ids: Sequence[str],
        provider: str,
        key: str,
        field: str,
        batch: str,
    ) -> bool:
        """Look whether a batch has ended, and store what it says; whether it has."""
        now = trio.current_time()
        if now - self._looked_at.get(batch, -self._poll_s) < self._poll_s:
            return False
        self._looked_at[batch] = now
        api = self._apis[provider]
        if not await api.is_ended(batch):
            return False
        results = {result.id: result for result in await api.results(batch)}
        for id_ in ids:
            for seat, judge in enumerate(self._judges):
                result = results.get(custom_id(job.id, id_, seat))
                if result is not None:
                    await self._store(shard, job, id_, judge, result)
        self._looked_at.pop(batch, None)
        await self._swap(key, field, f"batch {batch}", "done")
        return True

    async def _store(
        self, shard: int, job: BulkJob, id_: str, judge: Judge, result: BatchResult
    ) -> None:
        """Keep an answer, and book it, once; an empty one is to be asked live."""
        essay = await self._essay(shard, id_)
        completion = result.completion
        kept, outcome = b"", str(result.outcome)
        if completion is not None and essay is not None:
            usage = Usage(**_tokens(completion.usage))
            try:
                answer = judge.check(completion, essay[2])
            except InvalidAnswer:
                outcome = "invalid"
            else:
                kept = msgspec.json.encode(
                    msgspec.structs.replace(
                        answer, usage=usage, provider=judge.provider, model=completion.model
                    )
                )
        is_new = await self._redis.execute_command(
            "HSETNX", _answers(shard, job.id), result.id, kept
        )
        await self._redis.execute_command("EXPIRE", _answers(shard, job.id), self._ttl_s)
        if not is_new:
            return
        metrics.batch_requests_total.labels(judge.provider, outcome).inc()
        if completion is not None:
            self._costs.book(
                reason="regrade",
                provider=judge.provider,
                model=completion.model,
                usage=completion.usage,
                org=job.org,
                user="" if essay is None else essay[0],
                assignment="" if essay is None else self._rubric.known(essay[1]),
                batch=True,
            )

    async def _stored(
        self, shard: int, job: BulkJob, ids: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        if not ids:
            return {}
        fields = [custom_id(job.id, id_, seat) for id_ in ids for seat in range(len(self._judges))]
        values = await self._redis.execute_command("HMGET", _answers(shard, job.id), *fields)
        found: dict[str, dict[str, bytes]] = {}
        for number, id_ in enumerate(ids):
            of_essay = values[number * len(self._judges) :]
            found[id_] = {
                judge.name: value
                for judge, value in zip(self._judges, of_essay, strict=False)
                if value
            }
        return found

    # -- Redis ---------------------------------------------------------------------------------

    async def _essay(self, shard: int, id_: str) -> tuple[str, str, str] | None:
        """User, assignment and text; None: it has outlived its time."""
        fields = await self._redis.execute_command(
            "HMGET", self._queue.keys.record(shard, id_), "user", "assignment", "text"
        )
        if fields[2] is None:
            return None
        user, assignment, text = (field.decode() for field in fields)
        return user, assignment, text

    async def _state(self, key: str) -> dict[str, str]:
        found: dict[bytes, bytes] = await self._redis.execute_command("HGETALL", key)
        return {name.decode(): value.decode() for name, value in found.items()}

    async def _swap(self, key: str, field: str, old: str, new: str) -> bool:
        args: list[str | int] = [field, old, new, self._ttl_s]
        return bool(await script("bulk_swap")(self._redis, [key], args))


async def erase_answers(redis: Redis, shard: int, job: str, essays: Collection[str]) -> None:
    """Leave nothing of essays in what a job has asked and been answered.

    Raises:
      RedisError: some may be left; do it again.
    """
    ids = [custom_id(job, id_, seat) for id_ in essays for seat in range(SEATS_MAX)]
    await redis.execute_command("HDEL", _answers(shard, job), *ids)
    key = _batches(shard, job)
    state: dict[bytes, bytes] = await redis.execute_command("HGETALL", key)
    for field, value in state.items():
        if field.startswith(b"chunk:"):
            chunk = msgspec.json.decode(value, type=list[str])
            left = [id_ for id_ in chunk if id_ not in essays]
            if left != chunk:
                await redis.execute_command("HSET", key, field, msgspec.json.encode(left))


def custom_id(job: str, submission: str, seat: int) -> str:
    """What a provider calls one judge's request about one essay."""
    digest = hashlib.sha256(f"{job} {submission}".encode()).hexdigest()
    return f"{digest[:40]}-{seat}"


def _chunks_of(state: Mapping[str, str]) -> dict[int, list[str]]:
    return {
        int(name.removeprefix("chunk:")): msgspec.json.decode(value, type=list[str])
        for name, value in sorted(state.items())
        if name.startswith("chunk:")
    }


def _tokens(usage: Any) -> dict[str, int]:
    names = ("input", "cache_write", "cache_read", "output")
    return {name: getattr(usage, name) for name in names}


def _batches(shard: int, job: str) -> str:
    return f"bulk:{{{shard}}}:batches:{job}"


def _answers(shard: int, job: str) -> str:
    return f"bulk:{{{shard}}}:answers:{job}"


def _known(shard: int) -> str:
    """Batches of whatever job, so that none is taken for another."""
    return f"bulk:{{{shard}}}:known"
