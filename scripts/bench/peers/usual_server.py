"""A writing coach as a competent team writes it first: FastAPI and the provider's own SDK.

What coach is set beside in `scripts/bench/before_after`: a whole server, of the same messages, with
the same instructions, rubric and judges. It runs in an environment of its own
(`usual_requirements.txt`). What it does, and where that comes from:

client      `AsyncAnthropic()` once in the module, all defaults: HTTP/1.1, a pool of 1,000
            connections of which 100 are kept when idle, two retries, ten minutes of patience
            (anthropic-sdk-python, README). `USUAL_CLIENT_PER_CALL=1`: one for every call, closed
            after it, as many programs have it; most of them do not even close it.
streaming   `async with client.messages.stream(…)`, `async for text in stream.text_stream`, one
            `send_text` each: the SDK's own example (helpers.md) and every tutorial's.
prompt      instructions, rubric, task, the last three answers and the whole draft, each time; no
            `cache_control`, which is an extra that one adds later.
turns       a task each (`asyncio.create_task`), so that typing is read meanwhile. A newer question
            for the same draft and `cancel` cancel the task; the SDK then closes the connection,
            since HTTP/1.1 knows no other way to stop an answer. When a student leaves, FastAPI
            cancels nothing: the task goes on until its next `send_text` fails.
limits      requests of a user and tokens of a school in the last minute, in dicts of this process:
            asked before a call, written after it, when the provider has said what it was.
429         the SDK waits and tries twice more; the third is an error that the student sees.
grading     inside the request: three judges by `asyncio.gather`, the median by criterion, a row in
            SQLite (WAL, committed), then the answer over the socket. A judge that fails fails it.
sessions    end with their connection, drafts are in memory, nothing is resumed.
processes   as many as `uvicorn --workers` says; they share nothing.

Kinder than usual: uvloop, httptools, no access log, messages validated by pydantic's core alone,
one database connection that stays open, as many open files as the machine allows.

Settings are environment variables: USUAL_PROMPTS (a JSON file, see `usual_stage.py`),
USUAL_DATABASE, USUAL_MODEL, USUAL_JWT_SECRET, USUAL_USER_REQUESTS, USUAL_SCHOOL_TOKENS (both a
minute), USUAL_CLIENT_PER_CALL; ANTHROPIC_BASE_URL, ANTHROPIC_API_KEY and SSL_CERT_FILE are the
SDK's.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import statistics
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import aiosqlite  # type: ignore[import-not-found,unused-ignore]
import jwt
from anthropic import (  # type: ignore[import-not-found,unused-ignore]
    AnthropicError,
    AsyncAnthropic,
    RateLimitError,
)
from fastapi import (  # type: ignore[import-not-found,unused-ignore]
    FastAPI,
    WebSocket,
    WebSocketDisconnect,
)
from pydantic import (  # type: ignore[import-not-found,unused-ignore]
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
)

PROMPTS: dict[str, Any] = json.loads(Path(os.environ["USUAL_PROMPTS"]).read_text())
DATABASE = os.environ["USUAL_DATABASE"]
MODEL = os.environ["USUAL_MODEL"]
JWT_SECRET = os.environ["USUAL_JWT_SECRET"]
USER_REQUESTS = int(os.environ["USUAL_USER_REQUESTS"])
SCHOOL_TOKENS = int(os.environ["USUAL_SCHOOL_TOKENS"])
CLIENT_PER_CALL = os.environ.get("USUAL_CLIENT_PER_CALL") == "1"
ANSWERS_KEPT = 3
JUDGES = 3
MINUTE_S = 60.0
HELLO_S_MAX = 5.0
TASKS = {item["id"]: item["task"] for item in PROMPTS["assignments"]}

claude = AsyncAnthropic()


@asynccontextmanager
async def client() -> AsyncIterator[AsyncAnthropic]:
    """The shared client, or one of its own for this call."""
    if not CLIENT_PER_CALL:
        yield claude
        return
    async with AsyncAnthropic() as fresh:
        yield fresh


# -- messages ----------------------------------------------------------------------------------


class Hello(BaseModel):
    """The first message."""

    type: Literal["hello"]
    token: str


class Edit(BaseModel):
    """Splices: at, delete, insert."""

    type: Literal["edit"]
    draft: str
    rev: int
    splices: list[tuple[int, int, str]]


class Draft(BaseModel):
    """The whole text."""

    type: Literal["draft"]
    draft: str
    rev: int
    text: str


class Feedback(BaseModel):
    """A question."""

    type: Literal["feedback"]
    request: str
    draft: str
    focus: str | None = None
    assignment: str | None = None


class Cancel(BaseModel):
    """No answer is wanted any more."""

    type: Literal["cancel"]
    request: str


class Submit(BaseModel):
    """An essay is handed in."""

    type: Literal["submit"]
    submission: str
    assignment: str
    text: str


class Ack(BaseModel):
    """Everything up to `seq` was seen: of no use here."""

    type: Literal["ack"]
    seq: int


Message = Hello | Edit | Draft | Feedback | Cancel | Submit | Ack
messages: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="type")])


# -- limits: of this process -------------------------------------------------------------------


class Window:
    """What was used in the last minute, by name."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._used: dict[str, deque[tuple[float, int]]] = {}

    def is_full(self, name: str) -> bool:
        """Whether nothing more may be used."""
        used = self._used.setdefault(name, deque())
        since = time.monotonic() - MINUTE_S
        while used and used[0][0] < since:
            used.popleft()
        return sum(amount for _, amount in used) >= self._most

    def add(self, name: str, amount: int) -> None:
        """Something was used."""
        self._used.setdefault(name, deque()).append((time.monotonic(), amount))


user_requests, school_tokens = Window(USER_REQUESTS), Window(SCHOOL_TOKENS)


# -- a student ---------------------------------------------------------------------------------


class Turn:
    """A question and the task that answers it."""

    def __init__(self, asked: Feedback) -> None:
        self.asked = asked
        self.task: asyncio.Task[None] | None = None
        self.ended = False


class Student:
    """One connection."""

    def __init__(self, websocket: WebSocket, database: aiosqlite.Connection) -> None:
        self._websocket = websocket
        self._database = database
        self._user = self._school = ""
        self._seq = 0
        self._drafts: dict[str, str] = {}
        self._turns: dict[str, Turn] = {}
        self._answers: deque[tuple[str | None, str]] = deque(maxlen=ANSWERS_KEPT)
        self._grading: set[asyncio.Task[None]] = set()
        # asyncio itself holds tasks weakly

    async def run(self) -> None:
        """Greet, then read until the student leaves."""
        await self._websocket.accept(subprotocol="coach.v1")
        try:
            async with asyncio.timeout(HELLO_S_MAX):
                hello = messages.validate_json(await self._websocket.receive_text())
            assert isinstance(hello, Hello)
            claims = jwt.decode(hello.token, JWT_SECRET, algorithms=["HS256"])
            self._user, self._school = claims["sub"], claims["org"]
        except (TimeoutError, ValidationError, AssertionError, jwt.InvalidTokenError, KeyError):
            await self._websocket.close(4401)
            return
        limits = {"message_bytes": 262_144, "draft_chars": 100_000, "drafts": 8}
        welcome = {"session": secrets.token_hex(8), "seq": 0, "replayed": 0, "limits": limits}
        await self._websocket.send_text(json.dumps({"type": "welcome", **welcome}))
        async for text in self._websocket.iter_text():
            try:
                await self._take(messages.validate_json(text))
            except ValidationError:
                await self._say("error", code="bad_message", message="not a coach.v1 message")

    async def _take(self, message: Message) -> None:
        match message:
            case Edit():
                text = self._drafts.get(message.draft, "")
                for at, delete, insert in message.splices:
                    text = spliced(text, at, delete, insert)
                self._drafts[message.draft] = text
            case Draft():
                self._drafts[message.draft] = message.text
            case Feedback():
                await self._ask(message)
            case Cancel():
                turn = self._turns.get(message.request)
                if turn is not None:
                    await self._cancel(turn, "stopped")
            case Submit():
                task = asyncio.create_task(self._grade(message))
                self._grading.add(task)
                task.add_done_callback(self._grading.discard)

    async def _ask(self, asked: Feedback) -> None:
        for older in [turn for turn in self._turns.values() if turn.asked.draft == asked.draft]:
            await self._cancel(older, "replaced by a newer request")
        turn = self._turns[asked.request] = Turn(asked)
        turn.task = asyncio.create_task(self._answer(turn))

    async def _cancel(self, turn: Turn, why: str) -> None:
        if turn.task is not None:
            turn.task.cancel()
        self._turns.pop(turn.asked.request, None)
        await self._end(turn, "error", code="cancelled", message=why)

    async def _answer(self, turn: Turn) -> None:
        request = turn.asked.request
        try:
            if user_requests.is_full(self._user) or school_tokens.is_full(self._school):
                await self._end(turn, "error", code="rate_limited", message="too many requests")
                return
            user_requests.add(self._user, 1)
            said = []
            async with client() as own, own.messages.stream(**self._prompt(turn.asked)) as stream:
                await self._say("started", request=request, provider="anthropic", model=MODEL)
                async for text in stream.text_stream:
                    said.append(text)
                    await self._say("delta", request=request, text=text)
                final = await stream.get_final_message()
            used = final.usage
            school_tokens.add(self._school, used.input_tokens + used.output_tokens)
            self._answers.append((turn.asked.focus, "".join(said)))
            usage = {"input": used.input_tokens, "cached": 0, "output": used.output_tokens}
            await self._end(turn, "done", usage=usage, stop_reason=final.stop_reason)
        except RateLimitError:
            await self._end(turn, "error", code="rate_limited", message="the model is busy")
        except AnthropicError as error:
            await self._end(turn, "error", code="provider_unavailable", message=str(error))
        except (WebSocketDisconnect, RuntimeError):
            pass  # the student has left, and the block above has closed the stream
        finally:
            self._turns.pop(request, None)

    def _prompt(self, asked: Feedback) -> dict[str, Any]:
        history = []
        for focus, answer in self._answers:
            history.append({"role": "user", "content": question(focus)})
            history.append({"role": "assistant", "content": answer})
        essay = f"<essay>\n{self._drafts.get(asked.draft, '')}\n</essay>\n{question(asked.focus)}"
        return {
            "model": MODEL,
            "max_tokens": PROMPTS["feedback_tokens_max"],
            "system": instructions("feedback", asked.assignment),
            "messages": [*history, {"role": "user", "content": essay}],
        }

    async def _grade(self, handed_in: Submit) -> None:
        submission = handed_in.submission
        try:
            await self._say("grading", submission=submission)
            lenses = PROMPTS["lenses"][:JUDGES]
            answers = await asyncio.gather(*(judge(handed_in, lens) for lens in lenses))
            grade = combined(answers)
            await self._database.execute(
                "INSERT OR REPLACE INTO grades VALUES (?, ?, ?, ?, ?)",
                (submission, self._user, self._school, handed_in.text, json.dumps(grade)),
            )
            await self._database.commit()
            await self._say("grade", submission=submission, **grade)
        except AnthropicError as error:
            code = "rate_limited" if isinstance(error, RateLimitError) else "provider_unavailable"
            await self._say("error", submission=submission, code=code, message=str(error))
        except (WebSocketDisconnect, RuntimeError):
            pass  # the student has left; the grade is in the database

    async def _end(self, turn: Turn, kind: str, **fields: Any) -> None:
        if not turn.ended:
            turn.ended = True
            await self._say(kind, request=turn.asked.request, **fields)

    async def _say(self, kind: str, **fields: Any) -> None:
        self._seq += 1
        message = {"type": kind, "seq": self._seq, **fields}
        await self._websocket.send_text(json.dumps(message, ensure_ascii=False))


def spliced(text: str, at: int, delete: int, insert: str) -> str:
    """Offsets count UTF-16 units, as browsers do."""
    if text.isascii():
        return text[:at] + insert + text[at + delete :]
    units = text.encode("utf-16-le")
    return (units[: 2 * at] + insert.encode("utf-16-le") + units[2 * (at + delete) :]).decode(
        "utf-16-le"
    )


def question(focus: str | None) -> str:
    """What the student wants."""
    asked = "Please comment on my draft."
    return f"{asked} I would like to know about: {focus}" if focus else asked


def instructions(kind: str, assignment: str | None) -> str:
    """The system prompt."""
    task = TASKS.get(assignment or "", PROMPTS["free_task"])
    return f"{PROMPTS[kind]}\n\nThe assignment: {task}"


# -- judges ------------------------------------------------------------------------------------


async def judge(handed_in: Submit, lens: str) -> dict[str, Any]:
    """One judge's opinion, JSON by the rubric's schema."""
    content = f"<essay>\n{handed_in.text}\n</essay>\nJudge this essay by the rubric.\n{lens}"
    async with client() as own:
        message = await own.messages.create(
            model=MODEL,
            max_tokens=PROMPTS["judge_tokens_max"],
            system=instructions("judge", handed_in.assignment),
            messages=[{"role": "user", "content": content}],
            output_config={"format": {"type": "json_schema", "schema": PROMPTS["schema"]}},
        )
    opinion: dict[str, Any] = json.loads(message.content[0].text)
    return opinion


def combined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The median of each criterion, weighed by the rubric."""
    criteria, score = [], 0.0
    for criterion in PROMPTS["criteria"]:
        opinions = [answer["criteria"][criterion["name"]] for answer in answers]
        band = round(statistics.median(opinion["band"] for opinion in opinions))
        nearest = min(opinions, key=lambda opinion: abs(opinion["band"] - band))
        criteria.append(
            {
                "name": criterion["name"],
                "label": criterion["label"],
                "band": band,
                "band_max": criterion["band_max"],
                "evidence": nearest["evidence"],
                "reason": nearest["reason"],
            }
        )
        score += criterion["weight"] * band / criterion["band_max"]
    return {
        "score": round(score),
        "criteria": criteria,
        "judges": len(answers),
        "feedback": answers[0]["improve_first"],
    }


# -- the application ---------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open the database."""
    async with aiosqlite.connect(DATABASE) as database:
        await database.execute("PRAGMA journal_mode=WAL")
        await database.execute(
            "CREATE TABLE IF NOT EXISTS grades"
            " (submission TEXT PRIMARY KEY, user TEXT, school TEXT, essay TEXT, grade TEXT)"
        )
        app.state.database = database
        yield


async def write(websocket: WebSocket) -> None:
    """A student's connection."""
    with suppress(WebSocketDisconnect):
        await Student(websocket, websocket.app.state.database).run()


async def token() -> dict[str, str]:
    """A new student."""
    user = secrets.token_hex(8)
    claims = {"sub": user, "org": "demo", "role": "student", "exp": int(time.time()) + 86_400}
    return {"token": jwt.encode(claims, JWT_SECRET, algorithm="HS256"), "user": user}


async def assignments() -> list[dict[str, str]]:
    """What may be written about."""
    offered: list[dict[str, str]] = PROMPTS["assignments"]
    return offered


async def ready() -> dict[str, str]:
    """It answers."""
    return {"status": "ready"}


app = FastAPI(lifespan=lifespan)
app.add_api_websocket_route("/ws", write)
app.add_api_route("/api/token", token, methods=["POST"])
app.add_api_route("/api/assignments", assignments)
app.add_api_route("/healthz", ready)
app.add_api_route("/readyz", ready)
