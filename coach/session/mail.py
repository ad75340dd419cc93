"""Letters in a worker's mailbox: from graders, and from workers that have, or had, a session."""

from __future__ import annotations

import msgspec

from . import wire


class _Letter(msgspec.Struct, frozen=True, tag_field="kind"):
    session: str


class GradeMail(_Letter, frozen=True, tag="grade"):
    """A submission was graded; `payload` is the `grade` message without `seq`, as JSON."""

    submission: str
    payload: str
    user: str = ""
    org: str = ""
    """Whose sessions are all to hear of it; empty: the one only."""

    def answer(self) -> wire.Grade:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Grade)


class FailedMail(_Letter, frozen=True, tag="failed"):
    """A submission will not be graded; `payload` is an `error` message without `seq`, as JSON."""

    submission: str
    payload: str

    def answer(self) -> wire.Error:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Error)


class GradingMail(_Letter, frozen=True, tag="grading"):
    """News of a submission; `payload` is a `grading` message without `seq`, as JSON."""

    submission: str
    payload: str

    def answer(self) -> wire.Grading:
        """What the student is to be told."""
        return msgspec.json.decode(self.payload, type=wire.Grading)


class ClaimMail(_Letter, frozen=True, tag="claim"):
    """`worker` has the session of `epoch` now, and wants what its client has not seen."""

    worker: str
    epoch: int
    last_seq: int


class HandoverMail(_Letter, frozen=True, tag="handover"):
    """The answer; `payload` is a `resume.Handover`, as JSON."""

    worker: str
    epoch: int
    payload: str


class RelayMail(_Letter, frozen=True, tag="relay"):
    """What is said since, of a session of `epoch`; `payload` is a list of messages, as JSON."""

    epoch: int
    payload: str
    feedback: str = ""
    """With the last letter: the session's newest feedback, as JSON."""

    def messages(self) -> list[wire.ServerMessage]:
        """What was said; each with the number that it had there."""
        return msgspec.json.decode(self.payload, type=list[wire.ServerMessage])

    def copies(self) -> list[wire.FeedbackCopy]:
        """The feedback of the last letter."""
        return msgspec.json.decode(self.feedback, type=list[wire.FeedbackCopy])


class StopMail(_Letter, frozen=True, tag="stop"):
    """A turn of the session of `epoch`, which has moved, is not wanted any more."""

    epoch: int
    request: str


class RevokedMail(_Letter, frozen=True, tag="revoked"):
    """An operator has made the session void."""


Mail = (
    GradeMail
    | FailedMail
    | GradingMail
    | ClaimMail
    | HandoverMail
    | RelayMail
    | StopMail
    | RevokedMail
)


def parse(fields: dict[bytes, bytes]) -> Mail:
    """A letter from the fields of its entry.

    Raises:
      msgspec.DecodeError, UnicodeDecodeError: it is none.
    """
    text = {key.decode(): value.decode() for key, value in fields.items()}
    letter: Mail = msgspec.convert(text, Mail, strict=False)
    return letter
