"""What answers of all providers have in common, streamed or not; no I/O.

A provider's module subclasses `WholeAnswer` and `StreamedAnswer` and says what its bytes mean. The
hot path is the same for all: bytes → SSE events → one call of the sink for each wake-up.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from .exchange import Header
from .records import Completion, ErrorKind, Prompt, ProviderError, Sink, Usage
from .sse import EventParser, EventTooLong

BODY_BYTES_MAX: Final = 4 * 1024 * 1024
"""Of a response, streamed or not; with the output limited as it is, answers are far shorter."""
RETRY_AFTER_S_MAX: Final = 3_600.0
_REASON_CHARACTERS_MAX: Final = 300
_OK: Final = 200

OnHeaders = Callable[[Mapping[str, str]], None]


class Api(Protocol):
    """How one provider is asked, and who understands its answers."""

    def path(self, base: str) -> str:
        """The path of every request.

        Args:
          base: the path of `base_url`, without a slash at its end.
        """

    def headers(self, api_key: str, *, stream: bool) -> list[Header]:
        """The headers of every request."""

    def body(self, prompt: Prompt, model: str, *, stream: bool) -> bytes:
        """The prompt as JSON; the same bytes for the same prompt, so that prefixes stay cached."""

    def whole(self, provider: str, prompt: Prompt, on_headers: OnHeaders | None) -> WholeAnswer:
        """A receiver of an answer in one piece."""

    def streamed(
        self,
        provider: str,
        prompt: Prompt,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> StreamedAnswer:
        """A receiver of an answer that comes event by event."""


class Answer:
    """A receiver of one response: the part that streamed and whole ones share."""

    def __init__(self, provider: str, on_headers: OnHeaders | None) -> None:
        self.provider = provider
        self._on_headers = on_headers
        self._status = 0
        self._headers: Mapping[str, str] = {}
        self._body = bytearray()  # of an error, or of an answer that is not streamed
        self._received = 0

    @abstractmethod
    def _meaning(self, status: int, body: bytes) -> tuple[ErrorKind, str]:
        """What a response other than 200 means: the kind, and what it says in a few words."""

    @abstractmethod
    def _retry_after_s(self, kind: ErrorKind) -> float | None:
        """Seconds until the provider wants to be asked again, by the headers."""

    def on_head(self, status: int, headers: Sequence[Header]) -> None:
        """The response begins."""
        self._status = status
        self._headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers
        }
        if self._on_headers is not None:
            self._on_headers(self._headers)

    def on_data(self, data: bytes) -> None:
        """A piece of the body."""
        self._count(data)
        self._body += data

    def check_status(self) -> None:
        """The response is whole: an error leaves as ProviderError."""
        if self._status == _OK:
            return
        kind, reason = self._meaning(self._status, bytes(self._body))
        raise ProviderError(
            f"{self.provider} answered {self._status} {shortened(reason)}".rstrip(),
            kind=kind,
            provider=self.provider,
            retry_after_s=self._retry_after_s(kind),
            status=self._status,
        )

    def _count(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > BODY_BYTES_MAX:
            raise self._failed("malformed", f"the answer is longer than {BODY_BYTES_MAX} bytes")

    def _failed(self, kind: ErrorKind, reason: str, *, tokens_shown: bool = False) -> ProviderError:
        return ProviderError(
            f"{self.provider}: {shortened(reason)}",
            kind=kind,
            provider=self.provider,
            retry_after_s=self._retry_after_s(kind),
            tokens_shown=tokens_shown,
        )


class WholeAnswer(Answer):
    """An answer that comes in one piece."""

    @abstractmethod
    def _read(self, body: bytes) -> Completion:
        """What a 200 says; what is no JSON of the right shape may leave as it is.

        Raises:
          ProviderError: it has no end, or is a refusal.
        """

    def completion(self) -> Completion:
        """What was answered, when the response is whole.

        Raises:
          ProviderError: it is an error, or makes no sense.
        """
        self.check_status()
        try:
            return self._read(bytes(self._body))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._failed("malformed", f"the answer is not a message: {error}") from error


class StreamedAnswer(Answer):
    """An answer that comes event by event; its text goes to a sink."""

    def __init__(
        self,
        provider: str,
        on_headers: OnHeaders | None,
        sink: Sink,
        on_stop: Callable[[], None],
    ) -> None:
        super().__init__(provider, on_headers)
        self.stopped = False
        """The text is whole, whatever may still come."""
        self._sink = sink
        self._on_stop = on_stop
        self._parser = EventParser()
        self._text: list[str] = []

    @abstractmethod
    def _take(self, events: list[bytes], texts: list[str]) -> None:
        """Read events; add their text to `texts`, also the text that comes before an error."""

    @abstractmethod
    def _completed(self, text: str) -> Completion:
        """The answer, given all its text.

        Raises:
          ProviderError: it broke off, or ends in a refusal.
        """

    @property
    def tokens_shown(self) -> bool:
        """The sink has got text."""
        return bool(self._text)

    def on_data(self, data: bytes) -> None:
        """Take events; all their text goes to the sink in one call, before any error."""
        if self._status != _OK:
            super().on_data(data)
            return
        texts: list[str] = []
        failure: ProviderError | None = None
        try:
            self._count(data)
            self._take(self._parser.feed(data), texts)
        except ProviderError as error:
            failure = error
        except (msgspec.DecodeError, UnicodeDecodeError, EventTooLong) as error:
            failure = self._failed("malformed", f"an event makes no sense: {error}")
            failure.__cause__ = error
        if texts:
            text = "".join(texts)
            self._text.append(text)
            self._sink.on_delta(text)
        if failure is not None:
            failure.tokens_shown = self.tokens_shown
            raise failure

    def completion(self) -> Completion:
        """What was answered, when nothing more will come.

        Raises:
          ProviderError: it is an error, or was not whole.
        """
        self.check_status()
        if not self.stopped:
            raise self._failed("cut", "the answer broke off", tokens_shown=self.tokens_shown)
        return self._completed("".join(self._text))

    def _stop(self) -> None:
        """The text is whole; the end of the response is waited for a little longer."""
        if not self.stopped:
            self.stopped = True
            self._on_stop()


def seconds_of(text: str, *, unit_s: float = 1.0) -> float | None:
    """A plain number in a header as seconds; None where there is none to believe."""
    try:
        seconds = float(text) * unit_s
    except ValueError:
        return None
    return min(seconds, RETRY_AFTER_S_MAX) if seconds >= 0 else None


def shortened(text: str) -> str:
    """At most so much of what a stranger says."""
    if len(text) <= _REASON_CHARACTERS_MAX:
        return text
    return f"{text[:_REASON_CHARACTERS_MAX]}…"


NO_USAGE: Final = Usage(0, 0, 0, 0)
