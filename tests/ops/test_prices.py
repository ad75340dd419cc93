"""What tokens cost: examples worked out by hand from the providers' public price pages."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coach import config
from coach.errors import ConfigurationError
from coach.ops import Prices, load_prices
from coach.providers import Usage

USD = 10**9
"""In nano-dollars."""


def load(tmp_path: Path, text: str) -> Prices:
    path = tmp_path / "coach.toml"
    path.write_text(text)
    return load_prices(config.load(path, {}))


@pytest.mark.parametrize(
    ("model", "usage", "options", "nano"),
    [
        # 1 MTok each of input $3, 5m writes $3.75, reads $0.30, output $15
        ("claude-sonnet-4-5-20250929", (10**6,) * 4, {}, 22_050_000_000),
        # 812 * $3 + 2,000 * $6 (1h write) + 31,000 * $0.30 + 412 * $15, over a million:
        # 2,436 + 12,000 + 9,300 + 6,180 = 29,916 micro-dollars
        ("claude-sonnet-4-5", (812, 2_000, 31_000, 412), {"cache": "1h"}, 29_916_000),
        # the same in a batch: half
        (
            "claude-sonnet-4-5",
            (812, 2_000, 31_000, 412),
            {"cache": "1h", "batch": True},
            14_958_000,
        ),
        # 1,000 * $4 + 500 * $20 + 10,000 * $0.20 = 4,000 + 10,000 + 2,000 micro-dollars
        ("claude-opus-5-5", (1_000, 0, 10_000, 500), {}, 16_000_000),
        # 3 * $0.01 (read): 0.03 micro-dollars
        ("claude-haiku-5-5", (0, 0, 3, 0), {}, 30),
        # 1 * $0.005 in a batch: 2.5 nano-dollars, rounded half up
        ("gpt-5-nano", (0, 0, 1, 0), {"batch": True}, 3),
        # 1,200 * $0.25 + 800 * $0.025 + 350 * $2 = 300 + 20 + 700 micro-dollars
        ("gpt-5-mini-2025-08-07", (1_200, 0, 800, 350), {}, 1_020_000),
        # OpenAI's older models do not charge for writing: as input, $2
        ("gpt-4.1", (0, 1_000, 0, 0), {}, 2_000_000),
        ("smollm2-135m-instruct", (1_000, 0, 0, 1_000), {}, 0),
    ],
)
def test_an_answer_costs_what_the_price_page_says(
    model: str, usage: tuple[int, int, int, int], options: dict[str, object], nano: int
) -> None:
    price = load_prices(config.Settings()).find(provider="p", model=model)
    assert price is not None
    assert price.nano(Usage(*usage), **options) == nano  # type: ignore[arg-type]


@given(st.tuples(*[st.integers(0, 10**7)] * 4), st.booleans())
def test_rounding_is_once_and_by_half_a_nano_dollar_at_most(
    counts: tuple[int, int, int, int], batch: bool
) -> None:
    price = load_prices(config.Settings()).find(provider="p", model="gpt-5-nano")
    assert price is not None
    in_pico = zip(counts, (50_000, 50_000, 5_000, 400_000), strict=True)
    exact = Decimal(sum(count * each for count, each in in_pico)) / 1_000 / (2 if batch else 1)
    assert abs(price.nano(Usage(*counts), batch=batch) - exact) <= Decimal("0.5")


def test_a_name_finds_its_provider_s_price_then_its_own_then_the_longest_beginning(
    tmp_path: Path,
) -> None:
    prices = load(
        tmp_path,
        """
        [[prices.price]]
        models = ["m*"]
        input = 1
        output = 1
        [[prices.price]]
        models = ["model-a*"]
        input = 2
        output = 2
        [[prices.price]]
        models = ["model-a-1"]
        input = 3
        output = 3
        [[provider]]
        name = "own"
        base_url = "https://127.0.0.1:1"
        model = "model-a-1"
        api_key = "k"
        price = {input = 4, output = 4}
        """,
    )
    for provider, model, dollars in [
        ("p", "model-a-1", 3),
        ("p", "model-a-12", 2),
        ("p", "model-b", 1),
        ("own", "whatever", 4),
    ]:
        price = prices.find(provider=provider, model=model)
        assert price is not None
        assert price.nano(Usage(10**6, 0, 0, 0)) == dollars * USD
    assert prices.find(provider="p", model="another") is None


def test_the_operator_s_list_goes_before_the_file_and_the_file_before_coach_s(
    tmp_path: Path,
) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(
        'as_of = 2026-01-01\n[rate]\nEUR = 0.5\n[[price]]\nmodels = ["gpt-4o", "gpt-4.1"]\n'
        'currency = "EUR"\ninput = 0.1\noutput = 7\n'
    )
    text = '[[prices.price]]\nmodels = ["gpt-4o"]\ninput = 9\noutput = 9\n'
    prices = load(tmp_path, f'[prices]\nfile = "{file}"\n{text}')
    of_coach = USD * 15 // 100
    one = Usage(10**6, 0, 0, 0)
    for model, nano in [("gpt-4o", 9 * USD), ("gpt-4.1", USD // 5), ("gpt-4o-mini", of_coach)]:
        price = prices.find(provider="p", model=model)
        assert price is not None
        assert price.nano(one) == nano
    assert prices.from_nano(3 * USD, "EUR") == Decimal("1.5")
    assert prices.to_nano(Decimal("1.5"), "EUR") == 3 * USD


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[prices]\nfile = 'none.toml'", "prices.file: cannot read none.toml"),
        ("[[prices.price]]\ninput = 1\noutput = 1", "it needs models"),
        ("[[prices.price]]\nmodels = ['m']\ninput = -1\noutput = 1", "input: a price is 0 to"),
        ("[[prices.price]]\nmodels = ['m']\ninput = 1", "output"),
        ("[[prices.price]]\nmodels = ['m']\ninput = 1\noutput = 1\ncurrency = 'XTS'", "XTS"),
        ("[prices.rate]\nEUR = 0", "rate.EUR"),
        ("[costs]\ncurrency = 'XTS'", "no rate is known for XTS"),
        ("[costs.budget.a]\nsoft = 3\nhard = 2", "soft is above hard"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    tmp_path: Path, text: str, expected: str
) -> None:
    with pytest.raises(ConfigurationError, match=expected) as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_a_provider_whose_model_has_no_price_is_named() -> None:
    def provider(name: str, model: str) -> config.Provider:
        return config.Provider(name=name, base_url="https://x", model=model, api_key="k")

    known, unknown = provider("a", "claude-opus-5-5"), provider("b", "claude-opus-9")
    assert load_prices(config.Settings()).unpriced([known, unknown]) == [unknown]
