"""What to reserve, what a provider's headers mean, and what is worth telling someone who waits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.budget.quota import DIMENSIONS, NOTHING, UNSAID, Ask, Capacity, Outlook, Told

ANTHROPIC = config.Quota(
    requests_per_minute=100, input_tokens_per_minute=10_000, output_tokens_per_minute=2_000
)
OPENAI = config.Quota(requests_per_minute=100, tokens_per_minute=10_000)


def capacity(quota: config.Quota) -> Capacity:
    return Capacity.of(quota, config.Budget())


def test_shares_of_a_quota() -> None:
    """Soft 80 %, hard 95 %, and no limit where the quota has none."""
    shares = capacity(OPENAI)
    assert shares.quota == (100, 0, 0, 10_000)
    assert shares.hard == (95, 0, 0, 9_500)
    assert shares.soft == (80, 0, 0, 8_000)


def test_only_input_beyond_the_whole_quota_is_impossible() -> None:
    """Between hard share and quota it waits for an empty window; output is a bound, not a fact."""
    assert capacity(ANTHROPIC).refuses(Ask(10_001, 1)) == "input"
    assert capacity(ANTHROPIC).refuses(Ask(10_000, 1_000_000)) is None
    assert capacity(OPENAI).refuses(Ask(10_001, 0)) == "tokens"
    assert capacity(OPENAI).refuses(Ask(1, 10_001)) is None
    assert capacity(config.Quota()).refuses(Ask(10**9, 10**9)) is None


def test_headers_say_what_others_have_spent() -> None:
    """What is left, per dimension that the quota limits; it is news where coach knows of less."""
    headers = {
        "anthropic-ratelimit-requests-limit": "100",
        "anthropic-ratelimit-requests-remaining": "93",
        "anthropic-ratelimit-input-tokens-remaining": "12000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-tokens-remaining": "1",
    }
    shares = capacity(ANTHROPIC)
    left = shares.left(headers)
    assert left == (93, 12_000, 0, -1)
    assert shares.is_news(left, (7, 0, 1_999, 0))
    assert not shares.is_news(left, (7, 0, 2_000, 0))
    assert capacity(OPENAI).left({"x-ratelimit-remaining-tokens": "1"}) == (-1, -1, -1, 1)


def test_an_operators_word_counts_where_it_says_something() -> None:
    """What it does not limit stays as it is configured."""
    said = capacity(OPENAI).as_said((50, 0, 0, 0))
    assert said.quota == (50, 0, 0, 10_000)
    assert not said.is_news((40, -1, -1, -1), (10, 0, 0, 0))
    assert said.is_news((39, -1, -1, -1), (10, 0, 0, 0))
    assert capacity(OPENAI).as_said(None) == capacity(OPENAI)


@given(
    st.dictionaries(
        st.sampled_from(["anthropic-ratelimit-requests-remaining", "x-ratelimit-remaining-tokens"]),
        st.text(max_size=12) | st.sampled_from(["-1", "1e3", "٣", "²", " 5", "9" * 12]),
    )
)
def test_any_header_text_is_harmless(headers: dict[str, str]) -> None:
    """What a provider sends is a number of decimal digits, or ignored."""
    assert all(-1 <= left < 10**12 for left in capacity(OPENAI).left(headers))


def test_a_number_of_thousands_of_digits_is_harmless() -> None:
    """Python refuses to read one, with an error that must not end an answer."""
    headers = {"x-ratelimit-remaining-tokens": "9" * 5_000}
    assert capacity(OPENAI).left(headers) == UNSAID


def test_no_header_no_correction() -> None:
    """Silence changes nothing."""
    shares = capacity(ANTHROPIC)
    assert shares.left({}) == UNSAID
    assert not shares.is_news(UNSAID, NOTHING)


def test_shares_used() -> None:
    """Of the provider's quota, for the dimensions it limits."""
    assert capacity(OPENAI).used((50, 7, 7, 2_500)) == {"requests": 0.5, "tokens": 0.25}
    assert set(DIMENSIONS) == {"requests", "input", "output", "tokens"}


def test_eta_counts_from_the_head() -> None:
    """The head's own wait, and one step for each ticket before."""
    assert Outlook(4.0, 0.5).eta_s(1) == 4.0
    assert Outlook(4.0, 0.5).eta_s(3) == 5.0
    assert Outlook(None, 0.5).eta_s(2) == 1.0


@pytest.mark.parametrize(
    ("position", "eta_s", "now_s", "news"),
    [
        (4, 10.0, 0.1, False),  # too soon after the last report, whatever it is
        (3, 10.0, 0.1, False),
        (3, 10.0, 0.2, True),  # the place changed
        (4, 6.0, 4.0, False),  # time has passed as promised
        (4, 7.4, 4.0, False),  # a quarter more
        (4, 7.6, 4.0, True),
        (4, 4.4, 4.0, True),  # sooner is news, too
        (4, 0.9, 30.0, False),  # late, and any moment now
        (4, 1.1, 30.0, True),
    ],
)
def test_what_is_news(position: int, eta_s: float, now_s: float, *, news: bool) -> None:
    """A changed place, or a time that is more than 1 s and a quarter off."""
    assert Told(position=4, eta_s=10.0, at_s=0.0).is_news(position, eta_s, now_s) == news
