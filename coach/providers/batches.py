"""Providers' batch APIs: many requests at once, at half the price, answered within a day.

Anthropic's Message Batches (platform.claude.com, "Batch processing"), OpenAI's Batch (API
reference, "Batch", "Files"). Neither knows a key that would make asking idempotent. Whoever asks
writes down that it will before it does; whoever comes after its death looks with `find` for what
became of it.

Memory: a batch's requests, its results once, BODY_BYTES_MAX of each at most.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, final
from urllib.parse import urlsplit

import attrs
import httpx
import msgspec

from .anthropic import Anthropic
from .openai import OpenAI
from .records import Completion, Prompt, ProviderError

if TYPE_CHECKING:
    from .. import config
    from .answer import Api

BODY_BYTES_MAX: Final = 64 * 1024 * 1024
"""Of a response with results."""
LISTED_MAX: Final = 100
"""Batches looked through for one whose asking was not seen to end."""
CLOCKS_APART_S: Final = 300.0
"""By how much a provider's clock may be behind ours."""
LABEL: Final = "coach"
"""Of the metadata that tells our batches apart, where a provider keeps any."""
_NO_PROMPT: Final = Prompt(system=(), messages=(), output_tokens_max=1)

Outcome = Literal["answered", "refused", "expired"]


@attrs.frozen
class BatchRequest:
    """One request of a batch."""

    id: str
    """1 to 64 of A-Z a-z 0-9 _ -, once in a batch."""
    prompt: Prompt


@attrs.frozen
class BatchResult:
    """What became of one request."""

    id: str
    outcome: Outcome
    completion: Completion | None = None
    """Present exactly when it was answered."""


@attrs.frozen
class Found:
    """A batch that may be the one whose asking was not seen to end."""

    batch: str
    is_ours: bool
    """Surely; else its results tell, by their ids."""


class BatchApi(Protocol):
    """One endpoint and one model, asked in batches.

    Every method is a checkpoint and raises ProviderError where there is no usable answer.
    """

    async def ask(self, requests: Sequence[BatchRequest], *, label: str) -> str:
        """Hand a batch in; its id.

        Cancelled, or failed without a status, it may have been handed in: see `find`.
        """

    async def is_ended(self, batch: str) -> bool:
        """Whether the results are there."""

    async def results(self, batch: str) -> list[BatchResult]:
        """What became of each request, in any order; of a batch that has ended."""

    async def find(self, label: str, *, since_s: float) -> list[Found]:
        """Batches that may have been asked under this label, since then (seconds of the epoch)."""


def open_batch_api(
    settings: config.Provider, transport: httpx.AsyncBaseTransport
) -> BatchApi | None:
    """The endpoint's batches; None: it is asked live only. Nothing is sent.

    Args:
      settings: of the endpoint.
      transport: the pool.
    """
    if settings.kind == "anthropic":
        return MessageBatches(settings, transport)
    return CompletionBatches(settings, transport) if settings.kind == "openai" else None


class _Http:
    """Requests to one endpoint, in the words of its API."""

    def __init__(
        self, settings: config.Provider, transport: httpx.AsyncBaseTransport, api: Api
    ) -> None:
        self._name = settings.name
        self._model = settings.model
        self._api = api
        self._transport = transport
        url = urlsplit(settings.base_url)
        self._root = f"{url.scheme}://{url.netloc}"
        self._base = url.path.rstrip("/")
        headers = api.headers(settings.api_key, stream=False)
        self._headers = {name.decode(): value.decode() for name, value in headers}

    async def _send(
        self, method: str, path: str, content: bytes = b"", content_type: str = "application/json"
    ) -> bytes:
        """The body of a 200.

        Raises:
          ProviderError: anything else, or nothing.
        """
        request = httpx.Request(
            method,
            self._root + path,
            headers=self._headers | {"content-type": content_type},
            content=content,
        )
        try:
            response = await self._transport.handle_async_request(request)
            try:
                body = bytearray()
                assert isinstance(response.stream, httpx.AsyncByteStream)
                async for part in response.stream:
                    body += part
                    if len(body) > BODY_BYTES_MAX:
                        raise self._error("malformed", "the results are too long")
            finally:
                await response.aclose()
        except httpx.HTTPError as error:
            raise self._error("unreachable", f"{type(error).__name__}") from error
        answer = self._api.whole(self._name, _NO_PROMPT, None)
        answer.on_head(response.status_code, response.headers.raw)
        if response.status_code != 200:
            answer.on_data(bytes(body))
        answer.check_status()
        return bytes(body)

    async def _get(self, path: str) -> Any:
        return self._decoded(await self._send("GET", path))

    async def _post(self, path: str, value: object) -> Any:
        return self._decoded(await self._send("POST", path, msgspec.json.encode(value)))

    def _decoded(self, body: bytes) -> Any:
        try:
            return msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._error("malformed", "an answer about a batch is no JSON") from error

    def _lines(self, body: bytes) -> list[dict[str, Any]]:
        return [self._decoded(line) for line in body.splitlines() if line]

    def _answered(self, id_: str, message: object) -> BatchResult:
        answer = self._api.whole(self._name, _NO_PROMPT, None)
        answer.on_head(200, [])
        answer.on_data(msgspec.json.encode(message))
        try:
            return BatchResult(id_, "answered", answer.completion())
        except ProviderError:
            return BatchResult(id_, "refused")

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        body = msgspec.json.decode(self._api.body(prompt, self._model, stream=False))
        body.pop("stream", None)
        found: dict[str, Any] = body
        return found

    def _error(self, kind: Literal["malformed", "unreachable"], reason: str) -> ProviderError:
        return ProviderError(f"{self._name}: {reason}", kind=kind, provider=self._name)


@final
class MessageBatches(_Http):
    """Anthropic's; see `BatchApi`. Batches have no label: ids of results tell whose they are."""

    def __init__(self, settings: config.Provider, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(settings, transport, Anthropic())
        self._path = f"{self._base}/v1/messages/batches"

    async def ask(self, requests: Sequence[BatchRequest], *, label: str) -> str:
        """See `BatchApi`."""
        del label
        items = [{"custom_id": each.id, "params": self._body(each.prompt)} for each in requests]
        return str((await self._post(self._path, {"requests": items}))["id"])

    async def is_ended(self, batch: str) -> bool:
        """See `BatchApi`."""
        found = await self._get(f"{self._path}/{batch}")
        return bool(found.get("processing_status") == "ended")

    async def results(self, batch: str) -> list[BatchResult]:
        """See `BatchApi`."""
        lines = self._lines(await self._send("GET", f"{self._path}/{batch}/results"))
        return [self._result(str(line["custom_id"]), line["result"]) for line in lines]

    def _result(self, id_: str, result: Mapping[str, Any]) -> BatchResult:
        if result["type"] == "succeeded":
            return self._answered(id_, result["message"])
        return BatchResult(id_, "refused" if result["type"] == "errored" else "expired")

    async def find(self, label: str, *, since_s: float) -> list[Found]:
        """See `BatchApi`."""
        del label
        listed = await self._get(f"{self._path}?limit={LISTED_MAX}")
        return [
            Found(str(batch["id"]), is_ours=False)
            for batch in listed.get("data", ())
            if datetime.fromisoformat(batch["created_at"]).timestamp() >= since_s - CLOCKS_APART_S
        ]


@final
class CompletionBatches(_Http):
    """OpenAI's; see `BatchApi`."""

    def __init__(self, settings: config.Provider, transport: httpx.AsyncBaseTransport) -> None:
        super().__init__(settings, transport, OpenAI())
        self._base = self._base or "/v1"

    async def ask(self, requests: Sequence[BatchRequest], *, label: str) -> str:
        """See `BatchApi`."""
        lines = [
            {
                "custom_id": each.id,
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": self._body(each.prompt),
            }
            for each in requests
        ]
        file = b"\n".join(map(msgspec.json.encode, lines))
        form = httpx.Request(
            "POST",
            self._root,
            data={"purpose": "batch"},
            files={"file": ("batch.jsonl", file, "application/jsonl")},
        )
        path = f"{self._base}/files"
        content_type = form.headers["content-type"]
        uploaded = self._decoded(await self._send("POST", path, form.read(), content_type))
        wanted = {
            "input_file_id": uploaded["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {LABEL: label},
        }
        return str((await self._post(f"{self._base}/batches", wanted))["id"])

    async def is_ended(self, batch: str) -> bool:
        """See `BatchApi`."""
        found = await self._get(f"{self._base}/batches/{batch}")
        return found.get("status") in ("completed", "expired", "cancelled", "failed")

    async def results(self, batch: str) -> list[BatchResult]:
        """See `BatchApi`."""
        found = await self._get(f"{self._base}/batches/{batch}")
        results: list[BatchResult] = []
        for name in ("output_file_id", "error_file_id"):
            if found.get(name):
                path = f"{self._base}/files/{found[name]}/content"
                results += map(self._result, self._lines(await self._send("GET", path)))
        return results

    def _result(self, line: Mapping[str, Any]) -> BatchResult:
        id_, response = str(line["custom_id"]), line.get("response")
        if response is None:
            return BatchResult(id_, "expired")
        if response["status_code"] != 200:
            return BatchResult(id_, "refused")
        return self._answered(id_, response["body"])

    async def find(self, label: str, *, since_s: float) -> list[Found]:
        """See `BatchApi`."""
        del since_s
        listed = await self._get(f"{self._base}/batches?limit={LISTED_MAX}")
        return [
            Found(str(batch["id"]), is_ours=True)
            for batch in listed.get("data", ())
            if (batch.get("metadata") or {}).get(LABEL) == label
        ]
