"""What grading again may cost: by the first grade where there is one, else by the text."""

from __future__ import annotations

from decimal import Decimal

import attrs
import pytest

from coach import config
from coach.errors import ConfigurationError
from coach.grading import OUTPUT_TOKENS_USUAL, Chosen, Grade, Usage, load_rubric
from coach.ops import load_prices
from coach.second_grades import estimate_regrade

GRADE = Grade(
    score=70,
    criteria=(),
    judges=2,
    degraded=False,
    feedback="",
    usage=Usage(input=201, cache_read=2_000, output=100),
)


def provider(name: str, price: config.Price | None) -> config.Provider:
    return config.Provider(
        name=name, base_url="https://x.test", model=f"m-{name}", api_key="k", price=price
    )


def test_each_seat_has_its_price_and_each_essay_what_its_judges_used() -> None:
    dear = config.Price(input=Decimal(10), cache_read=Decimal(1), output=Decimal(100))
    settings = config.Settings(
        provider=(provider("a", dear), provider("b", None)), grading=config.Grading(judges=3)
    )
    prices, rubric = load_prices(settings), load_rubric()
    graded = Chosen(id="s1", bytes=1_000, grade=GRADE)
    found = estimate_regrade([graded], settings, rubric, prices)
    assert (found.essays, found.answers, found.measured) == (1, 3, 1)
    assert (found.input, found.output) == (3 * (101 + 1_000), 3 * 50)
    # of the three seats of a fresh panel the second is at the first provider
    assert found.nano == 101 * 10_000 + 1_000 * 1_000 + 50 * 100_000
    assert found.unpriced == ("b",)

    unknown = attrs.evolve(graded, grade=None)
    guessed = estimate_regrade([graded, unknown], settings, rubric, prices)
    assert guessed.measured == 1
    assert guessed.output - found.output == 3 * OUTPUT_TOKENS_USUAL
    with pytest.raises(ConfigurationError, match="nobody would be asked"):
        estimate_regrade([graded], config.Settings(), rubric, prices)
    longer = estimate_regrade([attrs.evolve(unknown, bytes=8_000)], settings, rubric, prices)
    assert longer.input > guessed.input - found.input + 3 * 1_900
    assert longer.as_json(prices, "USD")["cost"] == f"{longer.nano / 1e9:.4f}"
