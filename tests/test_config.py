"""Settings: where they come from, and the one line an operator reads when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from coach import config
from coach.errors import ConfigurationError

PROVIDER = """
[[provider]]
name = "a"
base_url = "https://127.0.0.1:1"
model = "m"
api_key = "env:KEY"
"""


def load(tmp_path: Path, text: str, **environ: str) -> config.Settings:
    path = tmp_path / "coach.toml"
    path.write_text(text)
    return config.load(path, environ)


def test_the_environment_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    text = "data_dir = 'x'\n[server]\nworkers = 2\ndrain_s = 3\n[grading]\nconcurrency = 4"
    settings = load(
        tmp_path, text, COACH_SERVER__WORKERS="5", COACH_GRADING__LANES='["background"]'
    )
    assert (settings.server.workers, settings.server.drain_s) == (5, 3.0)
    assert (settings.grading.concurrency, settings.grading.lanes) == (4, ("background",))
    assert settings.server.backlog == config.Settings().server.backlog


def test_secrets_come_from_the_environment(tmp_path: Path) -> None:
    assert load(tmp_path, PROVIDER, KEY="sk-1").provider[0].api_key == "sk-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[server]\nworkerz = 1", "workerz"),
        ("[server]\nworkers = 0", r"\$\.server\.workers"),
        ("[server]\nbind = '8000'", "server.bind"),
        ("[server]\nbind = 'x:99999'", "server.bind"),
        ("[server]\ntrusted_proxies = ['proxy.local']", "server.trusted_proxies"),
        ("[server", "not TOML"),
        ("[budget]\nsoft_percent = 99", "soft_percent"),
        ("[grading]\nlease_s = 1", "lease_s"),
        ("[auth]\nmode = 'jwt'", "auth.secret"),
        ("[auth]\nsecret = 'short'", "32 bytes"),
        (PROVIDER, "KEY is not set"),
        (PROVIDER.replace("env:KEY", "k").replace("https", "ftp"), "base_url"),
        (PROVIDER.replace("env:KEY", "k") * 2, "same name"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_setting(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot read"):
        config.load(tmp_path / "none.toml", {})


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({"MODE": "jwt"}, r"auth\.secret, auth\.jwks_file or jwks_url"),
        ({"MODE": "jwt", "JWKS_FILE": "a", "JWKS_URL": "https://id/k"}, "not both"),
        ({"JWKS_FILE": "a"}, 'set mode = "jwt"'),
        ({"MODE": "jwt", "JWKS_URL": "http://id/keys"}, r"auth\.jwks_url must be https"),
        ({"MODE": "jwt", "JWKS_URL": "nonsense"}, r"auth\.jwks_url must be https"),
        ({"MODE": "jwt", "SECRET": "short"}, "at least 32 bytes"),
    ],
)
def test_keys_that_contradict_the_mode_are_refused(environ: dict[str, str], what: str) -> None:
    with pytest.raises(ConfigurationError, match=what):
        config.load(None, {f"COACH_AUTH__{name}": value for name, value in environ.items()})
