"""Requests asked in batches, at half the price: Anthropic's Message Batches, OpenAI's Batch; pure.

When each item of a batch ends, and how, is drawn as the batch comes in; what is true at a moment is
computed when somebody asks. Results stand in the order in which they ended, which is not the one in
which they were asked. Batches have a quota of their own: requests that have not ended.

Source: platform.claude.com, "Batch processing" and the API reference, "Message Batches"; OpenAI API
reference, "Batch", "Files".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from email.parser import BytesParser
from email.policy import HTTP
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol
from urllib.parse import parse_qs

import attrs
import msgspec
from msgspec import Meta

from .answers import compose, limited
from .dialect import ApiError, Dialect, Request, Usage, decode

if TYPE_CHECKING:
    from .account import Account

REQUESTS_MAX: Final = 50_000
"""Of one batch. Anthropic takes 100,000."""
LIFE_S: Final = 86_400.0
LIST_MAX: Final = 100
JSON: Final = b"application/json"
LINES: Final = b"application/x-jsonl"

Outcome = Literal["succeeded", "errored", "expired", "canceled"]
Reply = tuple[bytes, bytes]
"""Content type and body."""


class BatchPages(Protocol):
    """The part of a provider's API that is about batches."""

    def answer(
        self, method: bytes, target: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> Reply:
        """Answer a request.

        Raises:
          ApiError: as for every request; 404 where the path is none of these.
        """


@attrs.define
class Item:
    """One request of a batch."""

    custom_id: str
    asked: Request | ApiError
    ends_at: float
    outcome: Outcome


@attrs.define
class Batch:
    """A batch, on the account's clock."""

    id: str
    opened_at: float
    wall_s: float
    """When it was opened."""
    items: list[Item]
    extra: dict[str, Any]
    """What the dialect wants to remember of it."""
    cancelled_at: float | None = None

    def ended(self, now: float) -> list[Item]:
        """Items that have ended, in that order."""
        return sorted(
            (item for item in self.items if item.ends_at <= now), key=lambda item: item.ends_at
        )

    def ends_at(self) -> float:
        """When the last one ends."""
        return max(item.ends_at for item in self.items)

    def count(self, now: float, *outcomes: Outcome) -> int:
        """How many have ended so."""
        return sum(item.outcome in outcomes for item in self.ended(now))


class Batches:
    """All batches of an account."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._batches: dict[str, Batch] = {}

    def open(
        self, prefix: str, items: Sequence[tuple[str, Request | ApiError]], extra: dict[str, Any]
    ) -> Batch:
        """Take a batch in.

        Raises:
          ApiError: 400, or 429 by the quota of batches.
        """
        account = self._account
        dialect, settings, now = account.dialect, account.settings, account.clock()
        if not 1 <= len(items) <= REQUESTS_MAX:
            raise dialect.invalid(f"requests: 1 to {REQUESTS_MAX} items are allowed")
        if len({custom_id for custom_id, _ in items}) < len(items):
            raise dialect.invalid("custom_id: each must be unique within a batch")
        most = settings.batch_requests_max
        if most is not None and self.processing(now) + len(items) > most:
            raise ApiError(
                429, "rate_limit_error", f"Your batches may hold {most:,} requests at a time."
            )
        batch = Batch(
            id=account.new_id(prefix),
            opened_at=now,
            wall_s=account.wall(),
            items=[self._item(custom_id, asked, now) for custom_id, asked in items],
            extra=extra,
        )
        self._batches[batch.id] = batch
        account.statistics.batches += 1
        account.statistics.batch_requests += len(items)
        return batch

    def find(self, batch_id: str) -> Batch:
        """One batch.

        Raises:
          ApiError: 404.
        """
        if batch_id not in self._batches:
            raise self._account.dialect.not_found("GET", batch_id)
        return self._batches[batch_id]

    def newest(self, count: int) -> list[Batch]:
        """The newest first."""
        return list(self._batches.values())[: -count - 1 : -1]

    def processing(self, now: float) -> int:
        """Requests of all batches that have not ended."""
        return sum(item.ends_at > now for each in self._batches.values() for item in each.items)

    def cancel(self, batch: Batch) -> None:
        """What has not ended never will."""
        now = self._account.clock()
        batch.cancelled_at = batch.cancelled_at or now
        for item in batch.items:
            if item.ends_at > now:
                item.ends_at, item.outcome = now, "canceled"

    def message(self, item: Item) -> object:
        """The answer to an item that has succeeded, as in one piece."""
        account, asked = self._account, item.asked
        assert isinstance(asked, Request)
        text, stop = limited(
            compose(asked, None, gullible=account.settings.gullible), asked.output_tokens_max
        )
        output = max(1, sum(text.tokens))
        usage = Usage(asked.input_tokens, 0, 0, 0)
        shape = account.dialect.shape(
            asked, usage, account.new_id(account.dialect.id_prefix), account.wall()
        )
        return shape.whole("".join(text.pieces), stop, output)

    def _item(self, custom_id: str, asked: Request | ApiError, now: float) -> Item:
        settings, rng = self._account.settings, self._account.rng
        ends_at = now + self._account.draw_s(settings.batch_s * 1_000, settings.batch_s * 500)
        outcome: Outcome = "errored" if isinstance(asked, ApiError) else "succeeded"
        if outcome == "succeeded" and rng.random() * 100 < settings.batch_expired_percent:
            outcome = "expired"
        return Item(custom_id, asked, ends_at, outcome)


def parsed(dialect: Dialect, body: bytes) -> Request | ApiError:
    """A request of a batch; what is wrong with it is its own result."""
    try:
        return dialect.parse(body)
    except ApiError as error:
        return error


def _segments(target: str) -> tuple[list[str], dict[str, list[str]]]:
    path, _, query = target.partition("?")
    return path.strip("/").split("/"), parse_qs(query)


def _limit(query: Mapping[str, list[str]]) -> int:
    text = query.get("limit", [""])[0]
    return min(LIST_MAX, int(text)) if text.isascii() and text.isdigit() else 20


def _rfc3339(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s, UTC).isoformat().replace("+00:00", "Z")


def _lines(values: Sequence[object]) -> Reply:
    return LINES, b"".join(msgspec.json.encode(value) + b"\n" for value in values)


# -- Anthropic's -------------------------------------------------------------------------------


class _MessageRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
    params: msgspec.Raw


class _MessageBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    requests: list[_MessageRequest]


class MessageBatches:
    """`/v1/messages/batches`."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._batches = Batches(account)

    def answer(
        self, method: bytes, target: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> Reply:
        """See `BatchPages`."""
        del headers
        segments, query = _segments(target)
        match (method, segments):
            case (b"POST", ["v1", "messages", "batches"]):
                return self._json(self._open(body))
            case (b"GET", ["v1", "messages", "batches"]):
                data = [self._shown(batch) for batch in self._batches.newest(_limit(query))]
                return self._json({"data": data, "has_more": False})
            case (b"GET", ["v1", "messages", "batches", batch_id]):
                return self._json(self._shown(self._batches.find(batch_id)))
            case (b"GET", ["v1", "messages", "batches", batch_id, "results"]):
                return self._results(self._batches.find(batch_id))
            case (b"POST", ["v1", "messages", "batches", batch_id, "cancel"]):
                batch = self._batches.find(batch_id)
                self._batches.cancel(batch)
                return self._json(self._shown(batch))
        raise self._account.dialect.not_found(method.decode("latin-1"), target)

    def _open(self, body: bytes) -> object:
        dialect = self._account.dialect
        wanted = decode(msgspec.json.Decoder(_MessageBatch), body, dialect.invalid)
        items = [(each.custom_id, parsed(dialect, bytes(each.params))) for each in wanted.requests]
        return self._shown(self._batches.open("msgbatch", items, {}))

    def _shown(self, batch: Batch) -> dict[str, object]:
        now = self._account.clock()
        outcomes: tuple[Outcome, ...] = ("succeeded", "errored", "canceled", "expired")
        counts: dict[str, int] = {name: batch.count(now, name) for name in outcomes}
        counts["processing"] = len(batch.items) - sum(counts.values())
        ended = not counts["processing"]
        cancelled_at = batch.cancelled_at
        return {
            "id": batch.id,
            "type": "message_batch",
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts,
            "created_at": _rfc3339(batch.wall_s),
            "expires_at": _rfc3339(batch.wall_s + LIFE_S),
            "ended_at": _rfc3339(batch.wall_s + batch.ends_at() - batch.opened_at)
            if ended
            else None,
            "cancel_initiated_at": None
            if cancelled_at is None
            else _rfc3339(batch.wall_s + cancelled_at - batch.opened_at),
            "archived_at": None,
            "results_url": f"/v1/messages/batches/{batch.id}/results" if ended else None,
        }

    def _results(self, batch: Batch) -> Reply:
        now = self._account.clock()
        if batch.ends_at() > now:
            raise self._account.dialect.invalid("This batch is still processing.")
        return _lines([self._result(item) for item in batch.ended(now)])

    def _result(self, item: Item) -> dict[str, object]:
        result: dict[str, object] = {"type": item.outcome}
        if item.outcome == "succeeded":
            result["message"] = self._batches.message(item)
        elif isinstance(item.asked, ApiError):
            result["error"] = self._account.dialect.error_json(item.asked, "")
        return {"custom_id": item.custom_id, "result": result}

    def _json(self, value: object) -> Reply:
        return JSON, msgspec.json.encode(value)


# -- OpenAI's ----------------------------------------------------------------------------------


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    custom_id: str
    method: Literal["POST"]
    url: Literal["/v1/chat/completions"]
    body: msgspec.Raw


class _CompletionBatch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    input_file_id: str
    endpoint: Literal["/v1/chat/completions"]
    completion_window: Literal["24h"]
    metadata: dict[str, str] = {}


class CompletionBatches:
    """`/v1/files` and `/v1/batches`."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._batches = Batches(account)
        self._files: dict[str, bytes] = {}
        """Input files; those of results are made when they are asked for."""

    def answer(
        self, method: bytes, target: str, headers: Mapping[bytes, bytes], body: bytes
    ) -> Reply:
        """See `BatchPages`."""
        segments, query = _segments(target)
        match (method, segments):
            case (b"POST", ["v1", "files"]):
                return self._json(self._upload(headers, body))
            case (b"GET", ["v1", "files", file_id, "content"]):
                return self._content(file_id)
            case (b"POST", ["v1", "batches"]):
                return self._json(self._open(body))
            case (b"GET", ["v1", "batches"]):
                data = [self._shown(batch) for batch in self._batches.newest(_limit(query))]
                return self._json({"object": "list", "data": data, "has_more": False})
            case (b"GET", ["v1", "batches", batch_id]):
                return self._json(self._shown(self._batches.find(batch_id)))
            case (b"POST", ["v1", "batches", batch_id, "cancel"]):
                batch = self._batches.find(batch_id)
                self._batches.cancel(batch)
                return self._json(self._shown(batch))
        raise self._account.dialect.not_found(method.decode("latin-1"), target)

    def _upload(self, headers: Mapping[bytes, bytes], body: bytes) -> object:
        fields = _form(headers.get(b"content-type", b""), body)
        if fields.get("purpose") != b"batch" or "file" not in fields:
            raise self._account.dialect.invalid("'purpose' must be 'batch', with a 'file'")
        file_id = self._account.new_id("file")
        self._files[file_id] = fields["file"]
        return {
            "id": file_id,
            "object": "file",
            "bytes": len(fields["file"]),
            "created_at": int(self._account.wall()),
            "filename": "batch.jsonl",
            "purpose": "batch",
        }

    def _open(self, body: bytes) -> object:
        dialect = self._account.dialect
        wanted = decode(msgspec.json.Decoder(_CompletionBatch), body, dialect.invalid)
        file = self._files.get(wanted.input_file_id)
        if file is None:
            raise dialect.not_found("POST", wanted.input_file_id)
        line = msgspec.json.Decoder(_Line)
        lines = [decode(line, each, dialect.invalid) for each in file.splitlines() if each]
        items = [(each.custom_id, parsed(dialect, bytes(each.body))) for each in lines]
        extra = {"input_file_id": wanted.input_file_id, "metadata": wanted.metadata}
        return self._shown(self._batches.open("batch", items, extra))

    def _shown(self, batch: Batch) -> dict[str, object]:
        now = self._account.clock()
        failed = batch.count(now, "errored", "expired")
        completed, total = batch.count(now, "succeeded"), len(batch.items)
        ended = batch.ends_at() <= now
        status = "in_progress"
        if ended and batch.cancelled_at is not None:
            status = "cancelled"
        elif ended:
            status = "expired" if batch.count(now, "expired") else "completed"
        return {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "status": status,
            "created_at": int(batch.wall_s),
            "expires_at": int(batch.wall_s + LIFE_S),
            "output_file_id": f"output-{batch.id}" if ended and completed else None,
            "error_file_id": f"error-{batch.id}" if ended and failed else None,
            "request_counts": {"total": total, "completed": completed, "failed": failed},
            **batch.extra,
        }

    def _content(self, file_id: str) -> Reply:
        kind, _, batch_id = file_id.partition("-")
        if kind not in ("output", "error"):
            raise self._account.dialect.not_found("GET", file_id)
        batch = self._batches.find(batch_id)
        ended = batch.ended(self._account.clock())
        if kind == "output":
            return _lines([self._output(item) for item in ended if item.outcome == "succeeded"])
        lost = [item for item in ended if item.outcome in ("errored", "expired")]
        return _lines([self._error(item) for item in lost])

    def _output(self, item: Item) -> dict[str, object]:
        response = {"status_code": 200, "request_id": "", "body": self._batches.message(item)}
        return {"id": "", "custom_id": item.custom_id, "response": response, "error": None}

    def _error(self, item: Item) -> dict[str, object]:
        found: dict[str, object] = {"id": "", "custom_id": item.custom_id, "error": None}
        if isinstance(item.asked, ApiError):
            body = self._account.dialect.error_json(item.asked, "")
            found["response"] = {"status_code": item.asked.status, "request_id": "", "body": body}
        else:
            message = "This request could not be executed before the completion window expired."
            found |= {"response": None, "error": {"code": "batch_expired", "message": message}}
        return found

    def _json(self, value: object) -> Reply:
        return JSON, msgspec.json.encode(value)


def _form(content_type: bytes, body: bytes) -> dict[str, bytes]:
    """The fields of a multipart form; empty where it is none."""
    head = b"Content-Type: " + content_type + b"\r\n\r\n"
    form = BytesParser(policy=HTTP).parsebytes(head + body)
    fields = {}
    for part in form.iter_parts() if form.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        payload = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(payload, bytes):
            fields[name] = payload
    return fields
