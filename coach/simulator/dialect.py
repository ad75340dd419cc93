"""What a provider's API is made of, whichever it is: requests read, answers and refusals worded.

The service, its turns and the account know nothing of JSON or of header names: a `Dialect` does.
There are two: messages.py (Anthropic's) and completions.py (OpenAI's). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

import attrs
import msgspec

from .cache import CacheBlock
from .exchange import Headers
from .faults import FaultName
from .quota import QuotaState, Shortage

if TYPE_CHECKING:
    from .account import Account
    from .batches import BatchPages
    from .statistics import Kind

CHARACTERS_PER_TOKEN: Final = 4.0
MODEL_CHARACTERS_MAX: Final = 256

StopReason = Literal["end_turn", "max_tokens", "refusal"]
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class Request:
    """A request that is well formed."""

    model: str
    blocks: tuple[CacheBlock, ...]
    """The prompt in order: system, then messages."""
    system: str
    """Text of the system prompt."""
    conversation: tuple[tuple[str, str], ...]
    """Role and text of each message, in order."""
    output_tokens_max: int
    stream: bool
    schema: dict[str, Any] | None
    cache_key: str = ""
    """Requests with another one share no cache."""
    usage_wanted: bool = True
    """The stream is to say what it used."""

    @property
    def last_user(self) -> str:
        """Text of the last user message; empty where there is none."""
        users = (text for role, text in reversed(self.conversation) if role == "user")
        return next(users, "")

    @property
    def kind(self) -> Kind:
        """Judges want JSON by a schema, feedback is text."""
        return "feedback" if self.schema is None else "judge"

    @property
    def input_tokens(self) -> int:
        """The whole prompt, cached or not."""
        return sum(block.tokens for block in self.blocks)


@attrs.frozen
class Usage:
    """Input tokens of one answer; `input` neither read from nor written to the cache."""

    input: int
    cache_write: int
    cache_write_hour: int
    cache_read: int


class ApiError(Exception):
    """A request is refused; leaves as a JSON body."""

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class Shape(Protocol):
    """How one answer is written."""

    prologue: bytes
    """What comes before the first delta."""
    prologue_events: int
    ping: bytes
    """Says that the answer is still coming."""
    error_event: bytes
    malformed_event: bytes

    def deltas(self, pieces: tuple[str, ...]) -> Sequence[bytes]:
        """One event for each piece of text."""

    def stamped(self, delta: bytes, now: float) -> bytes:
        """A delta whose text begins with `@` and a time in seconds, then a space.

        CLOCK_MONOTONIC is the same for all processes of a host: whoever receives the text there
        can tell how long it was under way.
        """

    def epilogue(self, stop_reason: StopReason, output: int) -> tuple[bytes, int]:
        """What comes after the last delta, and how many events that are."""

    def whole(self, text: str, stop_reason: StopReason, output: int) -> object:
        """The answer in one piece."""


class Dialect(Protocol):
    """One provider's API."""

    path: str
    """Where requests are sent."""
    pages: Mapping[str, Callable[[bytes], object]]
    """Further paths, each with what turns a body into an answer or raises ApiError."""
    id_prefix: str
    request_id_header: bytes
    counts_refused: bool
    """Requests that fail count against the quotas."""
    lookback_blocks: int
    """How far before a breakpoint the cache looks for an entry."""

    def check_key(self, headers: Mapping[bytes, bytes], key: str | None) -> None:
        """Raise ApiError unless `headers` have the key (None: any) and what else is required."""

    def parse(self, body: bytes) -> Request:
        """Read the body of a request.

        Raises:
          ApiError: 400, saying what is wrong and where.
        """

    def counted_tokens(self, request: Request) -> int:
        """What a request counts as, where input and output are counted together."""

    def refusal(self, fault: FaultName) -> ApiError | None:
        """The error that a fault of this name is; None: it is none."""

    def too_long(self, tokens: int, tokens_max: int) -> ApiError:
        """The prompt does not fit."""

    def over_quota(self, shortage: Shortage, model: str) -> ApiError:
        """A quota does not hold the request now."""

    def invalid(self, message: str, status: int = 400) -> ApiError:
        """The client's mistake."""

    def not_found(self, method: str, path: str) -> ApiError:
        """There is no such page."""

    def too_large(self) -> ApiError:
        """The body is longer than is read."""

    def error_json(self, error: ApiError, request_id: str) -> object:
        """What the client gets."""

    def error_headers(self, error: ApiError) -> Headers:
        """What an error's head says of trying again."""

    def limit_headers(self, states: Sequence[QuotaState], wall_s: float) -> Headers:
        """What every head says of the quotas."""

    def batch_pages(self, account: Account) -> BatchPages:
        """The part of the API that is about batches, for one account."""

    def shape(self, request: Request, usage: Usage, message_id: str, wall_s: float) -> Shape:
        """How the answer to a request is written."""


def tokens_of(text: str) -> int:
    """How many tokens a text has: about one for four characters, at least one."""
    return max(1, round(len(text) / CHARACTERS_PER_TOKEN))


def decode(decoder: msgspec.json.Decoder[T], body: bytes, invalid: Callable[[str], ApiError]) -> T:
    """Read a body, or raise what `invalid` makes of the mistake."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid(f"The request body is not valid JSON: {error}") from error
