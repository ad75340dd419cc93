"""Redis URLs."""

from __future__ import annotations

import pytest

from coach.errors import ConfigurationError
from coach.store.url import Target, parse_url


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("redis://", Target()),
        ("redis://h", Target(host="h")),
        ("redis://h:7000/3", Target(host="h", port=7000, db=3)),
        ("redis://h?db=2", Target(host="h", db=2)),
        ("redis://[::1]:7000", Target(host="::1", port=7000)),
        ("redis://:p%40ss@h", Target(host="h", password="p@ss")),
        ("redis://me:secret@h", Target(host="h", username="me", password="secret")),
        ("unix:///a%20b/v.sock", Target(path="/a b/v.sock")),
        ("unix://:secret@/v.sock?db=1", Target(path="/v.sock", password="secret", db=1)),
    ],
)
def test_what_a_url_means(url: str, target: Target) -> None:
    assert parse_url(url) == target


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("h:6379", "expected redis://, rediss://, unix://"),
        ("", "no scheme"),
        ("http://h", "http"),
        ("redis://h:port", "port"),
        ("redis://h:99999", "ort"),
        ("redis://h/one", "'one' is no database number"),
        ("redis://h?dB=1", "unknown parameter 'dB'"),
        ("unix://", "path of a socket"),
        ("rediss://h?ssl_ca_certs=/none.pem", "cannot read /none.pem"),
    ],
)
def test_what_means_nothing_is_one_line_without_the_password(url: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url.replace("://h", "://:hunter2@h"))
    assert str(caught.value).startswith("redis.url: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_target_shows_no_password() -> None:
    target = parse_url("rediss://:hunter2@h")
    assert target.tls is not None
    assert "hunter2" not in f"{target} {target!r}"
