"""What is kept of a session so that it can be gone on with: here, on another worker, after a crash.

A resume token is `<session>.<secret>`: 256 random bits behind the name of the session they open.
Only the secret's digest is stored, in the session's own record, so that one script checks the
token, takes the session over and gives the client a new one, atomically, also on a Cluster.

    session:{id}  HASH    who has it (worker, epoch), whose it is, tokens, state, drafts
    tail:{id}     STREAM  what was said while nobody listened

A worker that still runs hands over by itself, through the mailboxes (registry.py): the record and
the tail are for those that are gone.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal, cast, final

import attrs
import msgspec

from .. import config
from ..store import Redis, script
from .auth import Identity, Role
from .wire import DraftCopy, FeedbackCopy

SECRET_BYTES: Final = 32
MAIL_MAX: Final = 10_000
"""Letters that a worker's mailbox holds, about."""
MAIL_S: Final = 600
"""After which the mailbox of a worker that is gone disappears."""

Kept = Literal["kept", "moved", "revoked"]
Tail = Literal["clear", "append", "replace"]


class Running(msgspec.Struct, frozen=True):
    """A turn under way."""

    request: str
    draft: str


class State(msgspec.Struct, frozen=True, kw_only=True):
    """How a session stands, without its drafts."""

    seq: int
    """Of the last message it has said."""
    connected: bool
    """Its client gets what it says: only the worker knows what that is, and how far it came."""
    turns: tuple[Running, ...]
    feedback: tuple[FeedbackCopy, ...]
    submissions: tuple[str, ...]
    """Essays that were taken in and of which no grade was said."""
    at_once: tuple[str, ...] = ()
    """Those of them that are graded where the session is, and are in no queue."""


@attrs.frozen
class Claim:
    """A session that was taken over."""

    worker: str
    """Who had it; empty: nobody."""
    epoch: int
    identity: Identity
    state: State
    drafts: tuple[DraftCopy, ...]
    said: tuple[bytes, ...]
    """Of the tail, as JSON; oldest first."""


class Handover(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker gives to the next of a session that it has had."""

    state: State
    drafts: tuple[DraftCopy, ...]
    said: tuple[msgspec.Raw, ...] | None
    """What follows the message that the client has named; None: not all of it is kept."""


def new_token(session: str) -> tuple[str, str]:
    """A token for `session`, and its digest."""
    secret = secrets.token_urlsafe(SECRET_BYTES)
    return f"{session}.{secret}", digest_of(secret)


def split_token(token: str) -> tuple[str, str] | None:
    """Session and digest of a client's token; None: it is none."""
    session, dot, secret = token.partition(".")
    if not (session and dot and secret and session.isascii()) or set("{}") & set(session):
        return None
    return session, digest_of(secret)


def digest_of(secret: str) -> str:
    """What is stored of a secret; 256 random bits need no salt."""
    return hashlib.sha256(secret.encode()).hexdigest()


@final
class Records:
    """The records in Redis. Each call is one round trip and raises `RedisError`."""

    def __init__(self, redis: Redis, settings: config.Session) -> None:
        self._redis = redis
        self._ttl_s = int(settings.resume_s + settings.detached_s)
        self._tail_max = settings.tail_max

    async def keep(
        self,
        session: str,
        *,
        worker: str,
        epoch: int,
        fields: Mapping[str, str | bytes],
        said: Sequence[bytes],
        tail: Tail,
        parted: bool,
    ) -> Kept:
        """Write `fields`, and `said` to the tail; see session_keep.lua."""
        flat = [part for pair in fields.items() for part in pair]
        reply = await script("session_keep")(
            self._redis,
            _keys(session),
            [
                *(worker, epoch, self._ttl_s, tail, self._tail_max),
                *("1" if parted else "0", len(flat), *flat, *said),
            ],
        )
        return cast("Kept", reply.decode())

    async def claim(
        self, session: str, *, digest: str, identity: Identity | None, worker: str, then: str
    ) -> Claim | None:
        """Take `session` over for who has shown the token of `digest`; see session_claim.lua.

        Args:
          session: its id.
          digest: of the token that was shown.
          identity: who says so; None where the token alone is enough.
          worker: the new owner.
          then: the next token's digest.

        Returns None where there is no such session, or not for this client.
        """
        reply = await script("session_claim")(
            self._redis,
            _keys(session),
            [
                *(digest, identity.user if identity else "", identity.org if identity else ""),
                *(worker, then, self._ttl_s),
            ],
        )
        if reply[0] != b"claimed":
            return None
        _, holder, epoch, flat, said = reply
        fields = {name.decode(): value for name, value in zip(flat[::2], flat[1::2], strict=True)}
        return claim_of(holder.decode(), epoch, fields, tuple(said))

    async def revoke(self, session: str, *, user: str, org: str) -> bool:
        """Make a session void and tell its worker; see session_revoke.lua. False: it was not there.

        One more round trip where a worker has it.
        """
        said, *worker = await script("session_revoke")(self._redis, _keys(session), [user, org])
        if said != b"revoked":
            return False
        if worker[0]:
            await self.post(worker[0].decode(), {"kind": "revoked", "session": session})
        return True

    async def post(self, to: str, *letters: Mapping[str, str | bytes]) -> None:
        """Put letters into the mailbox of the worker `to`, in order."""
        batch = self._redis.pipeline(transaction=False)
        key = f"mail:{to}"
        for letter in letters:
            batch.xadd(key, cast("dict[Any, Any]", letter), maxlen=MAIL_MAX, approximate=True)
        batch.expire(key, MAIL_S)
        await batch.execute()


def claim_of(
    worker: str, epoch: int, fields: Mapping[str, bytes], said: tuple[bytes, ...]
) -> Claim:
    """A claim from the record's fields.

    Raises:
      msgspec.DecodeError, KeyError: a record that no coach has written.
    """
    return Claim(
        worker=worker,
        epoch=epoch,
        identity=Identity(
            fields["user"].decode(),
            fields["org"].decode(),
            cast("Role", fields["role"].decode()),
            0,
        ),
        state=msgspec.json.decode(fields["state"], type=State),
        drafts=tuple(
            msgspec.json.decode(value, type=DraftCopy)
            for name, value in fields.items()
            if name.startswith("draft:")
        ),
        said=said,
    )


async def revoke_sessions(
    redis: Redis, *, org: str = "", user: str = "", session: str | None = None
) -> list[str]:
    """Make sessions void, with drafts and all: one, or all of a user. Returns those that were not.

    Their workers are told, and cut a client that is connected: within a second.

    Args:
      redis: where they are kept.
      org: of `user`.
      user: whose they must be; empty: whoever's.
      session: which one; None: all of `user`, found by a look at every session that is kept.

    Raises:
      RedisError: it is away; some may be void.
    """
    records = Records(redis, config.Session())
    if session is not None:
        return [session] * await records.revoke(session, user=user, org=org)
    assert user
    revoked = []
    async for key in redis.scan_keys("session:*"):
        name = key.decode().partition("{")[2].removesuffix("}")
        if await records.revoke(name, user=user, org=org):
            revoked.append(name)
    return revoked


async def erase_mail(
    redis: Redis, *, sessions: Collection[str], submissions: Collection[str]
) -> int:
    """Take what is about these out of every worker's mailbox; returns how many letters.

    But for the letters that say that a session is void.

    Raises:
      RedisError: it is away; some may be left.
    """
    count = 0
    names = {name.encode() for name in sessions}
    ids = {id_.encode() for id_ in submissions}
    async for key in redis.scan_keys("mail:*"):
        entries = await redis.execute_command("XRANGE", key, "-", "+")
        found = [
            entry
            for entry, fields in entries
            if (fields.get(b"session") in names and fields.get(b"kind") != b"revoked")
            or fields.get(b"submission") in ids
        ]
        if found:
            count += await redis.execute_command("XDEL", key, *found)
    return count


def _keys(session: str) -> tuple[str, str]:
    return f"session:{{{session}}}", f"tail:{{{session}}}"
