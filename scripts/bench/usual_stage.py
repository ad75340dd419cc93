"""The usual server (peers/usual_server.py) as a load test wants it, with coach's own words."""

from __future__ import annotations

import json
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from processes import open_process
from relay_peers import CACHE, SOURCES, PeerMissing, install

from coach.config import Provider
from coach.errors import ConfigurationError
from coach.grading import LENSES, load_rubric
from coach.providers import Conversation, feedback_prompt, judge_prompt
from coach.simulator.crowd import raise_open_files


@attrs.frozen(kw_only=True)
class Usual:
    """Which usual server."""

    client_per_call: bool = False
    user_requests: int = 30
    """A minute; as coach's default is."""
    school_tokens: int = 100_000_000
    """A minute."""


def prepare_usual() -> None:
    """Install what it needs, once.

    Raises:
      ConfigurationError: it cannot run here.
    """
    listed = SOURCES / "usual_requirements.txt"
    pip = [str(CACHE / "usual" / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    try:
        install(
            "usual",
            listed,
            [sys.executable, "-m", "venv", "--clear", "."],
            [*pip, "install", "--quiet", "--no-input", "--requirement", str(listed)],
        )
    except PeerMissing as error:
        raise ConfigurationError(f"the usual server cannot be installed: {error}") from error


@asynccontextmanager
async def open_usual(
    usual: Usual,
    *,
    port: int,
    workers: int,
    provider_url: str,
    provider_ca: Path,
    secret: str,
    folder: Path,
) -> AsyncIterator[trio.Process]:
    """Run it while the block runs; the caller waits until it answers.

    Args:
      usual: which.
      port: where it listens.
      workers: processes.
      provider_url: where the simulated provider is.
      provider_ca: the certificate of its authority.
      secret: its students' tokens are signed with.
      folder: an existing one, for its prompts, its database and its log.
    """
    prepare_usual()
    prompts, trust = folder / "usual-prompts.json", folder / "usual-ca.pem"
    prompts.write_text(json.dumps(prompts_of_coach()))
    trust.write_text(_authorities() + provider_ca.read_text())  # noqa: ASYNC240  a small one
    raise_open_files()  # as its service manager would be told to
    command = [str(CACHE / "usual" / "bin" / "python"), "-m", "uvicorn", "usual_server:app"]
    command += ["--app-dir", str(SOURCES), "--host", "127.0.0.1", "--port", f"{port}"]
    command += [
        "--workers",
        f"{workers}",
        "--log-level",
        "warning",
        "--timeout-graceful-shutdown",
        "1",
    ]
    environ = {
        "USUAL_PROMPTS": str(prompts),
        "USUAL_DATABASE": str(folder / "usual.sqlite"),
        "USUAL_MODEL": "sim-writer-1",
        "USUAL_JWT_SECRET": secret,
        "USUAL_USER_REQUESTS": f"{usual.user_requests}",
        "USUAL_SCHOOL_TOKENS": f"{usual.school_tokens}",
        "USUAL_CLIENT_PER_CALL": f"{usual.client_per_call:d}",
        "ANTHROPIC_BASE_URL": provider_url,
        "ANTHROPIC_API_KEY": "simulated",
        "SSL_CERT_FILE": str(trust),
        "PYTHONPATH": "",
    }
    async with open_process(command, log=folder / "server.log", env=environ) as process:
        yield process


def prompts_of_coach() -> dict[str, Any]:
    """Coach's words and rubric for whole drafts: what makes them cheap is left out."""
    rubric = load_rubric()
    text = rubric.as_text()
    question = Conversation().ask("", None, now_s=0.0, grows=False)
    feedback = feedback_prompt(rubric=text, assignment="", question=question, output_tokens_max=1)
    judge = judge_prompt(rubric=text, assignment="", essay="", schema=None, output_tokens_max=1)
    usual = Provider(name="usual", base_url="https://127.0.0.1", model="usual", api_key="usual")
    return {
        "feedback": feedback.system[0].text,
        "judge": judge.system[0].text,
        "lenses": list(LENSES),
        "schema": rubric.schema(),
        "criteria": [
            {
                "name": criterion.name,
                "label": criterion.label,
                "weight": criterion.weight,
                "band_max": criterion.band_max,
            }
            for criterion in rubric.criteria
        ],
        "assignments": [
            {"id": item.id, "title": item.title, "task": item.task} for item in rubric.assignments
        ],
        "free_task": rubric.task(None),
        "feedback_tokens_max": usual.feedback_output_tokens_max,
        "judge_tokens_max": usual.judge_output_tokens_max,
    }


def _authorities() -> str:
    """The machine's: a client of its own for each call reads them all each time, as it would."""
    paths = ssl.get_default_verify_paths()
    file = Path(paths.cafile or paths.openssl_cafile)
    return file.read_text() if file.is_file() else ""
