"""The simulator's certificate authority: made once in a data folder, and kept there.

    simulator-ca.pem   its certificate, for clients to trust
    simulator-ca.key   certificate and private key, readable by the owner alone

Kept, so that a client which starts before the simulator, or outlives it, trusts the next one too;
and several simulators in one folder share it.
"""

from __future__ import annotations

import os
import secrets
import ssl
from pathlib import Path
from typing import Final

import trustme

from ..errors import ConfigurationError

CA_NAME: Final = "simulator-ca.pem"
KEY_NAME: Final = "simulator-ca.key"
_KEY_BEGINS: Final = b"-----BEGIN EC PRIVATE KEY-----"


def server_context(data_dir: Path) -> ssl.SSLContext:
    """TLS for a server on the loopback interface, whose authority's certificate is in the folder.

    Raises:
      ConfigurationError: the folder cannot be written, or what lies there is no authority.
    """
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        authority = _kept(data_dir / KEY_NAME)
        _replace(data_dir / CA_NAME, authority.cert_pem.bytes(), mode=0o644)
    except OSError as error:
        raise ConfigurationError(
            f"simulator: cannot write to {data_dir}: {error.strerror}"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"simulator: {data_dir / KEY_NAME} is damaged: remove it"
        ) from error
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["h2", "http/1.1"])
    authority.issue_cert("127.0.0.1", "localhost", "::1").configure_cert(context)
    return context


def _kept(path: Path) -> trustme.CA:
    if not path.exists():
        made = trustme.CA()
        draft = _draft(path, made.cert_pem.bytes() + made.private_key_pem.bytes(), mode=0o600)
        try:
            os.link(draft, path)  # atomic, and fails where another process was first
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    certificate, begin, key = path.read_bytes().partition(_KEY_BEGINS)
    return trustme.CA.from_pem(certificate, begin + key)


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    _draft(path, content, mode=mode).replace(path)


def _draft(path: Path, content: bytes, *, mode: int) -> Path:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    return draft
