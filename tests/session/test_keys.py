"""Keys of an identity provider: which are used, how they rotate, and tokens that try it on."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from coach import config
from coach.errors import ConfigurationError, Unauthenticated
from coach.session.auth import Authority, open_authority
from coach.session.keys import DOCUMENT_BYTES_MAX, PAUSE_S, Keyring, open_keyring, read_keys
from tests.support.cancels import cancel_at_step

SECRET = "s" * 32
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SHORT = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
EDWARDS = ed25519.Ed25519PrivateKey.generate()
ROTATED = ed25519.Ed25519PrivateKey.generate()
CURVE = ec.generate_private_key(ec.SECP256R1())
PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def jwk(key: Any, name: str | None = None, **more: object) -> dict[str, object]:
    """The public key as a JWK."""
    kinds = ((rsa.RSAPublicKey, RSAAlgorithm), (ec.EllipticCurvePublicKey, ECAlgorithm))
    kind = next((algorithm for of, algorithm in kinds if isinstance(key, of)), OKPAlgorithm)
    return {**kind.to_jwk(key, as_dict=True), **({"kid": name} if name else {}), **more}


def document(*keys: dict[str, object]) -> bytes:
    return json.dumps({"keys": keys}).encode()


BOTH = document(jwk(RSA.public_key(), "r"), jwk(EDWARDS.public_key(), "e"))


class Source:
    """A document that can change or be away, and counts who asks."""

    def __init__(self, *found: bytes | OSError) -> None:
        self.found = list(found)
        self.looks = 0

    async def load(self) -> bytes:
        self.looks += 1
        await trio.lowlevel.checkpoint()
        now = self.found.pop(0) if len(self.found) > 1 else self.found[0]
        if isinstance(now, OSError):
            raise now
        return now


async def authority(source: Source, **more: Any) -> Authority:
    keys = Keyring(source.load, refresh_s=300)
    await keys.look()
    return Authority(None, token_s=60, leeway_s=0, keys=keys, **more)


def token(key: Any, algorithm: str, name: str | None = None, **claims: object) -> str:
    headers = {"kid": name} if name else None
    claims = {"sub": "ana", "org": "school", "exp": time.time() + 60, **claims}
    return jwt.encode(claims, key, algorithm=algorithm, headers=headers)


async def test_a_token_signed_by_either_kind_of_key_speaks_for_its_user() -> None:
    known = await authority(Source(BOTH))
    for signed in (
        token(RSA, "RS256", "r"),
        token(EDWARDS, "EdDSA", "e"),
        token(RSA, "RS256"),  # the only one of its kind
    ):
        assert (await known.identify(signed)).user == "ana"


@pytest.mark.parametrize(
    "signed",
    [
        lambda: token(None, "none"),
        lambda: token(None, "none", "r"),
        lambda: jwt.encode({"sub": "ana", "exp": time.time() + 60}, SECRET),
        lambda: confused(),  # noqa: PLW0108  it is defined below
        lambda: token(EDWARDS, "EdDSA", "r"),
        lambda: token(RSA, "RS256", "e"),
        lambda: token(RSA, "RS384", "r"),
        lambda: token(RSA, "PS256", "r"),
        lambda: token(ROTATED, "EdDSA", "e"),
        lambda: token(CURVE, "ES256", "r"),
        lambda: token(RSA, "RS256", "r", exp=time.time() - 1),
        lambda: token(RSA, "RS256", "r", nbf=time.time() + 60),
        lambda: token(RSA, "RS256", "r", aud="another application"),
        lambda: token(RSA, "RS256", "r", role="root"),
    ],
    ids=[
        *("none", "none with a key", "no secret is set", "public key as secret"),
        *("key of another kind", "likewise", "RS384", "PS256", "forged", "ES256"),
        *("expired", "not yet", "for others", "role"),
    ],
)
async def test_what_the_keys_do_not_vouch_for(signed: Callable[[], str]) -> None:
    known = await authority(Source(BOTH))
    with pytest.raises(Unauthenticated):
        await known.identify(signed())


def confused() -> str:
    """HMAC with the public key, which anybody has, as its secret; PyJWT would not make it."""
    body = token(SECRET, "HS256", "r").rpartition(".")[0]
    signature = jwt.get_algorithm_by_name("HS256").sign(body.encode(), PEM)
    return f"{body}.{jwt.utils.base64url_encode(signature).decode()}"


async def test_a_public_key_is_no_secret_also_where_a_secret_is_set() -> None:
    keys = Keyring(Source(BOTH).load, refresh_s=300)
    await keys.look()
    both = Authority(SECRET, token_s=60, leeway_s=0, keys=keys)
    with pytest.raises(Unauthenticated):
        both.verify(confused())
    issued, _ = both.issue(user="ana", org="school", role="operator")
    assert both.verify(issued).role == "operator"
    assert both.verify(token(RSA, "RS256", "r")).user == "ana"


@pytest.mark.parametrize(
    ("claims", "is_good"),
    [
        ({"aud": "coach", "iss": "https://id"}, True),
        ({"aud": ["other", "coach"], "iss": "https://id"}, True),
        ({"aud": "other", "iss": "https://id"}, False),
        ({"iss": "https://id"}, False),
        ({"aud": "coach", "iss": "https://elsewhere"}, False),
        ({"aud": "coach"}, False),
    ],
)
async def test_a_token_is_for_us_and_by_whom_we_trust(
    claims: dict[str, object], is_good: bool
) -> None:
    known = await authority(Source(BOTH), audience="coach", issuer="https://id")
    signed = token(RSA, "RS256", "r", **claims)
    if is_good:
        assert known.verify(signed).user == "ana"
    else:
        with pytest.raises(Unauthenticated):
            known.verify(signed)


def test_what_is_issued_is_for_us() -> None:
    ours = Authority(SECRET, token_s=60, leeway_s=0, audience="coach", issuer="https://id")
    issued, _ = ours.issue(user="ana", org="school", role="student")
    assert ours.verify(issued).user == "ana"
    with pytest.raises(ValueError, match=r"auth\.secret"):
        Authority(None, token_s=60, leeway_s=0).issue(user="ana", org="s", role="student")


async def test_leeway_forgives_clocks_that_differ() -> None:
    keys = Keyring(Source(BOTH).load, refresh_s=300)
    await keys.look()
    late = token(RSA, "RS256", "r", exp=time.time() - 3)
    assert Authority(None, token_s=60, leeway_s=5, keys=keys).verify(late).user == "ana"


# -- rotation ------------------------------------------------------------------------------------

NEW = document(jwk(ROTATED.public_key(), "n"))


async def test_a_token_of_a_new_key_causes_one_look_whoever_asks() -> None:
    source = Source(BOTH, NEW)
    known = await authority(source)
    await trio.sleep(PAUSE_S)
    users = []

    async def come() -> None:
        users.append((await known.identify(token(ROTATED, "EdDSA", "n"))).user)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(come)
    assert users == ["ana"] * 20
    assert source.looks == 2
    with pytest.raises(Unauthenticated):  # the old key is gone
        await known.identify(token(RSA, "RS256", "r"))


async def test_made_up_names_of_keys_cause_no_more_than_a_look_in_a_while() -> None:
    source = Source(BOTH)
    known = await authority(source)
    for n in range(100):
        await trio.sleep(PAUSE_S / 50)
        with pytest.raises(Unauthenticated):
            await known.identify(token(ROTATED, "EdDSA", f"x{n}"))
    assert source.looks <= 3


@pytest.mark.parametrize("found", [OSError("away"), b"<html>", b'{"keys": []}'])
async def test_keys_stay_while_the_document_cannot_be_had(found: bytes | OSError) -> None:
    source = Source(BOTH, found)
    known = await authority(source)
    async with trio.open_nursery() as nursery:
        assert known.keys is not None
        nursery.start_soon(known.keys.run)
        await trio.sleep(1_000)
        nursery.cancel_scope.cancel()
    assert source.looks >= 3
    assert known.verify(token(RSA, "RS256", "r")).user == "ana"


async def test_a_token_does_not_wait_long_for_a_document_that_never_comes() -> None:
    keys = Keyring(trio.sleep_forever, refresh_s=300)
    known = Authority(None, token_s=60, leeway_s=0, keys=keys)
    began = trio.current_time()
    with pytest.raises(Unauthenticated):
        await known.identify(token(RSA, "RS256", "r"))
    assert trio.current_time() - began < 5


async def test_a_look_that_is_cancelled_anywhere_leaves_the_next_one_free() -> None:
    for step in range(1, 10):
        source = Source(BOTH)
        keys = Keyring(source.load, refresh_s=300)
        with cancel_at_step(step) as scope:
            await keys.look_again()
        await trio.sleep(PAUSE_S)
        with trio.fail_after(1):
            await keys.look_again()
        assert keys.find("r", "RS256") is not None
        if not scope.cancelled_caught:
            return
    raise AssertionError("it never ended")


# -- the document --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "unfit",
    [
        jwk(SHORT.public_key(), "r"),
        jwk(CURVE.public_key(), "r"),
        jwk(RSA.public_key(), "r", use="enc"),
        jwk(RSA.public_key(), "r", alg="RS512"),
        {"kty": "oct", "k": "c2VjcmV0", "kid": "r"},
        {**RSAAlgorithm.to_jwk(RSA, as_dict=True), "kid": "r"},
        {"kty": "RSA", "n": "%", "e": 5},
        {"kty": ["RSA"]},
        {"kty": "OKP", "crv": "X448", "x": "AA"},
    ],
    ids=["short", "curve", "enc", "alg", "secret", "private", "broken", "kty", "crv"],
)
def test_keys_that_are_not_for_signatures_of_ours_are_left_out(unfit: dict[str, object]) -> None:
    assert [key.id for key in read_keys(document(unfit, jwk(EDWARDS.public_key(), "e")))] == ["e"]
    with pytest.raises(ValueError, match="none of its keys"):
        read_keys(document(unfit))


@given(st.binary() | st.from_regex(rb'\{"keys": ?\[.{0,40}\]\}'))
def test_any_bytes_are_a_key_set_or_are_not(found: bytes) -> None:
    with pytest.raises(ValueError, match=r"key"):
        read_keys(found)


@pytest.mark.real_time
async def test_a_file_of_keys_is_read_and_one_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "jwks.json"
    auth = config.Auth(mode="jwt", jwks_file=str(path))
    settings = config.Settings(auth=auth, data_dir=str(tmp_path / "data"))
    known = open_authority(settings)
    assert known.keys is not None
    for found in (None, b"{", b" " * (DOCUMENT_BYTES_MAX + 1)):
        if found is not None:
            path.write_bytes(found)
        with pytest.raises(ConfigurationError, match=r"keys of auth cannot be read: .+") as error:
            await known.keys.look()
        assert "\n" not in str(error.value)
    path.write_bytes(BOTH)
    await known.keys.look()
    assert known.verify(token(EDWARDS, "EdDSA", "e")).user == "ana"
    assert not (tmp_path / "data").exists()  # no secret is made where none is used


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(BOTH), BOTH), None),
        (b"302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", "302"),
        (b"200 OK\r\ncontent-length: 2\r\n\r\n{}", "no JWK set"),
        (b"200 OK\r\n\r\n" + b" " * (DOCUMENT_BYTES_MAX + 1), "longer"),
        (b"nonsense\r\n\r\n", "cannot be read: ."),
    ],
    ids=["good", "redirect", "empty", "long", "no HTTP"],
)
async def test_keys_come_from_a_url(answer: bytes, reason: str | None) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        try:
            await stream.send_all(b"HTTP/1.1 " + answer)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass  # it has had enough

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        port = listeners[0].socket.getsockname()[1]
        keys = open_keyring(config.Auth(mode="jwt", jwks_url=f"http://127.0.0.1:{port}/keys"))
        assert keys is not None
        if reason is None:
            await keys.look()
            assert keys.find("e", "EdDSA") is not None
        else:
            with pytest.raises(ConfigurationError, match=reason):
                await keys.look()
        nursery.cancel_scope.cancel()
