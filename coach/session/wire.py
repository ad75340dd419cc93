"""Messages of the WebSocket protocol `coach.v1`: JSON text, told apart by their `type` field.

Unknown fields are ignored, so that old servers understand new clients. Every message to the client
but `welcome` carries `seq`, strictly +1 within a session.
"""

from __future__ import annotations

import math
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ..errors import BadMessage, CoachError, Code

SUBPROTOCOL: Final = "coach.v1"
TOKEN_CHARS_MAX: Final = 8_192
"""Identity providers' tokens have one or two thousand characters."""
RESUME_CHARS_MAX: Final = 256
SPLICES_MAX: Final = 100
"""Of one edit. Each may copy the whole draft: this many, on the longest draft, take some 5 ms."""

Id = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}\Z")]
"""A client-made identifier: it becomes part of Redis keys, so its alphabet is narrow."""
Offset = Annotated[int, Meta(ge=0, le=2**31)]


class _Client(msgspec.Struct, frozen=True, tag_field="type"):
    pass


class Hello(_Client, frozen=True, tag=str.lower):
    """First message, within `server.hello_s_max`."""

    token: Annotated[str, Meta(max_length=TOKEN_CHARS_MAX)]
    """A JWT. May be empty with `resume`, where `session.require_jwt_on_resume` is off."""
    resume: Annotated[str, Meta(max_length=RESUME_CHARS_MAX)] | None = None
    """From the last `welcome`: go on with that session."""
    last_seq: Offset | None = None
    """Of the last message that was seen; absent: none was."""


class Splice(msgspec.Struct, frozen=True, array_like=True):
    """Replace `delete` units at `at` by `insert`; offsets count UTF-16 code units."""

    at: Offset
    delete: Offset
    insert: str


class Edit(_Client, frozen=True, tag=str.lower):
    """Cheap typing: splices applied in order; `rev` is the draft's revision after them."""

    draft: Id
    rev: Offset
    splices: Annotated[tuple[Splice, ...], Meta(max_length=SPLICES_MAX)]


class Draft(_Client, frozen=True, tag=str.lower):
    """The whole text, to (re)synchronise."""

    draft: Id
    rev: Offset
    text: str


class Feedback(_Client, frozen=True, tag=str.lower):
    """Start a turn; a newer one for the same draft cancels the older."""

    request: Id
    draft: Id
    focus: Annotated[str, Meta(max_length=500)] | None = None
    assignment: Id | None = None
    """What the student was asked to write, where the client knows it."""


class Cancel(_Client, frozen=True, tag=str.lower):
    """Stop a turn."""

    request: Id


class Submit(_Client, frozen=True, tag=str.lower):
    """Hand an essay in; the same submission id again gives the same answer."""

    submission: Id
    assignment: Id
    text: str


class Ack(_Client, frozen=True, tag=str.lower):
    """Everything up to `seq` was seen."""

    seq: Offset


ClientMessage = Hello | Edit | Draft | Feedback | Cancel | Submit | Ack


class Limits(msgspec.Struct, frozen=True):
    """What the server accepts, so that a client need not find out by errors."""

    message_bytes: int
    draft_chars: int
    drafts: int


class DraftCopy(msgspec.Struct, frozen=True):
    """A draft as the server has it."""

    draft: str
    rev: int
    text: str


class FeedbackCopy(msgspec.Struct, frozen=True):
    """The whole answer to a request that has ended with `done`."""

    request: str
    focus: str
    text: str
    draft: str = ""
    """What it is about."""
    adds: bool = False
    """As `started` has said."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What the server has of a session some of whose messages cannot be said again."""

    drafts: tuple[DraftCopy, ...]
    feedback: tuple[FeedbackCopy, ...]
    """The newest, in order."""
    running: tuple[str, ...]
    """Requests that go on; what was asked otherwise and is not in `feedback` was interrupted."""
    submissions: tuple[str, ...]
    """Essays that were handed in and of which no grade was said."""


class Welcome(
    msgspec.Struct, frozen=True, tag_field="type", tag="welcome", omit_defaults=True, kw_only=True
):
    """Answer to `hello`. The next message carries `seq` + 1, replayed or new."""

    session: str
    resume: str | None = None
    """Token to come back with; absent where sessions end with their connections."""
    seq: int
    replayed: int
    """Messages that were said before and follow now, before anything new."""
    limits: Limits
    snapshot: Snapshot | None = None
    """In place of what cannot be replayed; `seq` may differ from the client's then."""


class _Server(msgspec.Struct, tag_field="type"):
    seq: int = 0
    """Set by the outbox as the message leaves; 0 is never sent."""


class Queued(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """In the waiting line: `position` 1 is next. Sent again only when it changes."""

    position: int
    eta_ms: int | None = None
    """Of requests."""
    request: str | None = None
    submission: str | None = None


class Started(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The provider has the request."""

    request: str
    provider: str
    model: str
    flags_off: tuple[str, ...] = ()
    """Rollout flags that are off for this user; absent where none is."""
    adds: bool = False
    """The answer is about what has changed: comments that were given before still stand."""


class Delta(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The next piece of feedback text, 1 or more characters."""

    request: str
    text: str


class Restarted(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """Another provider starts over: drop the text shown for `request` so far."""

    request: str
    provider: str
    reason: str


class TokenUsage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them; `input` excludes what came from its cache."""

    input: int
    cached: int
    output: int


class Done(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The turn ended as the provider meant it to."""

    request: str
    usage: TokenUsage
    stop_reason: str


class Grading(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The submission is on disk and waits for, or is with, a grader.

    Where `queue` is among `flags_off` it is being graded, and on disk when it is `grade`d.
    """

    submission: str
    delayed: bool = False
    """It takes longer than it should: too few judges answer just now."""
    flags_off: tuple[str, ...] = ()
    """Rollout flags that are off for this user; absent where none is."""


class CriterionScore(msgspec.Struct, frozen=True):
    """One criterion's band (0 is lowest) with the sentence of the essay that shows it."""

    name: str
    label: str
    band: int
    band_max: int
    evidence: str
    reason: str


class Grade(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The result of a submission; `score` is 0..100."""

    submission: str
    score: int
    criteria: tuple[CriterionScore, ...]
    judges: int
    bands_apart: int | None = None
    """Of the judges, in the criterion in which they differ most; None: it was one alone."""
    degraded: bool = False
    degraded_reason: str = ""
    feedback: str = ""
    calibration: int = 0
    """Version of the calibration that the score is by; 0: it is as judged."""
    interval: tuple[int, int] | None = None
    """Where a person's score lies with a probability of `coverage`."""
    coverage: float | None = None


class Error(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """A request, a submission or (neither given) a message failed; the session goes on."""

    code: Code
    message: str
    request: str | None = None
    submission: str | None = None
    retry_after_ms: int | None = None


class Draining(_Server, tag=str.lower, omit_defaults=True, kw_only=True):
    """The server is going away: reconnect with the resume token. Close 1012 follows."""


ServerMessage = Queued | Started | Delta | Restarted | Done | Grading | Grade | Error | Draining

_server_decoder: Final[msgspec.json.Decoder[ServerMessage]] = msgspec.json.Decoder(ServerMessage)
_decoder: Final[msgspec.json.Decoder[ClientMessage]] = msgspec.json.Decoder(ClientMessage)
_encoder: Final = msgspec.json.Encoder()


def decode(text: str) -> ClientMessage:
    """Parse one client message.

    Raises:
      BadMessage: not JSON, unknown `type`, or a field of the wrong type; the message says where.
    """
    try:
        return _decoder.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise BadMessage(f"not a coach.v1 message: {error}") from None


def decode_own(data: bytes | msgspec.Raw) -> ServerMessage:
    """Parse a message that a server has encoded.

    Raises:
      msgspec.DecodeError: it is none.
    """
    return _server_decoder.decode(data)


def encode(message: ServerMessage | Welcome) -> bytes:
    """Serialise one server message as UTF-8 JSON."""
    return _encoder.encode(message)


def error_message(
    error: CoachError, *, request: str | None = None, submission: str | None = None
) -> Error:
    """Put an error into the client's words; `request` or `submission` is what it ends."""
    return Error(
        code=error.code,
        message=str(error),
        request=request,
        submission=submission,
        retry_after_ms=(
            None if error.retry_after_s is None else math.ceil(error.retry_after_s * 1000)
        ),
    )
