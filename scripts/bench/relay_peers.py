"""The relays that are compared: how each is installed, started and found.

All speak the same messages to the same clients and read the same provider. What the others need is
installed on demand below `.venv/peers`, from the pinned lists beside their sources; the project's
own environment stays as it is locked. A peer whose tools this machine lacks is left out with a
word (`PeerMissing`).
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

import attrs
import httpx
import trio
from processes import children, free_port, open_process

from coach.errors import ConfigurationError
from coach.store import open_embedded

START_S_MAX = 30.0
INSTALL_S_MAX = 300.0
SOURCES = Path(__file__).parent / "peers"
CACHE = Path(sys.prefix) / "peers"
LOG_BYTES_SHOWN = 400


class PeerMissing(Exception):
    """This machine cannot run the peer; says why."""


@attrs.frozen(kw_only=True)
class Variant:
    """A peer with what it is told: one line of the table."""

    name: str
    peer: str
    delta_window_s: float | None = None
    """coach only."""


@attrs.frozen(kw_only=True)
class Upstream:
    """The provider, and how much is asked of it."""

    url: str
    ca: Path
    output_tokens_max: int


@attrs.frozen(kw_only=True)
class Relay:
    """A relay that answers."""

    url: str
    pids: list[int]
    """Of the processes that relay."""
    log: Path
    beside: dict[str, list[int]] = attrs.field(factory=dict)
    """Other processes that it needs."""


def prepare(peer: str) -> None:
    """Install what `peer` needs, once.

    Raises:
      PeerMissing: it cannot run here.
    """
    if peer == "fastapi":
        listed = SOURCES / "requirements.txt"
        pip = [str(CACHE / peer / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
        install(
            peer,
            listed,
            [sys.executable, "-m", "venv", "--clear", "."],
            [*pip, "install", "--quiet", "--no-input", "--requirement", str(listed)],
        )
    elif peer == "node":
        for tool in ("node", "npm"):
            if shutil.which(tool) is None:
                raise PeerMissing(f"there is no {tool} on this machine")
        npm = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--silent"]
        install(peer, SOURCES / "package.json", npm)


def install(peer: str, listed: Path, *commands: list[str]) -> None:
    """Run commands in a folder of the peer's own, once for each state of the list.

    Raises:
      PeerMissing: one fails.
    """
    folder, made_of = CACHE / peer, CACHE / f"{peer}.made-of"
    wanted = hashlib.sha256(listed.read_bytes() + sys.prefix.encode()).hexdigest()
    if made_of.exists() and made_of.read_text() == wanted:
        return
    print(f"installing what {peer} needs; once …", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(listed, folder)
    for command in commands:
        try:
            done = subprocess.run(
                command,
                cwd=folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
                timeout=INSTALL_S_MAX,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerMissing(f"{command[0]} does not end") from error
        if done.returncode != 0:
            said = done.stdout.decode(errors="replace").strip().splitlines() or ["nothing"]
            raise PeerMissing(f"{command[0]} fails and says: {said[-1]}")
    made_of.write_text(wanted)


@asynccontextmanager
async def open_relay(
    variant: Variant, upstream: Upstream, folder: Path, *, hello_s_max: float = 5.0
) -> AsyncIterator[Relay]:
    """Run a relay while the block runs.

    Raises:
      ConfigurationError: it does not come up; with the end of its log.
    """
    if variant.peer == "coach":
        async with _open_coach(variant, upstream, folder, hello_s_max) as relay:
            yield relay
        return
    command, env, path = COMMANDS[variant.peer](upstream)
    port = free_port()
    log = folder / f"{variant.peer}.log"
    async with open_process([*command, "--port", str(port)], log=log, env=env) as process:
        url = f"http://127.0.0.1:{port}"
        await until_answers(f"{url}{path}", True, process, log)
        yield Relay(url=url, pids=[process.pid], log=log)


def _fastapi(upstream: Upstream) -> tuple[list[str], dict[str, str], str]:
    python = str(CACHE / "fastapi" / "bin" / "python")
    return [python, str(SOURCES / "fastapi_relay.py"), *_told(upstream)], {}, "/readyz"


def _node(upstream: Upstream) -> tuple[list[str], dict[str, str], str]:
    env = {"NODE_PATH": str(CACHE / "node" / "node_modules"), "NODE_ENV": "production"}
    return ["node", str(SOURCES / "node_relay.cjs"), *_told(upstream)], env, "/readyz"


def _trio_websocket(upstream: Upstream) -> tuple[list[str], dict[str, str], str]:
    del upstream  # it only accepts
    return [sys.executable, str(SOURCES / "trio_accept.py")], {}, ""


COMMANDS: Final = {"fastapi": _fastapi, "node": _node, "trio-websocket": _trio_websocket}
PEERS: Final = ("coach", "node", "fastapi")


def _told(upstream: Upstream) -> list[str]:
    return [
        *("--provider", upstream.url),
        *("--ca", str(upstream.ca)),
        *("--output-tokens-max", str(upstream.output_tokens_max)),
    ]


@asynccontextmanager
async def _open_coach(
    variant: Variant, upstream: Upstream, folder: Path, hello_s_max: float
) -> AsyncIterator[Relay]:
    """One worker, with Redis beside it, and no limit that the load could reach."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_embedded(folder))
        url = f"http://127.0.0.1:{free_port()}"
        config, log = folder / "coach.toml", folder / "coach.log"
        window = variant.delta_window_s
        config.write_text(
            f"""
data_dir = "{folder}"
[redis]
url = "{redis.url}"
[server]
bind = "{url.removeprefix("http://")}"
workers = 1
hello_s_max = {hello_s_max}
{"" if window is None else f"delta_window_s = {window}"}
[limits]
user_requests_per_minute = 1000000
user_tokens_per_minute = 1000000000
org_requests_per_minute = 1000000
org_tokens_per_minute = 1000000000
[log]
level = "warning"
[[provider]]
name = "simulator"
base_url = "{upstream.url}"
model = "sim-1"
api_key = "bench"
ca_file = "{upstream.ca}"
feedback_output_tokens_max = {upstream.output_tokens_max}
"""
        )
        supervisor = await stack.enter_async_context(
            open_process([sys.executable, "-m", "coach", "serve", "--config", str(config)], log=log)
        )
        await until_answers(f"{url}/readyz", True, supervisor, log)
        yield Relay(url=url, pids=children(supervisor.pid), log=log, beside={"valkey": [redis.pid]})


async def until_answers(
    url: str, verify: Callable[[], object] | bool, process: trio.Process, log: Path
) -> None:
    """Wait until GET `url` has status 200; a URL without a path: until it may be connected to.

    Args:
      url: what to ask.
      verify: makes the TLS context, once there is something to make it of.
      process: who is to answer.
      log: its log.

    Raises:
      ConfigurationError: it has ended, or takes longer than START_S_MAX.
    """
    asked = httpx.URL(url)
    with trio.move_on_after(START_S_MAX):
        while process.returncode is None:
            try:
                if asked.path in ("", "/") and url.count("/") == 2:
                    stream = await trio.open_tcp_stream(asked.host, asked.port or 80)
                    await stream.aclose()
                    return
                trust = verify if isinstance(verify, bool) else verify()
                async with httpx.AsyncClient(verify=trust, trust_env=False) as client:  # type: ignore[arg-type]
                    if (await client.get(url)).status_code == 200:
                        return
            except (httpx.TransportError, OSError):
                pass
            await trio.sleep(0.1)
    raise ConfigurationError(f"{url} does not answer; {end_of(log)}")


def end_of(log: Path) -> str:
    """The last of a log, as one line."""
    text = " ".join(log.read_text(errors="replace").split()) if log.exists() else ""
    return f"the log ends: … {text[-LOG_BYTES_SHOWN:]}" if text else "its log is empty"
