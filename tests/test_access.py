"""Who may ask for what: one table, every route of the application, and every role."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from jwt.algorithms import OKPAlgorithm

from coach import config
from coach.app import CONTENT_SECURITY_POLICY, app
from coach.errors import ConfigurationError
from coach.session.auth import ROLES
from tests.test_app import opened

pytestmark = pytest.mark.real_time

ANYBODY: Final = frozenset({None, *ROLES})
WITH_TOKEN: Final = frozenset(ROLES)
STAFF: Final = frozenset({"educator", "operator"})
EDUCATORS: Final = frozenset({"educator"})
OPERATORS: Final = frozenset({"operator"})
ACCESS: Final = {
    ("GET", "/"): ANYBODY,
    ("GET", "/ops"): ANYBODY,  # the page; what it shows needs a token
    ("GET", "/static/<path:filename>"): ANYBODY,
    ("GET", "/healthz"): ANYBODY,
    ("GET", "/readyz"): ANYBODY,
    ("GET", "/metrics"): ANYBODY,
    ("POST", "/api/token"): ANYBODY,  # in open mode; refused in the other, see test_app
    ("GET", "/api/assignments"): ANYBODY,
    ("GET", "/api/rubric"): ANYBODY,
    ("GET", "/api/submissions/<submission>"): WITH_TOKEN,  # and only the own ones: see test_app
    ("POST", "/api/regrade"): EDUCATORS,
    ("GET", "/api/regrade/<job>"): EDUCATORS,  # and only of their org: see test_app
    ("GET", "/api/reviews"): EDUCATORS,
    ("GET", "/review"): ANYBODY,  # as /ops
    ("GET", "/api/reviews/<submission>"): EDUCATORS,  # and only of their org: see test_review
    ("DELETE", "/api/reviews/<submission>"): EDUCATORS,
    ("GET", "/api/readings/<submission>"): EDUCATORS,
    ("PUT", "/api/readings/<submission>/score"): EDUCATORS,
    ("GET", "/api/scores.csv"): EDUCATORS,
    ("GET", "/api/assignments/<assignment>/submissions"): EDUCATORS,
    ("GET", "/api/assignments/<assignment>/grades.csv"): EDUCATORS,
    ("GET", "/api/costs"): STAFF,
    ("GET", "/api/queue"): OPERATORS,
    ("DELETE", "/api/users/<user>"): OPERATORS,
    ("GET", "/api/ops/stream"): OPERATORS,
    ("GET", "/api/ops/audit"): OPERATORS,
    ("GET", "/api/ops/dead"): OPERATORS,
    ("GET", "/api/ops/quotas"): OPERATORS,
    ("GET", "/api/ops/bulk"): OPERATORS,
    ("GET", "/api/ops/regrade"): OPERATORS,
    ("POST", "/api/ops/actions"): OPERATORS,
}
ENDLESS: Final = "/api/ops/stream"
NO_TOKENS: Final = ("Bearer", "Bearer x.y.z", "Basic eA==", "Bearer eyJhbGciOiJub25lIn0.e30.")
NOT_YOURS: Final = (b"you have no submission of this id", b"your organisation has no ")


def routes() -> set[tuple[str, str]]:
    """Every method and path that the application answers."""
    return {
        (method, rule.rule)
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
    }


def test_the_table_has_every_route() -> None:
    assert routes() == set(ACCESS)


async def test_each_route_lets_in_whom_the_table_names_and_nobody_else(tmp_path: Path) -> None:
    client = app.test_client()
    async with opened(tmp_path) as served:
        for (method, rule), welcome in ACCESS.items():
            path = rule.replace("<submission>", "s-1").replace("<path:filename>", "index.html")
            path = path.replace("<user>", "nobody").replace("<job>", "b-1")
            path = path.replace("<assignment>", "free")
            for role in (None, *ROLES):
                if role in welcome and rule == ENDLESS:
                    continue  # test_bridge listens to it
                headers = {} if role is None else served.bearer(role=role)
                response = await client.open(path, method=method, headers=headers, json={})
                said = await response.get_data(as_text=False)
                wanted = {401} if role is None else {403}
                refused = response.status_code in {401, 403}
                refused = refused and not any(words in said for words in NOT_YOURS)
                assert refused == (role not in welcome), (method, path, role, said)
                assert not refused or response.status_code in wanted
                assert response.status_code < 500
                assert response.headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
                assert response.headers["X-Content-Type-Options"] == "nosniff"


async def test_a_token_of_nobody_gets_no_further_than_none(tmp_path: Path) -> None:
    client = app.test_client()
    async with opened(tmp_path):
        for (method, rule), welcome in ACCESS.items():
            if None in welcome:
                continue
            for header in NO_TOKENS:
                path = rule.replace("<submission>", "s-1").replace("<job>", "b-1")
                headers = {"Authorization": header}
                response = await client.open(path, method=method, headers=headers, json={})
                assert response.status_code == 401, (method, path, header)


async def test_an_identity_provider_signs_for_a_server_that_has_its_public_keys(
    tmp_path: Path,
) -> None:
    key, path = ed25519.Ed25519PrivateKey.generate(), tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)]}))
    auth = config.Auth(mode="jwt", jwks_file=str(path), audience="coach")
    claims = {"sub": "ana", "aud": "coach", "role": "operator", "exp": time.time() + 60}
    token = jwt.encode(claims, key, algorithm="EdDSA")
    async with opened(tmp_path, auth=auth):
        response = await app.test_client().get(
            "/api/queue", headers={"Authorization": f"Bearer {token}"}
        )
        assert response.status_code == 200


async def test_a_file_of_keys_that_cannot_be_read_ends_the_start_with_one_line(
    tmp_path: Path,
) -> None:
    auth = config.Auth(mode="jwt", jwks_file=str(tmp_path / "none.json"))
    with pytest.raises(ConfigurationError, match="cannot be read: No such file") as error:
        async with opened(tmp_path, auth=auth):
            raise AssertionError("it opened")
    assert "\n" not in str(error.value)
