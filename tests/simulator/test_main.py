"""The command line: options for every setting, mistakes told in one line, an orderly end."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import msgspec
import pytest

from coach.simulator.__main__ import main
from coach.simulator.faults import FAULTS
from coach.simulator.settings import Settings


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--port x", "--port"),
        ("--port 65536", "65535"),
        ("--port=-1", "--port"),
        ("--fault nothing=1", "there is no fault 'nothing'"),
        ("--fault cut", "name=probability"),
        ("--fault cut=2", "--fault"),
        ("--fault cut:many", "--fault"),
        ("--ttft-ms soon", "--ttft-ms"),
        ("--events-per-s 0", "--events-per-s"),
        ("--requests-per-minute 0", "--requests-per-minute"),
        ("--stamp perhaps", "--stamp"),
        ("--protocol gemini", "--protocol"),
        ("--surprise", "--surprise"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    arguments: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments.split())
    written = capsys.readouterr()

    assert ended.value.code == 2
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert said in written.err


@pytest.mark.real_time
def test_what_cannot_be_opened_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["--data-dir", str(tmp_path), "--port", port]) == 1
    (tmp_path / "file").touch()
    assert main(["--data-dir", str(tmp_path / "file" / "below")]) == 1
    lines = capsys.readouterr().err.splitlines()

    assert len(lines) == 2
    assert "in use" in lines[0]
    assert "cannot write" in lines[1]


def test_help_names_every_setting_and_every_fault(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out

    for field in msgspec.structs.fields(Settings):
        assert f"--{field.name.replace('_', '-')} " in text
    assert all(name in text for name in FAULTS)


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("sign", "protocol", "path"),
    [
        (signal.SIGTERM, "anthropic", "/v1/messages"),
        (signal.SIGINT, "openai", "/v1/chat/completions"),
    ],
)
def test_a_simulator_says_where_it_is_and_ends_when_told(
    tmp_path: Path, sign: signal.Signals, protocol: str, path: str
) -> None:
    command = [sys.executable, "-m", "coach.simulator", "--data-dir", str(tmp_path)]
    command += ["--protocol", protocol]
    options = ["--ttft-ms", "5", "--fault", "overloaded:1", "--requests-per-minute", "9"]
    with subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            ready, _, url = process.stdout.readline().strip().partition(" ")
            context = ssl.create_default_context(cafile=str(tmp_path / "simulator-ca.pem"))
            with httpx.Client(http2=True, verify=context) as client:
                stats = client.get(f"{url}/stats").json()
                refused = client.post(f"{url}{path}", json={})
            process.send_signal(sign)
            out, err = process.communicate(timeout=10)
        finally:
            process.kill()

    assert (ready, process.returncode, out, err) == ("ready", 0, "", "")
    assert stats["handshakes"] == 1
    assert refused.status_code == 401
