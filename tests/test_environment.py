"""scripts/_environment.py: what stands between a fresh clone and its first run is one line."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "_environment.py"


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, for a clone in `tmp_path` that has no environment yet; exec is forbidden."""
    spec = importlib.util.spec_from_file_location("_environment", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "LOCK", tmp_path / "requirements.lock")
    monkeypatch.setattr(sys, "argv", ["scripts/demo"])
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("it went on"))
    return module


def refusal(environment: ModuleType, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exited:
        environment.enter()
    assert exited.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_a_python_too_old_is_one_line(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setenv("PATH", "")
    line = refusal(environment, capsys)
    assert line == (
        "demo: coach needs Python 3.11 or newer and found 3.9: install one, then run this again"
    )


def test_an_old_python_goes_on_with_a_newer_one_on_the_path(
    environment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "python3.12"
    newer.write_text("")
    newer.chmod(0o755)
    monkeypatch.setattr(sys, "version_info", (3, 9, 2))
    monkeypatch.setenv("PATH", str(tmp_path))

    def execv(path: str, arguments: list[str]) -> None:
        raise InterruptedError(path, arguments)

    monkeypatch.setattr(os, "execv", execv)
    with pytest.raises(InterruptedError) as went_on:
        environment.enter()
    assert went_on.value.args == (str(newer), [str(newer), "scripts/demo"])


def test_a_folder_that_cannot_be_written_is_one_line(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here the step that makes the environment cannot: `python -m venv` itself says so."""
    monkeypatch.setattr(environment, "VENV", Path("/proc/coach/.venv"))
    line = refusal(environment, capsys)
    assert line.startswith("demo: ")
    assert "fails" in line or "run this where you may write" in line


def test_a_folder_that_is_gone_is_one_line(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def gone(_: Path, *, local_model: bool) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(environment, "_make", gone)
    line = refusal(environment, capsys)
    assert line.endswith(".venv: Permission denied: run this where you may write")


def test_the_environment_is_made_again_when_the_lock_changes(
    environment: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / ".venv").mkdir()
    assert not environment._is_current()
    environment._stamp().write_text(environment._wanted())
    assert environment._is_current()
    (tmp_path / "requirements.lock").write_text("other")
    assert not environment._is_current()
