"""Settings: one frozen object from `coach.toml` and the environment; every default lives here.

Read once, at start. Any field can be set as `COACH_<SECTION>__<FIELD>`, lists and the whole of
`COACH_PROVIDER` as JSON; a string value `env:NAME` is replaced by the environment variable NAME, so
that secrets stay out of the file.

`msgspec.Struct` instead of `attrs` here: it refuses unknown keys and checks types and ranges while
it converts, and its errors name the path of the setting that is wrong.
"""

from __future__ import annotations

import os
import tomllib
from base64 import b64decode
from collections.abc import Mapping
from datetime import date
from decimal import Decimal
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from .errors import ConfigurationError

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Name = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Org = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")]
Weight = Annotated[int, Meta(ge=1, le=100)]
Currency = Annotated[str, Meta(pattern=r"^[A-Z]{3}$")]

PREFIX: Final = "COACH_"
PRICE_MAX: Final = 1_000_000
"""For a million tokens, and of a currency for a dollar: anything above is a slip of the pen."""
BUDGET_MAX: Final = 1_000_000_000
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
"""Hosts that may be asked without TLS: nothing leaves the machine."""


def is_private(url: str) -> bool:
    """Whether nobody between can read what is sent there: over TLS, or on this machine."""
    parts = urlsplit(url)
    local = parts.scheme == "http" and parts.hostname in LOOPBACK
    return bool(parts.hostname) and (parts.scheme == "https" or local)


def address_of(text: str) -> tuple[str, int] | None:
    """Host and port of `host:port`; None: it is none."""
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        return None
    return host.strip("[]"), int(port)


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: unknown keys are refused by name."""


class Server(Section, frozen=True, kw_only=True):
    """The port, the worker processes, and what one client may do."""

    bind: str = "127.0.0.1:8000"
    workers: Count = 1
    """Web worker processes; one per core is the most that helps."""
    drain_s: Seconds = 10.0
    """From SIGTERM until the last connection is cut."""
    tls_certificate: str | None = None
    """PEM file of the port's certificate and its chain; absent: the port is plain HTTP."""
    tls_key: str | None = None
    """PEM file of its private key."""
    public_origins: tuple[str, ...] = ()
    """Origins whose pages may open a WebSocket, as `https://host`; empty: only the page's own."""
    backlog: Annotated[int, Meta(ge=128)] = 4096
    head_bytes_max: Count = 16_384
    head_s_max: Seconds = 5.0
    send_s_max: Seconds = 30.0
    """How long a client may take to read one piece of an HTTP answer (at most 64 KiB as a rule), or
    to send one of a request's body."""
    hello_s_max: Seconds = 5.0
    message_bytes_max: Count = 262_144
    draft_chars_max: Count = 100_000
    drafts_max: Count = 8
    """Drafts one session may hold."""
    bad_messages_max: Count = 16
    """Bad messages after which a connection is closed with 1008."""
    outbox_bytes_max: Count = 262_144
    """Bytes that may wait for one student's socket before the session is shed."""
    delta_window_s: Annotated[float, Meta(ge=0, le=1)] = 0.04
    """Between two messages of feedback text of one turn, after its first; 0: each at once."""
    connections_max: Count | None = None
    """Connections of one worker at once; absent: what its limit of open files leaves beside
    providers and Redis. Beyond it: 503."""
    connections_per_user: Count = 8
    connects_per_minute: Count = 60
    """Connections that one user may open in a worker, all at once if need be."""
    messages_per_s: Annotated[int, Meta(ge=10)] = 50
    """Of one user to a worker, after a burst of 20 s' worth; beyond it they are read later."""
    connections_per_address: Count = 2_048
    """From one address at once, to a worker; beyond it: 429."""
    connects_per_address_per_minute: Count = 6_000
    """WebSockets that one address may ask a worker for, all at once if need be; beyond it: 429."""
    trusted_proxies: tuple[str, ...] = ("127.0.0.0/8", "::1")
    """Addresses and networks that say in `forwarded_header` whom they stand for; they themselves
    are not limited."""
    forwarded_header: Literal["x-forwarded-for", "forwarded"] = "x-forwarded-for"
    """The one that these proxies set; the other one, anybody may have written."""
    ping_s: Seconds = 20.0
    """Between pings to a student; a pong missing for as long ends the connection."""

    @property
    def scheme(self) -> str:
        """Of the port's URLs."""
        return "http" if self.tls_certificate is None else "https"

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `bind`."""
        found = address_of(self.bind)
        assert found is not None  # checked when it was read
        return found


class Session(Section, frozen=True, kw_only=True):
    """Sessions that outlive their connections."""

    detached_s: Annotated[float, Meta(ge=0, le=3_600)] = 60.0
    """How long feedback goes on while its student is away; 0: a session ends with its link."""
    resume_s: Annotated[float, Meta(ge=300, le=604_800)] = 3_600.0
    """How long after its connection has ended a session can be gone on with."""
    detached_max: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    """Sessions of a worker whose students are away; beyond it the oldest is put away in Redis."""
    unacked_bytes_max: Annotated[int, Meta(ge=4_096, le=16_777_216)] = 131_072
    """Of messages of one session that the client has not acknowledged, kept to be said again."""
    tail_max: Annotated[int, Meta(ge=16, le=100_000)] = 4_096
    """Messages of one session that Redis keeps while the student is away."""
    require_jwt_on_resume: bool = True
    """Whether a resume token is worth nothing without a valid token of the same user."""


class Redis(Section, frozen=True, kw_only=True):
    """Where the shared state lives."""

    url: str | None = None
    """`redis://`, `rediss://`, `unix://`, `redis+sentinel://`, `redis+cluster://` (the forms stand
    in store/url.py); absent: an embedded Valkey in `data_dir`."""
    wait_s: Seconds = 5.0
    """How long a command may wait for a connection before the client is told `overloaded`."""


class Auth(Section, frozen=True, kw_only=True):
    """Who may connect."""

    mode: Literal["open", "jwt"] = "open"
    """`open`: POST /api/token makes a student for anybody (demo); `jwt`: bring a token."""
    secret: str | None = None
    """HS256 key, at least 32 bytes; absent in `open` mode: made once and kept in `data_dir`."""
    jwks_file: str | None = None
    """Public keys of an identity provider (RS256, EdDSA) as a JWK set; or `jwks_url`."""
    jwks_url: str | None = None
    jwks_refresh_s: Annotated[float, Meta(ge=1, le=86_400)] = 300.0
    """Between two looks at the keys; a token that names a new one causes another."""
    audience: str | None = None
    """What a token's `aud` must be or contain; absent: a token with `aud` is not for us."""
    issuer: str | None = None
    """What its `iss` must be; absent: anything."""
    token_s: Seconds = 86_400.0
    """Life of the tokens that coach itself makes."""
    renew_s: Annotated[float, Meta(ge=0)] = 2_592_000.0
    """`open`: how long after its end a token still gets its student a new one."""
    leeway_s: Annotated[float, Meta(ge=0)] = 5.0


class Limits(Section, frozen=True, kw_only=True):
    """Rolling limits over any 60 s; `coach limits` changes them for an org or a user."""

    mode: Literal["enforce", "shadow"] = "enforce"
    """`shadow`: count, log and let everybody through."""
    user_requests_per_minute: Count = 30
    user_tokens_per_minute: Count = 60_000
    org_requests_per_minute: Count = 6_000
    org_tokens_per_minute: Count = 6_000_000
    wait_s: Seconds = 5.0
    """How long a turn may wait for Redis, all that it asks of it together."""
    lease_s: Annotated[float, Meta(ge=1, le=60)] = 10.0
    """A dead worker's reservations are refunded after it."""


class Quota(Section, frozen=True, kw_only=True):
    """What a provider's endpoint allows in any 60 s; absent dimensions are not limited."""

    requests_per_minute: Count | None = None
    input_tokens_per_minute: Count | None = None
    """Uncached input plus cache writes (Anthropic's rule)."""
    output_tokens_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    """Input and output together (OpenAI's rule)."""
    rule: Literal["window", "bucket"] = "window"
    """`window`: never more in any 60 s; `bucket`: refilled continuously, as Anthropic says of its
    own, so that within the first minute nearly twice as much can go. The same in all workers."""


class Price(Section, frozen=True, kw_only=True):
    """What a model costs, for a million tokens; decimals, never floats, from here on."""

    models: tuple[str, ...] = ()
    """Names it holds for; one that ends in `*` stands for all that begin so. The longest wins."""
    currency: Currency = "USD"
    input: Decimal
    cache_write_5m: Decimal | None = None
    """Written to the provider's cache for five minutes; absent: as input."""
    cache_write_1h: Decimal | None = None
    """Likewise for an hour; absent: as for five minutes."""
    cache_read: Decimal | None = None
    """Absent: as input."""
    output: Decimal
    batch_factor: Decimal = Decimal(1)
    """By what a batch's prices are multiplied; three decimals at most."""
    cacheable_tokens_min: Count = 1_024
    """A shorter prefix is not cached."""

    def __post_init__(self) -> None:
        """Refuse what is no amount of money."""
        for name in msgspec.structs.fields(type(self)):
            value = getattr(self, name.name)
            if isinstance(value, Decimal) and not 0 <= value <= PRICE_MAX:
                raise ValueError(f"{name.name}: a price is 0 to {PRICE_MAX}, not {value}")
        if self.batch_factor > 1 or self.batch_factor * 1_000 % 1:
            raise ValueError("batch_factor: 0 to 1, with three decimals at most")


class Prices(Section, frozen=True, kw_only=True):
    """Prices beside, or in place of, those that come with coach."""

    file: str | None = None
    """TOML with what may stand in this section; this section goes before it."""
    price: tuple[Price, ...] = ()
    rate: dict[Currency, Decimal] = {}
    """How much of a currency one US dollar is."""
    as_of: date | None = None
    """When somebody last looked."""

    def __post_init__(self) -> None:
        """Refuse what nobody could calculate with."""
        for price in self.price:
            if not price.models:
                raise ValueError("price: it needs models, the names it holds for")
        for currency, rate in self.rate.items():
            if not 0 < rate <= PRICE_MAX:
                raise ValueError(f"rate.{currency}: above 0, at most {PRICE_MAX}")


class OrgBudget(Section, frozen=True, kw_only=True):
    """What an org may cost in a month (UTC), in `costs.currency`."""

    soft: Decimal | None = None
    """Beyond it the operator is told."""
    hard: Decimal | None = None
    """Beyond it feedback is refused and grading waits."""

    def __post_init__(self) -> None:
        """Refuse amounts that make no sense together."""
        if any(not 0 <= amount <= BUDGET_MAX for amount in (self.soft, self.hard) if amount):
            raise ValueError(f"a budget is 0 to {BUDGET_MAX}")
        if self.soft is not None and self.hard is not None and self.soft > self.hard:
            raise ValueError("soft is above hard")


class Costs(Section, frozen=True, kw_only=True):
    """The bill: how it is kept, and what orgs may cost."""

    currency: Currency = "USD"
    """What `coach costs` shows and budgets are in."""
    keep_days: Annotated[int, Meta(ge=62, le=4_000)] = 400
    """How long an hour's costs are kept by assignment, model and reason."""
    user_days: Annotated[int, Meta(ge=1, le=4_000)] = 60
    """How long they are kept by user as well."""
    flush_s: Annotated[float, Meta(gt=0, le=60)] = 1.0
    """Between two writes of what was booked; so much is lost when a process is killed."""
    cells_max: Annotated[int, Meta(ge=100, le=1_000_000)] = 20_000
    """Bookings of different kinds that may wait in a process; beyond it users are no longer told
    apart."""
    budget: dict[str, OrgBudget] = {}
    """By org; `*` for each that is not named."""


class Provider(Section, frozen=True, kw_only=True):
    """One endpoint that answers requests. The file's order is the order of preference."""

    name: Name
    kind: Literal["anthropic", "openai", "openai-compatible"] = "anthropic"
    """What is spoken there; `openai-compatible` sends only what all such servers take."""
    base_url: str
    model: str
    api_key: str
    ca_file: str | None = None
    """PEM file of the authority to trust instead of the system's."""
    quota: Quota = Quota()
    price: Price | None = None
    """In place of the price list, whatever model answers."""
    cache_ttl_s: Seconds | None = None
    """Life of a cached prefix that nobody reads; absent: as documented for `kind`."""
    cache_tokens_min: Count | None = None
    """Shortest prefix that is cached; absent: as documented for the model."""
    feedback_output_tokens_max: Count = 500
    judge_output_tokens_max: Count = 1_500

    def __post_init__(self) -> None:
        """Refuse a quota in the words of another provider: nobody would count by it."""
        quota = self.quota
        if self.kind == "anthropic" and quota.tokens_per_minute is not None:
            raise ValueError(
                f"provider {self.name}: Anthropic counts input and output apart: set "
                "quota.input_tokens_per_minute and output_tokens_per_minute"
            )
        by_part = (quota.input_tokens_per_minute, quota.output_tokens_per_minute)
        if self.kind == "openai" and any(limit is not None for limit in by_part):
            raise ValueError(
                f"provider {self.name}: OpenAI counts input and output together: set "
                "quota.tokens_per_minute"
            )
        most = max(self.feedback_output_tokens_max, self.judge_output_tokens_max)
        if self.kind == "openai" and most > (quota.tokens_per_minute or most):
            raise ValueError(
                f"provider {self.name}: OpenAI refuses whatever may answer with more tokens than "
                f"quota.tokens_per_minute, and that is less than {most}"
            )


class Pool(Section, frozen=True, kw_only=True):
    """Connections to providers, per worker."""

    connect_s_max: Seconds = 5.0
    streams_per_connection_max: Count = 1_000
    """Ceiling on what the peer's SETTINGS allow."""
    connections_max: Count = 32
    """Per origin. Over HTTP/1.1 a connection carries one request at a time."""
    keep_warm: bool = True
    """Keep a connection to every configured provider, asked or not, and enough of them for all
    that the busiest other one carries: it may die."""
    room_percent: Percent = 25
    """Share of an origin's streams to keep free: below it a connection is opened ahead of need."""
    age_s_max: Seconds = 3_600.0
    """After which another connection takes the place of one; up to a fifth earlier, by chance."""
    idle_ping_s: Seconds = 2.0
    """Silence after which a connection is pinged."""
    pong_s_max: Seconds = 2.5
    """Silence after that, after which it is lost: with the above, a dead peer is known in 4.5 s."""
    response_head_s_max: Seconds = 30.0
    stall_s_max: Seconds = 20.0
    """Silence within an answer after which it is given up."""


class Budget(Section, frozen=True, kw_only=True):
    """How near to a provider's quota coach goes."""

    soft_percent: Percent = 80
    hard_percent: Percent = 95
    submission_percent: Percent = 20
    """Share of what the line lets in that submissions get while they wait, whoever else does."""
    background_percent: Percent = 5
    """Likewise for the background lane."""
    org_weights: dict[str, Annotated[float, Meta(ge=0.01, le=1000)]] = {}
    """How much an org gets within a lane, beside the 1 of all others."""
    ticket_lease_s: Seconds = 1.5
    reservation_lease_s: Seconds = 10.0
    line_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Tickets that may wait per endpoint; beyond it requests are refused as `overloaded`."""
    wait_s: Seconds = 5.0
    """How long a request may wait for Redis."""


class Cache(Section, frozen=True, kw_only=True):
    """The providers' prompt caches: what is written there once, and kept there over a pause."""

    single_flight: bool = True
    """The first request with a prefix leads; others wait for its answer to begin."""
    lead_s_max: Annotated[float, Meta(gt=0, le=30)] = 1.5
    """The longest wait; then they go as well."""
    ttl: Literal["5m", "1h"] = "5m"
    """Life of what a class shares, where the provider lets one choose; `1h` costs more to write."""
    keep_warm: bool = True
    """Ping a prefix before it ends, while sessions that use it are open, where that pays."""
    conversations: bool = True
    """Later questions about a draft tell what has changed and get comments on that; all before
    is read from the cache. Off: each tells the whole draft."""
    prefixes_max: Annotated[int, Meta(ge=1, le=100_000)] = 500
    """Prefixes that one worker knows of at one endpoint; some 10 KB each."""


class Failover(Section, frozen=True, kw_only=True):
    """When another provider is asked, and when one is left alone."""

    first_token_s_min: Seconds = 2.0
    """A first token counts as late after twice the 99th percentile, but not before this."""
    first_token_s_max: Seconds = 8.0
    """Nor after this."""
    stall_s_max: Seconds = 6.0
    """Silence between two pieces of text after which the turn begins again elsewhere."""
    faults_max: Annotated[int, Meta(ge=1, le=1_000)] = 5
    """Faults in a row that open an endpoint's breaker."""
    fault_percent: Annotated[int, Meta(ge=1, le=100)] = 50
    """Faults of a hundred requests that open it."""
    requests_min: Annotated[int, Meta(ge=1, le=1_000_000)] = 20
    window_s: Annotated[float, Meta(ge=1, le=600)] = 30.0
    open_s: Seconds = 2.0
    """Until the first probe; doubles with each that fails."""
    open_s_max: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    probe_s_max: Annotated[float, Meta(gt=0, le=600)] = 15.0
    """A probe that nobody reports on is another's turn after it."""
    ramp_step_s: Annotated[float, Meta(gt=0, le=600)] = 5.0
    """How long 10, 25 and 50 per cent are let in after a probe that ended well."""


class Grading(Section, frozen=True, kw_only=True):
    """The queue and the judges."""

    rubric: str | None = None
    """A rubric in TOML; absent: the one that comes with coach."""
    judges: Annotated[int, Meta(ge=1, le=9)] = 3
    """Who reads each essay, seated over the providers in their order."""
    quorum: Annotated[int, Meta(ge=1, le=9)] = 2
    """How many must have answered for a grade."""
    deadline_s: Annotated[float, Meta(ge=0.1, le=600)] = 8.0
    """From submission until a quorum is enough for a grade; an essay that comes late to its judges
    gives them half of it all the same."""
    review_percent: Percent = 4
    """Share of grades that a person is to look at, whatever the judges said."""
    concurrency: Count = 16
    """Grades one grader process works on at once."""
    metrics: str | None = None
    """`host:port` where a grader process answers `GET /metrics`; each its own. Absent: nowhere."""
    lease_s: Annotated[float, Meta(ge=0.1, le=600)] = 10.0
    heartbeat_s: Seconds = 3.0
    attempts_max: Count = 5
    retry_base_s: Annotated[float, Meta(gt=0, le=86_400)] = 0.5
    retry_s_max: Annotated[float, Meta(gt=0, le=86_400)] = 30.0
    retry_per_s: Annotated[int, Meta(ge=1, le=1_000_000)] = 10
    """The retry budget of a shard: so many begin in a second, after `retry_burst` at once."""
    retry_burst: Annotated[int, Meta(ge=1, le=1_000_000)] = 50
    shards: Count = 1
    depth_max: Count = 10_000
    """Unfinished jobs of a shard; beyond it submissions are refused as `overloaded`."""
    background_depth_percent: Percent = 50
    """Share of `depth_max` from which on background jobs are refused: before everybody else's."""
    org_depth_percent: Annotated[int, Meta(ge=1, le=100)] = 50
    """Share of `depth_max` that one org may have waiting in a lane."""
    weights: dict[Org, Weight] = {}
    """By org, where it is not 1: shares of the graders' time while several orgs wait."""
    drain_s: Seconds = 10.0
    """From SIGTERM until a grader hands back what it has not finished."""
    bulk_max: Annotated[int, Meta(ge=1, le=100_000)] = 20_000
    """Essays of one bulk job (`coach regrade`)."""
    bulk_batch_window: Annotated[int, Meta(ge=1, le=100_000)] = 2_000
    """As bulk_window, of a job that goes by batches."""
    batch_poll_s: Annotated[float, Meta(gt=0, le=3_600)] = 60.0
    """Between two looks at a provider's batch."""
    bulk_window: Annotated[int, Meta(ge=1, le=10_000)] = 64
    """So many of them are in the queue at once."""
    result_days: Count = 90
    lanes: tuple[Literal["interactive", "submission", "background"], ...] = (
        "interactive",
        "submission",
        "background",
    )


class Webhook(Section, frozen=True, kw_only=True):
    """An integrator's server that hears how essays end."""

    name: Name
    """What metrics, logs and waiting deliveries call it."""
    url: str
    secret: str
    """Signs what is sent: `whsec_` and the base64 of 24 to 64 random bytes."""
    previous_secret: str | None = None
    """Signs as well, while the receiver changes over from it."""
    org: Annotated[str, Meta(pattern=r"^(\*|[A-Za-z0-9][A-Za-z0-9_.@-]{0,63})$")] = "*"
    """Whose essays; `*`: everybody's."""
    events: Annotated[
        tuple[Literal["submission.graded", "submission.failed"], ...], Meta(min_length=1)
    ] = ("submission.graded", "submission.failed")

    def __post_init__(self) -> None:
        """Refuse an address that would show essays' grades to others, and what is no secret."""
        if not is_private(self.url):
            raise ValueError(
                f"webhook {self.name}: url must be https://host[:port]/path, or http:// for a "
                "server on this machine (127.0.0.1)"
            )
        if any(not 24 <= len(key) <= 64 for key in self.keys):
            raise ValueError(
                f"webhook {self.name}: a secret is whsec_ and the base64 of 24 to 64 bytes: "
                "echo whsec_$(head -c 32 /dev/urandom | base64)"
            )

    @property
    def keys(self) -> tuple[bytes, ...]:
        """What signs, the current one first; an empty one where it is no base64."""
        texts = (self.secret, self.previous_secret)
        return tuple(_secret_bytes(text) for text in texts if text is not None)


def _secret_bytes(text: str) -> bytes:
    try:
        return b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        return b""


class Webhooks(Section, frozen=True, kw_only=True):
    """How integrators' servers are told, and for how long it is tried."""

    to: tuple[Webhook, ...] = ()
    concurrency: Annotated[int, Meta(ge=1, le=256)] = 8
    """Deliveries that one grader process has under way at once."""
    timeout_s: Annotated[float, Meta(ge=1, le=60)] = 15.0
    """How long a server may take to answer."""
    attempts_max: Annotated[int, Meta(ge=1, le=1_000)] = 20
    """Failures after which a delivery is a dead letter; with the figures below, after a day."""
    retry_base_s: Seconds = 5.0
    retry_s_max: Annotated[float, Meta(gt=0, le=86_400)] = 21_600.0
    depth_max: Count = 10_000
    """Deliveries of a shard that may be unfinished; news beyond it waits before them."""
    keep_days: Count = 7
    """How long deliveries and dead letters are kept."""

    def wants(self, org: str) -> bool:
        """Whether somebody hears of an org's essays."""
        return any(each.org in ("*", org) for each in self.to)


class Rollout(Section, frozen=True, kw_only=True):
    """For how many users of a hundred a part of coach is used instead of the usual way."""

    pool: Percent = 100
    """0: a new TLS connection for each feedback request."""
    shared_limits: Percent = 100
    """0: each worker counts the limits of users and orgs for itself."""
    queue: Percent = 100
    """0: an essay is graded by the worker that takes it in, at once, and lost if that one dies."""
    backpressure: Percent = 100
    """0: feedback requests go without a budget, and meet the provider's 429."""


class Traces(Section, frozen=True, kw_only=True):
    """OpenTelemetry: a tree of spans for each turn and each grade. Needs the extra `otel`."""

    endpoint: str | None = None
    """Where OTLP over HTTP is taken, as `http://127.0.0.1:4318/v1/traces`; absent: no traces."""
    headers: dict[str, str] = {}
    """Sent along, for who asks for a key."""
    sample_percent: Annotated[float, Meta(ge=0, le=100)] = 100.0
    """Share of turns and grades that are traced."""
    service: str = "coach"
    """`service.name` of the spans."""

    def __post_init__(self) -> None:
        """Refuse what is no address."""
        if self.endpoint is not None and urlsplit(self.endpoint).scheme not in ("http", "https"):
            raise ValueError("endpoint: an address like http://127.0.0.1:4318/v1/traces")


class Log(Section, frozen=True, kw_only=True):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["console", "json"] = "console"


class Settings(Section, frozen=True, kw_only=True):
    """Everything coach can be told."""

    data_dir: str = ".coach"
    server: Server = Server()
    session: Session = Session()
    redis: Redis = Redis()
    auth: Auth = Auth()
    limits: Limits = Limits()
    provider: tuple[Provider, ...] = ()
    pool: Pool = Pool()
    budget: Budget = Budget()
    cache: Cache = Cache()
    failover: Failover = Failover()
    grading: Grading = Grading()
    webhooks: Webhooks = Webhooks()
    rollout: Rollout = Rollout()
    prices: Prices = Prices()
    costs: Costs = Costs()
    traces: Traces = Traces()
    log: Log = Log()

    @property
    def data_path(self) -> Path:
        """`data_dir` as a path."""
        return Path(self.data_dir)


def path_from_environment() -> Path | None:
    """The settings file that the command line, or the operator, named in `COACH_CONFIG`."""
    name = os.environ.get("COACH_CONFIG")
    return Path(name) if name else None


def load(path: Path | None, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings: defaults, then the file, then the environment.

    Args:
      path: `coach.toml`; None where there is none.
      environ: in place of `os.environ`.

    Raises:
      ConfigurationError: unreadable file, unknown key, wrong type or range, or values that
        contradict each other; one line that names the setting.
    """
    environ = os.environ if environ is None else environ
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{path} is not TOML: {error}") from error
    _overlay(data, environ)
    try:
        settings = msgspec.convert(_secrets(data, environ), Settings, strict=False)
    except msgspec.ValidationError as error:
        where = path or "the environment"
        raise ConfigurationError(f"{where}: {error}") from error
    _check(settings)
    return settings


def _overlay(data: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name, value in environ.items():
        if not name.startswith(PREFIX) or value == "":
            continue
        *sections, field = name.removeprefix(PREFIX).lower().split("__")
        if not sections and field not in {"data_dir", "provider"}:
            continue  # COACH_CONFIG and the like are the command line's
        target = data
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise ConfigurationError(f"{name}: [{section}] is a list; set it in the file")
        try:
            target[field] = msgspec.json.decode(value) if value[0] in "[{" else value
        except msgspec.DecodeError as error:
            raise ConfigurationError(f"{name} is not JSON: {error}") from error


def _secrets(value: Any, environ: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _secrets(item, environ) for key, item in value.items()}
    if isinstance(value, list):
        return [_secrets(item, environ) for item in value]
    if isinstance(value, str) and value.startswith("env:"):
        name = value.removeprefix("env:")
        if name not in environ:
            raise ConfigurationError(f"a setting says {value!r}, but {name} is not set")
        return environ[name]
    return value


def _check(settings: Settings) -> None:
    if address_of(settings.server.bind) is None:
        raise ConfigurationError(f"server.bind: {settings.server.bind!r} is not host:port")
    if (settings.server.tls_certificate is None) != (settings.server.tls_key is None):
        raise ConfigurationError("server: tls_certificate and tls_key: set both, or neither")
    for network in settings.server.trusted_proxies:
        try:
            ip_network(network)
        except ValueError as error:
            raise ConfigurationError(
                f"server.trusted_proxies: {network!r} is no address and no network as 10.0.0.0/8"
            ) from error
    names = [provider.name for provider in settings.provider]
    if len(set(names)) != len(names):
        raise ConfigurationError("provider: two providers have the same name")
    for provider in settings.provider:
        if not is_private(provider.base_url):
            raise ConfigurationError(
                f"provider {provider.name}: base_url must be https://host[:port][/path], or "
                "http:// for a server on this machine (127.0.0.1)"
            )
    _check_auth(settings.auth)
    if settings.budget.soft_percent > settings.budget.hard_percent:
        raise ConfigurationError("budget.soft_percent is above budget.hard_percent")
    if settings.budget.submission_percent + settings.budget.background_percent > 90:
        raise ConfigurationError(
            "budget.submission_percent and budget.background_percent: together at most 90, or "
            "nothing is left for those somebody waits for"
        )
    if settings.failover.first_token_s_min > settings.failover.first_token_s_max:
        raise ConfigurationError("failover.first_token_s_min is above failover.first_token_s_max")
    _check_grading(settings.grading)
    hooks = [webhook.name for webhook in settings.webhooks.to]
    if len(set(hooks)) != len(hooks):
        raise ConfigurationError("webhooks.to: two webhooks have the same name")


def _check_grading(grading: Grading) -> None:
    if grading.metrics is not None and address_of(grading.metrics) is None:
        raise ConfigurationError(f"grading.metrics: {grading.metrics!r} is not host:port")
    if grading.quorum > grading.judges:
        raise ConfigurationError("grading.quorum is above grading.judges")
    if grading.heartbeat_s * 2 > grading.lease_s:
        raise ConfigurationError("grading.lease_s must be at least twice grading.heartbeat_s")


def _check_auth(auth: Auth) -> None:
    if auth.jwks_file is not None and auth.jwks_url is not None:
        raise ConfigurationError("auth: set jwks_file or jwks_url, not both")
    has_keys = auth.jwks_file is not None or auth.jwks_url is not None
    if auth.mode == "jwt" and auth.secret is None and not has_keys:
        raise ConfigurationError("auth.mode is jwt: set auth.secret, auth.jwks_file or jwks_url")
    if auth.mode == "open" and has_keys:
        raise ConfigurationError('auth.mode is open, so anybody gets a token: set mode = "jwt"')
    if auth.jwks_url is not None and not is_private(auth.jwks_url):
        raise ConfigurationError(
            "auth.jwks_url must be https://host[:port]/path, or http:// for a server on this "
            "machine (127.0.0.1)"
        )
    if auth.secret is not None and len(auth.secret.encode()) < 32:
        raise ConfigurationError("auth.secret: an HS256 key needs at least 32 bytes")
