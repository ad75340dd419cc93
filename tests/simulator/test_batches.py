"""Batches in both dialects: taken in whole, answered out of order, expiring, within their quota."""

from __future__ import annotations

import json
from typing import Any

import pytest

from coach.simulator.completions import Completions

from .support import SCHEMA, Bench, judged

MESSAGES = "/v1/messages/batches"


def message(text: str = "A short text of mine.") -> dict[str, Any]:
    params = judged()
    params["messages"][0]["content"] = f"<essay>\n{text}\n</essay>"
    return params


def completion() -> dict[str, Any]:
    form = {"type": "json_schema", "json_schema": {"name": "g", "schema": SCHEMA, "strict": True}}
    return {
        "model": "sim-1",
        "messages": [{"role": "user", "content": "<essay>\nA short text.\n</essay>"}],
        "response_format": form,
    }


def ask(bench: Bench, path: str, body: Any = None, method: str = "POST") -> Any:
    exchange = bench.ask(body if body is not None else b"", method=method, path=path)
    assert exchange.status == 200, exchange.data
    if exchange.answer_headers["content-type"] == "application/x-jsonl":
        return [json.loads(line) for line in exchange.data.splitlines()]
    return exchange.json


def items(count: int) -> dict[str, Any]:
    return {"requests": [{"custom_id": f"c{n}", "params": message()} for n in range(count)]}


def upload(bench: Bench, lines: list[dict[str, Any]]) -> str:
    file = b"\n".join(json.dumps(line).encode() for line in lines)
    body = (
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + file + b"\r\n--x--\r\n"
    )
    headers = {**bench_headers(), b"content-type": b"multipart/form-data; boundary=x"}
    exchange = bench.ask(body, path="/v1/files", headers=headers)
    assert exchange.status == 200, exchange.data
    found: str = exchange.json["id"]
    return found


def bench_headers() -> dict[bytes, bytes]:
    return {b"authorization": b"Bearer test"}


def line(custom_id: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": completion() if body is None else body,
    }


def test_a_message_batch_ends_with_its_results_out_of_order() -> None:
    bench = Bench(batch_s=10.0)
    batch = ask(bench, MESSAGES, items(40))
    assert (batch["type"], batch["processing_status"]) == ("message_batch", "in_progress")
    assert batch["request_counts"]["processing"] == 40
    assert batch["results_url"] is None
    path = f"{MESSAGES}/{batch['id']}"
    assert bench.ask(b"", method="GET", path=f"{path}/results").status == 400
    bench.run(100)
    batch = ask(bench, path, method="GET")
    assert (batch["processing_status"], batch["request_counts"]["succeeded"]) == ("ended", 40)
    results = ask(bench, batch["results_url"], method="GET")
    ids = [result["custom_id"] for result in results]
    assert sorted(ids) == sorted(f"c{n}" for n in range(40))
    assert ids != [f"c{n}" for n in range(40)]
    answer = results[0]["result"]["message"]
    assert json.loads(answer["content"][0]["text"]).keys() == {"content"}
    assert answer["usage"]["input_tokens"] > 0
    assert [each["id"] for each in ask(bench, f"{MESSAGES}?limit=x", method="GET")["data"]] == [
        batch["id"]
    ]
    assert bench.stats()["batch_requests"] == 40


def test_what_is_wrong_with_an_item_is_its_own_result_and_some_expire() -> None:
    bench = Bench(batch_expired_percent=100)
    wrong = {"requests": [{"custom_id": "bad", "params": {"model": "m"}}, *items(1)["requests"]]}
    batch = ask(bench, MESSAGES, wrong)
    bench.run(100)
    results = ask(bench, f"{MESSAGES}/{batch['id']}/results", method="GET")
    found = {result["custom_id"]: result["result"] for result in results}
    assert found["bad"]["type"] == "errored"
    assert found["bad"]["error"]["error"]["type"] == "invalid_request_error"
    assert found["c0"] == {"type": "expired"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"requests": []}, 400),
        ({"requests": [{"custom_id": "a b", "params": {}}]}, 400),
        ({"requests": [*items(1)["requests"], *items(1)["requests"]]}, 400),
        (items(3), 429),
    ],
)
def test_a_batch_that_cannot_be_taken_is_refused_whole(body: dict[str, Any], status: int) -> None:
    bench = Bench(batch_requests_max=2)
    assert bench.ask(body, path=MESSAGES).status == status
    assert bench.stats()["batches"] == 0


def test_a_cancelled_batch_ends_at_once() -> None:
    bench = Bench(batch_s=50.0)
    batch = ask(bench, MESSAGES, items(3))
    batch = ask(bench, f"{MESSAGES}/{batch['id']}/cancel")
    assert batch["cancel_initiated_at"] is not None
    assert (batch["processing_status"], batch["request_counts"]["canceled"]) == ("ended", 3)


def test_a_completion_batch_has_a_file_of_results_and_one_of_errors() -> None:
    bench = Bench(dialect=Completions())
    file = upload(bench, [line("a"), line("b"), line("bad", {"model": "m"})])
    wanted = {
        "input_file_id": file,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
        "metadata": {"job": "j1"},
    }
    batch = ask(bench, "/v1/batches", wanted)
    assert (batch["status"], batch["output_file_id"]) == ("in_progress", None)
    bench.run(100)
    batch = ask(bench, f"/v1/batches/{batch['id']}", method="GET")
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert ask(bench, "/v1/batches", method="GET")["data"][0]["metadata"] == {"job": "j1"}
    results = ask(bench, f"/v1/files/{batch['output_file_id']}/content", method="GET")
    assert {result["custom_id"] for result in results} == {"a", "b"}
    assert results[0]["response"]["body"]["object"] == "chat.completion"
    (error,) = ask(bench, f"/v1/files/{batch['error_file_id']}/content", method="GET")
    assert (error["custom_id"], error["response"]["status_code"]) == ("bad", 400)


def test_completions_expire_and_are_cancelled() -> None:
    bench = Bench(dialect=Completions(), batch_expired_percent=100)
    file = upload(bench, [line("a")])
    wanted = {
        "input_file_id": file,
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    batch = ask(bench, "/v1/batches", wanted)
    bench.run(100)
    batch = ask(bench, f"/v1/batches/{batch['id']}", method="GET")
    assert (batch["status"], batch["output_file_id"]) == ("expired", None)
    (error,) = ask(bench, f"/v1/files/{batch['error_file_id']}/content", method="GET")
    assert error["error"]["code"] == "batch_expired"
    second = ask(bench, "/v1/batches", wanted)
    assert ask(bench, f"/v1/batches/{second['id']}/cancel")["status"] == "cancelled"


@pytest.mark.parametrize("path", ["/v1/files/x/content", "/v1/batches/x", "/v1/nothing", "/x"])
def test_what_is_not_there_is_not_found(path: str) -> None:
    bench = Bench(dialect=Completions())
    assert bench.ask(b"", method="GET", path=path).status == 404
    assert Bench().ask(b"", method="GET", path=path).status == 404


def test_a_form_that_is_none_and_a_file_nobody_has_are_refused() -> None:
    bench = Bench(dialect=Completions())
    assert bench.ask(b"x", path="/v1/files").status == 400
    wanted = {
        "input_file_id": "none",
        "endpoint": "/v1/chat/completions",
        "completion_window": "24h",
    }
    assert bench.ask(wanted, path="/v1/batches").status == 404
