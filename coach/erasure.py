"""Erasing a person: nothing that names a user, or that they wrote, stays in Redis.

In order: sessions with their drafts, so that nothing new comes; essays with grades and what is to
be delivered of them; what an educator gave others' essays; what is on its way between processes;
limits; and in the books their costs become nobody's, since the sums are the org's.

What is not there: logs, which hold no texts and whose retention is the operator's; what integrators
have been sent; providers' own records.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from . import budget, ops
from .grading import Bulk, Readings, Reviews, delivery_desk
from .session import erase_mail, revoke_sessions

if TYPE_CHECKING:
    from . import config
    from .grading import Queue
    from .store import Redis


@attrs.frozen(kw_only=True)
class Erased:
    """How much there was of a user. All 0: nothing is left."""

    sessions: int
    submissions: int
    """Second opinions, and deliveries to integrators, are counted as well."""
    scores: int
    """That an educator gave others' essays."""
    inbox: int
    """Lists of what the user has not heard, and of where they are."""
    letters: int
    """Between processes."""
    limits: int
    hours: int
    """In which they cost anything."""


async def erase_user(
    redis: Redis, queue: Queue, settings: config.Settings, *, org: str, user: str
) -> Erased:
    """Erase a user of an org. Safe to repeat, and to be repeated until nothing is found.

    A user who was online a moment ago may leave figures of the last minute, which go by
    themselves, and costs that a process has not written yet.

    Args:
      redis: of all processes.
      queue: of the essays.
      settings: where the rest is kept, and how.
      org: whose user it is.
      user: as in their token.

    Raises:
      RedisError: it is away; some may be left.

    Cancellation: some may be left.
    """
    sessions = await revoke_sessions(redis, org=org, user=user)
    deliveries = delivery_desk(redis, settings).queue
    essays = await queue.erase(org, user)
    sent = await deliveries.erase(org, user)
    await Bulk(redis, queue, settings.grading).erase(org, user, essays)
    reviews = Reviews(redis, queue, settings.grading)
    for essay in essays:
        await reviews.done(org, essay)
    readings = Readings(redis, queue, settings.grading, None)
    return Erased(
        sessions=len(sessions),
        submissions=len(essays) + len(sent),
        scores=await readings.forget(org, user=user, essays=essays),
        inbox=await queue.inbox.erase(org, user),
        letters=await erase_mail(redis, sessions=sessions, submissions=essays),
        limits=await budget.erase_user(redis, org=org, user=user),
        hours=await ops.erase_user(redis, org=org, user=user),
    )
