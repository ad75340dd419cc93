"""The machine: files, sockets, cores, memory, disk; and settings that are dangerous on it."""

from __future__ import annotations

import os
import resource
import shutil
import stat
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, cast

from cryptography import x509

from .. import config
from ..edge import open_context
from ..errors import ConfigurationError
from .needs import Needs, files_needed
from .report import Finding, Status

SESSIONS: Final = 1_000
"""Of a worker, where nobody has said how many writers there will be."""
DISK_BYTES_MIN: Final = 1024**3
MIB: Final = 1024**2
CERTIFICATE_DAYS_MIN: Final = 21
"""Certificates for 90 days are renewed at 30 as a rule: who has less has missed that."""
SECRETS: Final = ("api_key", "secret")


def examine_machine(settings: config.Settings, needs: Needs | None) -> Iterator[Finding]:
    """Look at what the kernel allows; nothing is changed."""
    yield _python()
    yield _files(settings, needs)
    yield from _backlog(settings)
    yield _cores(settings)
    yield from _memory(needs)
    yield _disk(settings.data_path)
    if settings.redis.url is None:
        yield from _overcommit()


def examine_settings(settings: config.Settings, path: Path | None) -> Iterator[Finding]:
    """Look at what is dangerous, though it is allowed.

    Args:
      settings: as they were read.
      path: the settings file, where there is one.
    """
    host, _ = settings.server.address
    is_local = host in config.LOOPBACK
    if settings.auth.mode == "open":
        yield Finding(
            "settings",
            "who may come in",
            "ok" if is_local else "fail",
            f'auth.mode is "open": anybody who reaches {settings.server.bind} gets a token',
            "" if is_local else 'set auth.mode = "jwt" and auth.secret = "env:…"',
        )
    else:
        yield Finding("settings", "who may come in", "ok", "only who brings a signed token")
    if settings.server.scheme == "https":
        yield from examine_certificate(settings.server, datetime.now(UTC))
    else:
        yield Finding(
            "settings",
            "transport",
            "ok" if is_local else "warn",
            f"plain HTTP on {settings.server.bind}",
            ""
            if is_local
            else "set server.tls_certificate and tls_key, or let a proxy that speaks TLS stand "
            "before it, and bind to 127.0.0.1 where it is on this machine",
        )
    is_behind = not is_local and settings.server.scheme == "http"
    if is_behind and settings.server.trusted_proxies == config.Server().trusted_proxies:
        yield Finding(
            "settings",
            "addresses",
            "warn",
            "a proxy on another machine counts as one address, for all who come through it",
            'name it: server.trusted_proxies = ["10.0.0.5"]',
        )
    if not is_local and not settings.server.public_origins:
        yield Finding(
            "settings",
            "origins",
            "warn",
            "only pages that coach serves itself may connect",
            'behind a proxy with another name, set server.public_origins = ["https://…"]',
        )
    if path is not None:
        yield from _file(path)


def examine_certificate(server: config.Server, now: datetime) -> Iterator[Finding]:
    """Look at the port's own certificate: whether it can be used, and for how long."""
    assert server.tls_certificate is not None
    assert server.tls_key is not None
    try:
        open_context(server)
    except ConfigurationError as error:
        yield Finding("settings", "transport", "fail", str(error), "workers will not start")
        return
    yield Finding("settings", "transport", "ok", f"TLS on {server.bind}")
    read = x509.load_pem_x509_certificate(Path(server.tls_certificate).read_bytes())
    begins, ends = read.not_valid_before_utc, read.not_valid_after_utc
    days = (ends - now).days
    if now < begins:
        status, found = "fail", f"not valid before {begins:%Y-%m-%d %H:%M} UTC"
    elif now >= ends:
        status, found = "fail", f"has expired on {ends:%Y-%m-%d}"
    else:
        status = "ok" if days >= CERTIFICATE_DAYS_MIN else "warn"
        found = f"valid for {days} days, until {ends:%Y-%m-%d}"
    fix = "" if status == "ok" else "renew it, then SIGHUP: new workers read it"
    yield Finding("settings", "certificate", cast("Status", status), found, fix)
    if Path(server.tls_key).stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        yield Finding(
            "settings",
            "key",
            "warn",
            f"others of this machine may read {server.tls_key}",
            f"chmod 600 {server.tls_key}, owned by the user that runs coach",
        )


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding("machine", "Python", "ok", version)  # an older one could not import this


def _files(settings: config.Settings, needs: Needs | None) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = needs.files if needs is not None else files_needed(SESSIONS, settings)
    more = 2 * needed
    whose = "needed" if needs is not None else f"needed for {SESSIONS:,} writers"
    found = f"soft {_number(soft)}, hard {_number(hard)}; {whose} {needed:,} in a worker"
    if hard != resource.RLIM_INFINITY and hard < needed:
        return Finding(
            "machine",
            "open files",
            "fail" if needs is not None else "warn",
            found,
            f"raise the hard limit: LimitNOFILE={more} in the unit, or ulimit -Hn {more}",
        )
    return Finding("machine", "open files", "ok", f"{found}; coach raises the soft limit itself")


def _backlog(settings: config.Settings) -> Iterator[Finding]:
    somaxconn = _sysctl("net/core/somaxconn")
    if somaxconn is None:
        return
    wanted = settings.server.backlog
    yield Finding(
        "machine",
        "listen backlog",
        "ok" if somaxconn >= wanted else "warn",
        f"net.core.somaxconn {somaxconn:,}, server.backlog {wanted:,}",
        ""
        if somaxconn >= wanted
        else f"sysctl -w net.core.somaxconn={wanted}: a class that comes at once waits else",
    )


def _cores(settings: config.Settings) -> Finding:
    cores, workers = len(os.sched_getaffinity(0)), settings.server.workers
    found = f"{workers} web workers on {cores} cores"
    if workers > cores:
        return Finding(
            "machine", "workers", "warn", found, f"set server.workers to {cores} at most"
        )
    return Finding("machine", "workers", "ok", found)


def _memory(needs: Needs | None) -> Iterator[Finding]:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    sizes = {name: int(rest.split()[0]) * 1024 for name, rest in (s.split(":") for s in lines)}
    free = sizes.get("MemAvailable", 0)
    needed = needs.memory_bytes if needs is not None else 0
    found = f"{free / MIB:,.0f} MiB free"
    if needs is not None:
        found += f", needed {needed / MIB:,.0f} MiB"
    is_enough = free > needed
    fix = "" if is_enough else "more memory, or fewer writers on this machine"
    yield Finding("machine", "memory", "ok" if is_enough else "fail", found, fix)


def _disk(folder: Path) -> Finding:
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            "machine", "data folder", "fail", f"{folder} cannot be written", "set data_dir"
        )
    free = shutil.disk_usage(existing).free
    is_enough = free >= DISK_BYTES_MIN
    return Finding(
        "machine",
        "data folder",
        "ok" if is_enough else "warn",
        f"{folder}: {free / 1024**3:,.1f} GiB free",
        "" if is_enough else "make room: an append-only file that cannot grow stops submissions",
    )


def _overcommit() -> Iterator[Finding]:
    if _sysctl("vm/overcommit_memory") == 0:
        yield Finding(
            "machine",
            "overcommit",
            "warn",
            "vm.overcommit_memory is 0",
            "sysctl -w vm.overcommit_memory=1: the embedded Valkey forks to rewrite its file",
        )


def _file(path: Path) -> Iterator[Finding]:
    try:
        text, mode = path.read_text(encoding="utf-8"), path.stat().st_mode
    except OSError:
        return
    lines = [line.strip() for line in text.splitlines()]
    plain = [
        name
        for line in lines
        for name in SECRETS
        if line.startswith(name) and "=" in line and "env:" not in line
    ]
    readable = bool(mode & (stat.S_IRGRP | stat.S_IROTH))
    if plain and readable:
        yield Finding(
            "settings",
            "secrets",
            "warn",
            f"{path} holds {plain[0]} itself, and others may read it",
            f'write {plain[0]} = "env:NAME", or chmod 600 {path}',
        )
    else:
        yield Finding("settings", "secrets", "ok", "none that others of this machine could read")


def _sysctl(name: str) -> int | None:
    try:
        return int(Path("/proc/sys", name).read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _number(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else f"{limit:,}"
