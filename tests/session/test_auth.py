"""Tokens: who may speak, and what is refused."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.errors import ConfigurationError, Unauthenticated
from coach.session.auth import Authority, open_authority

SECRET = "s" * 32
AUTHORITY = Authority(SECRET, token_s=60, leeway_s=0)


def test_a_token_speaks_for_its_user() -> None:
    token, expires_at = AUTHORITY.issue(user="ana", org="school", role="student")
    identity = AUTHORITY.verify(token)
    assert (identity.user, identity.org, identity.role) == ("ana", "school", "student")
    assert identity.expires_at == expires_at == pytest.approx(time.time() + 60, abs=2)


@pytest.mark.parametrize(
    ("claims", "key", "algorithm"),
    [
        ({"sub": "ana", "exp": time.time() - 10}, SECRET, "HS256"),
        ({"sub": "ana"}, SECRET, "HS256"),
        ({"exp": time.time() + 60}, SECRET, "HS256"),
        ({"sub": "ana", "exp": time.time() + 60}, "t" * 32, "HS256"),
        ({"sub": "ana", "exp": time.time() + 60}, None, "none"),
        ({"sub": "ana", "exp": time.time() + 60}, SECRET * 2, "HS512"),
        ({"sub": "a{b}c", "exp": time.time() + 60}, SECRET, "HS256"),
        ({"sub": "ana", "org": "", "exp": time.time() + 60}, SECRET, "HS256"),
        ({"sub": "ana", "role": "root", "exp": time.time() + 60}, SECRET, "HS256"),
    ],
    ids=[
        "expired",
        "no exp",
        "no sub",
        "other key",
        "alg none",
        "other alg",
        "braces",
        "org",
        "role",
    ],
)
def test_what_is_no_token(claims: dict[str, object], key: str | None, algorithm: str) -> None:
    with pytest.raises(Unauthenticated):
        AUTHORITY.verify(jwt.encode(claims, key, algorithm=algorithm))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "user",
    [
        "auth0|507f1f77bcf86cd799439011",
        "google-oauth2|103547991597142817347",
        "f:4ae9f0b2-8c63:ana",
        "_AAAAAIkzqFVrSaSaFHy782bbtaQ",
        "-h4kq_3",
        "ana+essays@school.example",
        "x" * 128,
    ],
)
def test_users_are_named_as_identity_providers_name_them(user: str) -> None:
    token, _ = AUTHORITY.issue(user=user, org="school", role="student")
    assert AUTHORITY.verify(token).user == user


@pytest.mark.parametrize("user", ["", "a b", "{x}", "x" * 129, "é", "a/b", "*", "[a]", "|a"])
def test_names_that_would_not_fit_a_redis_key_are_not_issued(user: str) -> None:
    with pytest.raises(ValueError, match="letters"):
        AUTHORITY.issue(user=user, org="school", role="student")


def test_the_made_key_is_shared_and_private(tmp_path: Path) -> None:
    settings = config.load(None, {"COACH_DATA_DIR": str(tmp_path)})
    token, _ = open_authority(settings).issue(user="ana", org="school", role="student")
    assert open_authority(settings).verify(token).user == "ana"
    assert (tmp_path / "auth.secret").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["auth.secret"]


def test_a_key_that_cannot_be_kept_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    settings = config.load(None, {"COACH_DATA_DIR": str(tmp_path / "file")})
    with pytest.raises(ConfigurationError, match=r"signing key"):
        open_authority(settings)


@given(st.text() | st.text(alphabet="eyJ.hbGciO", min_size=3))
def test_any_text_is_a_token_or_is_not(text: str) -> None:
    with pytest.raises(Unauthenticated):
        AUTHORITY.verify(text)


@pytest.mark.parametrize(
    "header",
    [
        b"[" * 5_000,
        b'{"alg": "HS256", "x": ' + b"[" * 5_000,
        b'"x"',
        b"{}",
        b'{"alg": ["HS256"]}',
        b'{"alg": "HS256", "crit": 5}',
        b"\xff",
    ],
    ids=["deep", "deeper", "text", "empty", "list", "crit", "not UTF-8"],
)
def test_a_header_that_makes_no_sense_is_no_token(header: bytes) -> None:
    """It is read before the signature is checked, so anybody may send it."""
    with pytest.raises(Unauthenticated):
        AUTHORITY.verify(base64.urlsafe_b64encode(header).decode().rstrip("=") + ".e30.e30")


def test_a_signed_token_cannot_be_changed() -> None:
    token, _ = AUTHORITY.issue(user="ana", org="school", role="student")
    head, _, signature = token.split(".")
    claims = {"sub": "ana", "org": "school", "role": "operator", "exp": time.time() + 60}
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    with pytest.raises(Unauthenticated, match="Signature"):
        AUTHORITY.verify(f"{head}.{body}.{signature}")
