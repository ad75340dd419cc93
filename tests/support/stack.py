"""A whole coach of real processes on free ports: Valkey, simulators, workers, a grader."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import cache
from pathlib import Path

import attrs
import httpx
import msgspec
import trio
from trio_websocket import WebSocketConnection, wrap_client_stream

from coach.child import Process, exited, start_child, stop_child
from coach.simulator.corpus import load_essays
from coach.store import EmbeddedServer, open_embedded

START_S_MAX = 30.0
END_S_MAX = 12.0
CLOSE_S_MAX = 1.0
POLL_S = 0.01
DRAFT = "The sea was calm that day, and nobody believed it."
API_KEY = "key-of-the-provider"
JWT_BEGIN = "eyJhbGciOi"
"""Longer than chance: session ids are of the same letters."""


@attrs.frozen
class Simulator:
    """A simulated provider: what it has seen, and how it is to behave."""

    url: str
    ca: str

    async def stats(self) -> dict[str, float]:
        """Its `/stats`."""
        async with httpx.AsyncClient(verify=_trust(self.ca)) as client:
            stats: dict[str, float] = (await client.get(f"{self.url}/stats")).json()
            return stats

    async def control(self, **settings: object) -> None:
        """Change its latencies and faults."""
        async with httpx.AsyncClient(verify=_trust(self.ca)) as client:
            (await client.post(f"{self.url}/control", json=settings)).raise_for_status()


@attrs.define(eq=False)
class Stack:
    """What runs, and where."""

    url: str
    simulator_url: str
    redis: EmbeddedServer
    data_dir: Path
    supervisor: Process
    grader: Process | None
    providers: Mapping[str, Simulator]
    """By name, in the order of preference: `simulator`, and `second` where there is one."""
    environment: Mapping[str, str]
    """Of coach's processes."""
    resumes: list[str] = attrs.field(factory=list)
    """The resume tokens that students were given."""

    async def simulator(self) -> dict[str, float]:
        """The simulator's `/stats`."""
        return await self.providers["simulator"].stats()

    async def control(self, **settings: object) -> None:
        """Change the simulator's latencies and faults."""
        await self.providers["simulator"].control(**settings)

    async def token(self) -> str:
        """A new student's token."""
        async with plain_client() as client:
            token: str = (await client.post(f"{self.url}/api/token")).json()["token"]
            return token

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples over the labels that are not given."""
        async with plain_client() as client:
            text = (await client.get(f"{self.url}/metrics")).text
        given = [f'{label}="{value}"' for label, value in labels.items()]
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith((f"{name} ", f"{name}{{")) and all(each in line for each in given)
        ]
        return sum(values)

    async def submission(self, token: str, submission: str) -> httpx.Response:
        """What the API says of a submission."""
        async with plain_client() as client:
            return await client.get(
                f"{self.url}/api/submissions/{submission}",
                headers={"Authorization": f"Bearer {token}"},
            )

    @asynccontextmanager
    async def student(self, token: str | None = None) -> AsyncIterator[Student]:
        """A connected student who has said hello."""
        token = token or await self.token()
        async with open_websocket(self.url) as websocket:
            student = Student(websocket, token)
            await student.send(type="hello", token=token)
            welcome = await student.receive()
            assert welcome["type"] == "welcome", welcome
            if "resume" in welcome:
                self.resumes.append(str(welcome["resume"]))
            yield student

    def workers(self) -> set[int]:
        """The workers' process ids."""
        return children_of(self.supervisor.pid)

    def start_grader(self) -> None:
        """Start a grader, also in place of one that was killed."""
        self.grader = _coach(self.data_dir, "grade", self.environment)

    def log(self, name: str = "serve") -> str:
        """What `coach <name>` and its children have written."""
        return (self.data_dir / f"{name}.log").read_text()

    def private_lines(self) -> list[str]:
        """Log lines in which a token, a key or a piece of an essay stands."""
        pieces = [essay.text[at : at + 30] for essay in load_essays() for at in (0, 500)]
        private = [API_KEY, JWT_BEGIN, DRAFT[:30], *pieces, *self.resumes]
        logs = [path.read_text() for path in self.data_dir.glob("*.log")]
        lines = [line for log in logs for line in log.splitlines()]
        return [line for line in lines if any(piece in line for piece in private)]


@attrs.define
class Student:
    """A bare client of coach.v1."""

    websocket: WebSocketConnection
    token: str

    async def send(self, **message: object) -> None:
        """Send one message."""
        await self.websocket.send_message(msgspec.json.encode(message).decode())

    async def receive(self) -> dict[str, object]:
        """Receive one message."""
        message: dict[str, object] = msgspec.json.decode(await self.websocket.get_message())
        return message

    async def until(self, *types: str) -> dict[str, object]:
        """Receive until a message of one of `types`; return that one. Other errors are failures."""
        while (message := await self.receive())["type"] not in types:
            assert message["type"] != "error", message
        return message

    async def ask(self, request: str = "r", text: str = DRAFT) -> None:
        """Ask for feedback on a draft that is named as the request."""
        await self.send(type="draft", draft=request, rev=1, text=text)
        await self.send(type="feedback", request=request, draft=request)


@asynccontextmanager
async def open_stack(
    data_dir: Path,
    *,
    workers: int = 1,
    grader: bool = True,
    simulator: Sequence[str] = (),
    settings: str = "",
    provider: str = "",
    second: Sequence[str] | None = None,
    second_provider: str = "",
    environ: Mapping[str, str] | None = None,
    files_max: int | None = None,
) -> AsyncIterator[Stack]:
    """Start everything, wait until it serves, end it by SIGTERM and check that it ended well.

    What a test kills itself is not asked how it ended.

    Args:
      data_dir: private to this stack.
      workers: web workers.
      grader: whether `coach grade` runs.
      simulator: further options of the simulator's command line.
      settings: further TOML: keys of [server], then whole sections.
      provider: further lines of the provider's table.
      second: options of a second simulator, which speaks OpenAI's protocol; None: there is none.
      second_provider: further lines of that provider's table.
      environ: further environment of coach's processes.
      files_max: hard limit of open files of `coach serve`.
    """
    path = data_dir / "coach.toml"
    environment = {**os.environ, "COACH_CONFIG": str(path), **(environ or {})}
    async with AsyncExitStack() as exits:
        redis = await exits.enter_async_context(open_embedded(data_dir))
        provided = await exits.enter_async_context(open_simulator(data_dir, *simulator))
        providers = {"simulator": Simulator(provided, str(data_dir / "simulator-ca.pem"))}
        tables = _provider("simulator", providers["simulator"], provider)
        if second is not None:
            folder = data_dir / "second"
            folder.mkdir()
            options = ("--protocol", "openai", *second)
            url = await exits.enter_async_context(open_simulator(folder, *options))
            providers["second"] = Simulator(url, str(folder / "simulator-ca.pem"))
            tables += _provider(
                "second", providers["second"], f'kind = "openai"\n{second_provider}'
            )
        bind = f"127.0.0.1:{free_port()}"
        path.write_text(
            f'data_dir = "{data_dir}"\n{tables}'
            f'[redis]\nurl = "{redis.url}"\n[log]\nlevel = "debug"\n'
            f'[server]\nbind = "{bind}"\nworkers = {workers}\n{settings}\n'
        )
        stack = Stack(
            url=f"http://{bind}",
            simulator_url=provided,
            redis=redis,
            data_dir=data_dir,
            supervisor=_coach(data_dir, "serve", environment, files_max),
            grader=_coach(data_dir, "grade", environment) if grader else None,
            providers=providers,
            environment=environment,
        )
        try:
            await until_ready(stack.url, stack.supervisor)
            yield stack
            private = stack.private_lines()
            assert not private, private
        finally:
            with trio.CancelScope(shield=True):
                await _end(stack.supervisor)
                if stack.grader is not None:
                    await _end(stack.grader)


@asynccontextmanager
async def open_simulator(data_dir: Path, *options: str) -> AsyncIterator[str]:
    """A simulated provider of its own; gives its address. Its authority lies in `data_dir`."""
    command = ["-m", "coach.simulator", "--data-dir", str(data_dir), *options]
    process = start_python(command, data_dir / "provider.log")
    try:
        with trio.fail_after(START_S_MAX):
            while not (said := (data_dir / "provider.log").read_text()).endswith("\n"):
                assert process.poll() is None, said
                await trio.sleep(POLL_S)
        assert said.startswith("ready "), said
        yield said.split()[1]
    finally:
        await stop_child(process, within_s=END_S_MAX)  # noqa: ASYNC102  shields itself


@asynccontextmanager
async def open_websocket(url: str) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket at `/ws`, whose socket is closed in any case.

    The library's own `open_websocket_url` leaves it open when the server closes first.
    """
    host = url.removeprefix("http://")
    name, _, port = host.rpartition(":")
    failure: Exception | None = None
    async with (
        await trio.open_tcp_stream(name, int(port)) as stream,
        trio.open_nursery() as nursery,
    ):
        websocket = await wrap_client_stream(
            nursery, stream, host, "/ws", subprotocols=["coach.v1"], message_queue_size=4096
        )
        try:
            yield websocket
            with trio.move_on_after(CLOSE_S_MAX):
                await websocket.aclose()
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel("the block has ended")
    if failure is not None:
        raise failure  # as it is, not in the nursery's group


def start_python(
    arguments: Sequence[str],
    log: Path,
    environ: Mapping[str, str] | None = None,
    *,
    pass_fds: Sequence[int] = (),
) -> Process:
    """Start this Python in a session of its own; it ends with the tests in any case."""
    with log.open("ab") as output:
        return start_child(
            [sys.executable, *arguments], output=output, environ=environ, pass_fds=pass_fds
        )


def free_port() -> int:
    """A port nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def children_of(pid: int) -> set[int]:
    """The processes whose parent is `pid`, those that have ended apart."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue  # it has ended meanwhile
        if parent == str(pid) and state not in "ZX":
            found.add(int(entry.parent.name))
    return found


def descriptors_of(pid: int) -> int:
    """How many files and sockets a process has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def connections_of(pid: int, port: int) -> int:
    """How many connections to its `port` a process has accepted and not closed."""
    established = {
        f"socket:[{inode}]"
        for _, local, _, state, *_, inode in (
            line.split()[:10] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        )
        if local.endswith(f":{port:04X}") and state == "01"
    }
    count = 0
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            count += str(fd.readlink()) in established
    return count


def family_of(pid: int) -> set[int]:
    """A process, its children, and theirs."""
    family, young = {pid}, {pid}
    while young:
        young = {child for parent in young for child in children_of(parent)}
        family |= young
    return family


async def until(holds: Callable[[], bool], *, within_s: float = 5.0) -> float:
    """Wait until something is true of the outside world; how long that took, in seconds."""
    began = trio.current_time()
    with trio.fail_after(within_s):
        while not holds():  # noqa: ASYNC110  other processes have no events
            await trio.sleep(POLL_S)
    return trio.current_time() - began


async def until_ready(url: str, process: Process) -> None:
    """Wait until `/readyz` says yes; fails at once when `process` ends."""
    with trio.fail_after(START_S_MAX):
        async with plain_client() as client:
            while process.poll() is None:
                try:
                    if (await client.get(f"{url}/readyz")).status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                await trio.sleep(POLL_S)
    raise AssertionError(f"{process.args!r} ended with {process.returncode}")


def plain_client() -> httpx.AsyncClient:
    """A client that loads no certificates, which takes 20 ms."""
    return httpx.AsyncClient(verify=False, trust_env=False)


def _provider(name: str, simulator: Simulator, more: str) -> str:
    return (
        f'[[provider]]\nname = "{name}"\nbase_url = "{simulator.url}"\nmodel = "sim-1"\n'
        f'api_key = "{API_KEY}"\nca_file = "{simulator.ca}"\n{more}\n'
    )


def _coach(
    data_dir: Path, name: str, environ: Mapping[str, str], files_max: int | None = None
) -> Process:
    if files_max is None:
        return start_python(["-m", "coach", name], data_dir / f"{name}.log", environ)
    limited = (
        "import os, resource, sys; "
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({files_max}, {files_max})); "
        f"os.execv(sys.executable, [sys.executable, '-m', 'coach', '{name}'])"
    )
    return start_python(["-c", limited], data_dir / f"{name}.log", environ)


async def _end(process: Process) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    with trio.move_on_after(END_S_MAX):
        await exited(process)
    if process.poll() is None:
        process.kill()
        process.wait()
        raise AssertionError(f"{process.args!r} did not end within {END_S_MAX} s of SIGTERM")
    assert process.returncode == 0, (process.args, process.returncode)


@cache
def _trust(ca: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=ca)
