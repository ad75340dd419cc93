"""What one student's client knows of its session: checks every message, measures every answer.

Sans-IO: text and times in, records and counts out. The wire shapes are written out here, as an
independent client would have them, so that a mistake in the server's own cannot hide in both.

What is checked; each irregularity adds one to `Tally.errors` under the code in brackets:
  - JSON of a known type, fields of the right type [protocol_malformed, protocol_unknown_type]
  - `seq` is strictly +1 from the welcome's [protocol_seq]
  - an answer belongs to a request or submission that was made [protocol_unknown_request,
    protocol_unknown_submission]
  - delta, restarted and done only after started [protocol_before_started]; one started
    [protocol_started_twice]; nothing after done or error [protocol_after_end]
  - a delta has text [protocol_empty_delta]; a finished turn has shown some [protocol_empty_turn]
  - queued: position 1 or more, and sent again only when it changes [protocol_queued]
  - a grade comes once, 0..100, with criteria whose bands are in range [protocol_grade]
  - every turn ends [protocol_no_end], which the owner of the connection asks for by `close`
  - numbered text (numbering.py) comes whole, each delta once [text_lost, text_doubled]
  - who comes back to the session goes on after the last message it has seen [protocol_seq]
A turn that a newer one replaced may end with the error `cancelled`; any other error is counted
under the server's code.
"""

from __future__ import annotations

import enum
from collections import Counter
from typing import Any, Final

import attrs
import msgspec

from .histogram import Histogram
from .numbering import Reader


@attrs.define(eq=False)
class Tally:
    """Everything a run measured; tallies of several writers or processes merge."""

    turns: int = 0
    """Feedback requests sent."""
    completed: int = 0
    """Turns that ended with done."""
    superseded: int = 0
    """Turns that ended as cancelled because a newer one replaced them."""
    silent: int = 0
    """Superseded turns that had shown no text yet; they have no first token to measure."""
    dropped: int = 0
    """Turns that were lost with their session, which could not be gone on with."""
    reconnects: int = 0
    """Connections made after one was lost."""
    resumed: int = 0
    """Of these, those that went on with their session, and got everything they had missed."""
    caught_up: int = 0
    """Those that went on with it by a snapshot: not all was kept."""
    replayed: int = 0
    """Messages that were said again."""
    deltas: int = 0
    chars: int = 0
    """Characters of feedback received."""
    bytes: int = 0
    """Of all messages received."""
    tokens: Counter[str] = attrs.field(factory=Counter)
    """Of completed turns, as the server says: input, cached, output."""
    queued: int = 0
    """Turns that were told a position in the waiting line."""
    submissions: int = 0
    graded: int = 0
    degraded: int = 0
    last_score: int | None = None
    errors: Counter[str] = attrs.field(factory=Counter)
    ttft_ms: Histogram = attrs.field(factory=Histogram)
    """From sending `feedback` until the first delta, waiting line included."""
    started_ms: Histogram = attrs.field(factory=Histogram)
    """From sending `feedback` until started."""
    event_ms: Histogram = attrs.field(factory=Histogram)
    """Gap between two consecutive deltas of a turn, as they arrive; the provider's own spacing
    is part of it, since a client cannot know that."""
    score_ms: Histogram = attrs.field(factory=Histogram)
    """From sending `submit` until the grade."""
    resume_ms: Histogram = attrs.field(factory=Histogram)
    """From the beginning of a connection until everything that was missed has come."""
    late_ms: Histogram = attrs.field(factory=Histogram)
    """By how much messages went out later than planned: the load generator's own delay, and that
    of a server which does not read."""

    def merge(self, other: Tally) -> None:
        """Add everything in `other`."""
        for field in attrs.fields(Tally):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if isinstance(mine, Histogram):
                mine.merge(theirs)
            elif isinstance(mine, Counter):
                mine.update(theirs)
            elif field.name == "last_score":
                self.last_score = mine if theirs is None else theirs
            else:
                setattr(self, field.name, mine + theirs)


class _State(enum.Enum):
    ASKED = "asked"
    STARTED = "started"
    ENDED = "ended"


@attrs.define(eq=False)
class _Turn:
    asked_s: float
    state: _State = _State.ASKED
    superseded: bool = False
    last_delta_s: float | None = None
    position: int | None = None
    chars: int = 0
    heard: bool = False
    reader: Reader = attrs.field(factory=Reader)


@attrs.define(eq=False)
class _Submission:
    sent_s: float
    ended: bool = False
    resent: bool = False
    """Its answer may have been under way already, and comes twice then."""


class _Copy(msgspec.Struct, frozen=True):
    request: str
    text: str


class _Snapshot(msgspec.Struct, frozen=True):
    feedback: tuple[_Copy, ...]
    running: tuple[str, ...]


class _Said(msgspec.Struct, frozen=True):
    """The union of all messages to a client; which fields count depends on `type`."""

    type: str
    seq: int = 0
    session: str = ""
    resume: str | None = None
    replayed: int = 0
    snapshot: _Snapshot | None = None
    request: str | None = None
    submission: str | None = None
    text: str = ""
    code: str = ""
    usage: dict[str, int] = {}
    position: int = 0
    score: int = -1
    criteria: tuple[dict[str, object], ...] = ()
    degraded: bool = False


_ABOUT_TURNS: Final = frozenset({"started", "delta", "restarted", "done"})
_ABOUT_SUBMISSIONS: Final = frozenset({"grading", "grade"})
_ABOUT_EITHER: Final = frozenset({"queued", "error"})

_PASSING: Final = frozenset({"overloaded", "interrupted"})

_decoder = msgspec.json.Decoder(_Said)


class Conversation:
    """What was said in one session, on however many connections.

    Times are any monotonic clock's, in seconds.
    """

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self.welcomed = False
        self.seq = 0
        """Of the last message seen."""
        self.draining = False
        """The server has announced that it goes away."""
        self.resume: str | None = None
        """The token to come back with."""
        self.is_persistent = False
        """It is tried again where the server takes nobody in."""
        self._put_off: list[str] = []  # submissions
        self._session = ""
        self._replayed = 0  # messages that are still to come before anything new
        self._asked_again: set[str] = set()  # the server may say that it has them already
        self._turns: dict[str, _Turn] = {}
        # every request of this session; a writer makes some ten an hour, so none is dropped
        self._submissions: dict[str, _Submission] = {}

    def ask(self, request: str, now_s: float) -> None:
        """A `feedback` is to be sent at `now_s`; it replaces the turns still running.

        Said with the planned moment, what delays the sending counts as the server's time: a slow
        one must not be measured less often because of that.
        """
        for turn in self._turns.values():
            turn.superseded |= turn.state is not _State.ENDED
        self._turns[request] = _Turn(now_s)
        self.tally.turns += 1

    def submit(self, submission: str, now_s: float) -> None:
        """A `submit` is about to be sent."""
        self._submissions[submission] = _Submission(now_s)
        self.tally.submissions += 1

    def turn_ended(self, request: str) -> bool:
        """Whether done or error has come for `request`, or it was never made."""
        turn = self._turns.get(request)
        return turn is None or turn.state is _State.ENDED

    @property
    def settled(self) -> bool:
        """Whether every turn and submission has its answer."""
        return all(turn.state is _State.ENDED for turn in self._turns.values()) and all(
            submission.ended for submission in self._submissions.values()
        )

    @property
    def caught_up(self) -> bool:
        """Whether there is a session, and everything that was missed of it has come."""
        return self.welcomed and self._replayed == 0

    def come_back(self) -> dict[str, Any]:
        """The connection was lost: what to add to the `hello` on the next one."""
        self.welcomed = self.draining = False
        self._replayed = 0
        return {} if self.resume is None else {"resume": self.resume, "last_seq": self.seq}

    def unheard(self) -> list[str]:
        """Requests of which the server is not known to have them; they are to be sent again."""
        unheard = [
            request
            for request, turn in self._turns.items()
            if turn.state is _State.ASKED and not turn.heard and not turn.superseded
        ]
        self._asked_again.update(unheard)
        return unheard

    def open_submissions(self) -> list[str]:
        """Submissions without an answer; they are to be sent again."""
        names = [name for name, submission in self._submissions.items() if not submission.ended]
        for name in names:
            self._submissions[name].resent = True
        return names

    def take_put_off(self) -> list[str]:
        """Submissions that the server could not take in just then; they are to be sent again."""
        put_off, self._put_off = self._put_off, []
        for name in put_off:
            self._submissions[name].resent = True
        return put_off

    def close(self, *, dropped: bool = False) -> None:
        """Nothing more comes: count the turns that never ended.

        An ungraded submission shows in the difference of `submissions` and `graded`.

        Args:
          dropped: the student's network was lost for too long, which is no fault of the server's.
        """
        for turn in self._turns.values():
            if turn.state is not _State.ENDED:
                turn.state = _State.ENDED
                if dropped:
                    self.tally.dropped += 1
                else:
                    self._count("protocol_no_end")

    def receive(self, message: str | bytes, now_s: float) -> None:
        """Take one message from the server."""
        self.tally.bytes += len(message)
        try:
            said = _decoder.decode(message)
        except (msgspec.DecodeError, UnicodeError):
            self._count("protocol_malformed")
            return
        if not self.welcomed:
            self._open(said)
            return
        if said.seq != self.seq + 1:
            self._count("protocol_seq")
        self.seq = said.seq
        self._replayed = max(0, self._replayed - 1)
        if said.type == "draining":
            self.draining = True
        elif said.type in _ABOUT_SUBMISSIONS or (
            said.type in _ABOUT_EITHER and said.request is None
        ):
            self._submission_said(said, now_s)
        elif said.type in _ABOUT_TURNS or said.type in _ABOUT_EITHER:
            self._turn_said(said, now_s)
        else:
            self._count("protocol_unknown_type")

    def _open(self, said: _Said) -> None:
        if said.type == "welcome":
            self.welcomed = True
            if not said.session:
                self._count("protocol_malformed")
            if self._session == said.session:
                self._come_back(said)
            else:
                self.close(dropped=bool(self._session))
            self.seq, self.resume, self._session = said.seq, said.resume, said.session
        elif said.type == "error":
            if not (self.is_persistent and said.code == "overloaded"):
                self._count(said.code or "protocol_malformed")
        else:
            self._count("protocol_before_welcome")

    def _come_back(self, said: _Said) -> None:
        if said.snapshot is None:
            if said.seq != self.seq:
                self._count("protocol_seq")
            self._replayed = said.replayed
            self.tally.resumed += 1
            self.tally.replayed += said.replayed
            return
        self.tally.caught_up += 1
        whole = {copy.request: copy.text for copy in said.snapshot.feedback}
        for request, turn in self._turns.items():
            if turn.state is _State.ENDED or request in said.snapshot.running or not turn.heard:
                continue
            turn.reader.begin_anew()
            if request in whole:
                turn.reader.read(whole[request])
                turn.chars = len(whole[request])
                self._complete(turn)
            elif turn.superseded:
                self._fail(turn, "cancelled")
            else:
                self._fail(turn, "interrupted")

    def _turn_said(self, said: _Said, now_s: float) -> None:
        turn = self._turns.get(said.request or "")
        if turn is None:
            self._count("protocol_unknown_request")
        elif turn.state is _State.ENDED:
            self._count("protocol_after_end")
        else:
            turn.heard = True
            self._heard(turn, said, now_s)

    def _heard(self, turn: _Turn, said: _Said, now_s: float) -> None:
        if said.type == "error":
            self._fail(turn, said.code)
        elif said.type == "queued":
            self._queue(turn, said.position)
        elif said.type == "started":
            self._start(turn, now_s)
        elif turn.state is _State.ASKED:
            self._count("protocol_before_started")
        elif said.type == "delta":
            self._delta(turn, said.text, now_s)
        elif said.type == "restarted":
            turn.chars = 0
            turn.reader.begin_anew()
        else:
            self.tally.tokens.update(said.usage)
            self._complete(turn)

    def _complete(self, turn: _Turn) -> None:
        turn.state = _State.ENDED
        turn.reader.end()
        self.tally.completed += 1
        if turn.chars == 0:
            self._count("protocol_empty_turn")
        self._read(turn)

    def _read(self, turn: _Turn) -> None:
        """Count what its text has shown to be missing, or to be there twice."""
        for code, many in (("text_lost", turn.reader.lost), ("text_doubled", turn.reader.doubled)):
            if many:
                self.tally.errors[code] += many

    def _start(self, turn: _Turn, now_s: float) -> None:
        if turn.state is _State.STARTED:
            self._count("protocol_started_twice")
        turn.state = _State.STARTED
        self.tally.started_ms.record((now_s - turn.asked_s) * 1000)

    def _queue(self, turn: _Turn, position: int) -> None:
        if turn.position is None:
            self.tally.queued += 1
        if position < 1 or turn.state is _State.STARTED:
            self._count("protocol_queued")
        turn.position = position

    def _delta(self, turn: _Turn, text: str, now_s: float) -> None:
        if not text:
            self._count("protocol_empty_delta")
        turn.chars += len(text)
        turn.reader.read(text)
        self.tally.chars += len(text)
        self.tally.deltas += 1
        if turn.last_delta_s is None:
            self.tally.ttft_ms.record((now_s - turn.asked_s) * 1000)
        else:
            self.tally.event_ms.record((now_s - turn.last_delta_s) * 1000)
        turn.last_delta_s = now_s

    def _fail(self, turn: _Turn, code: str) -> None:
        turn.state = _State.ENDED
        self._read(turn)
        if code == "cancelled" and turn.superseded:
            self.tally.superseded += 1
            self.tally.silent += turn.last_delta_s is None
        else:
            self._count(code or "protocol_malformed")

    def _submission_said(self, said: _Said, now_s: float) -> None:
        if said.type == "error" and said.submission is None:
            if said.code == "conflict" and self._asked_again:
                self._asked_again.pop()  # it had arrived, and only its answer was to come
            else:
                self._count(said.code or "protocol_malformed")
            return
        submission = self._submissions.get(said.submission or "")
        if submission is None:
            self._count("protocol_unknown_submission")
        elif submission.ended:
            if not submission.resent:
                self._count("protocol_grade")
        elif said.type == "error" and self.is_persistent and said.code in _PASSING:
            self._put_off.append(said.submission or "")
        elif said.type == "error":
            submission.ended = True
            self._count(said.code or "protocol_malformed")
        elif said.type == "grade":
            submission.ended = True
            self._grade(said)
            self.tally.score_ms.record((now_s - submission.sent_s) * 1000)

    def _grade(self, said: _Said) -> None:
        self.tally.graded += 1
        self.tally.degraded += said.degraded
        self.tally.last_score = said.score
        bands_right = all(_in_band(criterion) for criterion in said.criteria)
        if not 0 <= said.score <= 100 or not said.criteria or not bands_right:
            self._count("protocol_grade")

    def _count(self, code: str) -> None:
        self.tally.errors[code] += 1


def _in_band(criterion: dict[str, object]) -> bool:
    band, band_max = criterion.get("band"), criterion.get("band_max")
    return isinstance(band, int) and isinstance(band_max, int) and 0 <= band <= band_max
