"""One worker of the budget benchmark: asks at random moments, writes down what became of each.

Reads one JSON line, `Orders`; says `ready`; reads the line that says when to begin; says one JSON
line, the requests.
"""

from __future__ import annotations

import random
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal, TypeVar

import msgspec
import trio

from coach import config
from coach.backend import Backend, open_backend
from coach.budget import Ask, EndpointBudget, Ungoverned
from coach.providers import (
    Conversation,
    Prompt,
    ProviderError,
    Usage,
    closes_gate,
    feedback_prompt,
    hold_s,
)

T = TypeVar("T")

Lane = Literal["interactive", "submission", "background"]


class Orders(msgspec.Struct, frozen=True):
    """What a worker does."""

    worker: int
    config: str
    per_s: float
    seconds: float
    patience_s: float
    orgs: dict[str, float]
    """Share of the requests."""
    lanes: dict[Lane, float]
    essays: list[str]
    is_governed: bool
    seed: int


class Request(msgspec.Struct):
    """What became of one; moments in seconds of CLOCK_MONOTONIC, which all processes share."""

    org: str
    lane: Lane
    wished_at: float
    admitted_at: float | None = None
    end: str = "left"
    """done, left (waited for too long), or the kind of the provider's error."""
    asked: int = 0
    """Tokens of input and output that were reserved."""
    input: int = 0
    """Uncached, with what was written to the cache."""
    output: int = 0


class Silent:
    """A sink."""

    def on_start(self, model: str, usage: Usage) -> None:
        """Nobody listens."""

    def on_delta(self, text: str) -> None:
        """Likewise."""


async def run(orders: Orders) -> list[Request]:
    """Ask for as long as ordered, and wait for all that is under way."""
    settings = config.load(Path(orders.config))
    rng = random.Random(orders.seed * 100 + orders.worker)  # noqa: S311  a load, not a secret
    requests: list[Request] = []
    async with open_backend(settings, role=f"bench{orders.worker}") as backend:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        begin_at = float(await trio.to_thread.run_sync(sys.stdin.readline))
        budget = backend.endpoints[0].budget if orders.is_governed else Ungoverned()
        at = begin_at
        async with trio.open_nursery() as nursery:
            while (at := at + rng.expovariate(orders.per_s)) < begin_at + orders.seconds:
                await trio.sleep(max(0.0, at - time.monotonic()))
                request = Request(
                    org=_one_of(rng, orders.orgs),
                    lane=_one_of(rng, orders.lanes),
                    wished_at=at,
                )
                requests.append(request)
                prompt = _prompt(rng, backend, orders.essays)
                nursery.start_soon(_ask, backend, budget, request, prompt, orders.patience_s)
    return requests


async def _ask(
    backend: Backend,
    budget: EndpointBudget | Ungoverned,
    request: Request,
    prompt: Prompt,
    patience_s: float,
) -> None:
    endpoint = backend.endpoints[0]
    provider, warmth = endpoint.provider, endpoint.warmth
    most = provider.estimator.most(prompt.size())
    fresh = max(1, most - warmth.expected_read(prompt))
    ask = Ask(input=fresh, output=prompt.output_tokens_max)
    with trio.move_on_after(patience_s) as patience:
        async with budget.admit(ask, lane=request.lane, org=request.org) as admission:
            patience.deadline = float("inf")
            request.admitted_at = time.monotonic()
            request.asked = ask.input + ask.output
            used = Ask(input=ask.input, output=0)
            with suppress(ProviderError):
                try:
                    async with warmth.visit(prompt) as visit:
                        completion = await provider.stream(
                            prompt, Silent(), on_headers=admission.observe
                        )
                        visit.began(completion.usage)
                    usage = completion.usage
                    used = Ask(input=usage.input + usage.cache_write, output=usage.output)
                    request.input, request.output = used.input, used.output
                    request.end = "done"
                except ProviderError as error:
                    request.end = error.kind
                    used = Ask(input=0, output=0)
                    if closes_gate(error.kind):
                        admission.close_gate(hold_s(error) or 0.0)
                    raise
                finally:
                    admission.settle(used)


def _prompt(rng: random.Random, backend: Backend, essays: list[str]) -> Prompt:
    """A draft of any length, of one of the essays."""
    words = rng.choice(essays).split()
    draft = f"{rng.getrandbits(40):x} " + " ".join(words[: rng.randrange(40, len(words))])
    return feedback_prompt(
        rubric=backend.rubric.as_text(),
        assignment=backend.rubric.task(None),
        question=Conversation().ask(draft, None, now_s=trio.current_time()),
        output_tokens_max=backend.endpoints[0].settings.feedback_output_tokens_max,
        user_id=None,
    )


def _one_of(rng: random.Random, shares: dict[T, float]) -> T:
    return rng.choices(list(shares), list(shares.values()))[0]


def main() -> None:
    """Serve one run."""
    orders = msgspec.json.decode(sys.stdin.readline(), type=Orders)
    requests = trio.run(run, orders)
    sys.stdout.write(msgspec.json.encode(requests).decode() + "\n")


if __name__ == "__main__":
    main()
