"""What tokens cost: the price list, and integer arithmetic on it. No I/O but reading the files.

Money is an integer: nano-dollars (1e-9 USD) wherever it is added up or kept, pico-dollars a token
inside a price, since a dollar for a million tokens is a micro-dollar for one and cached tokens cost
fractions of that. An answer's cost is rounded once, half up, to whole nano-dollars; sums of those
are exact. A price in another currency becomes dollars once, when the list is read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal, Protocol, final

import attrs
import msgspec

from .. import config
from ..errors import ConfigurationError

NANO: Final = 10**9
"""Nano-dollars in a dollar."""
_PICO_PER_NANO: Final = 1_000
_BATCH_UNIT: Final = 1_000
"""A batch factor is kept in thousandths."""
USD: Final = "USD"

CacheLife = Literal["5m", "1h"]


class TokenUsage(Protocol):
    """Tokens of an answer as the provider counted them; no token is in two fields."""

    @property
    def input(self) -> int:
        """Neither read from nor written to the provider's cache."""

    @property
    def cache_write(self) -> int:
        """Written to it."""

    @property
    def cache_read(self) -> int:
        """Read from it."""

    @property
    def output(self) -> int:
        """Generated."""


@attrs.frozen(kw_only=True)
class TokenPrice:
    """What a model's tokens cost: pico-dollars each."""

    input: int
    cache_write_5m: int
    cache_write_1h: int
    cache_read: int
    output: int
    batch_thousandths: int
    """Of these prices, in a batch."""
    cacheable_tokens_min: int
    """A shorter prefix is not cached."""

    def nano(self, usage: TokenUsage, *, cache: CacheLife = "5m", batch: bool = False) -> int:
        """The cost of one answer in nano-dollars, rounded half up.

        Args:
          usage: what the provider counted.
          cache: how long what was written to its cache lives there.
          batch: it was asked for in a batch.
        """
        write = self.cache_write_5m if cache == "5m" else self.cache_write_1h
        pico = (
            usage.input * self.input
            + usage.cache_write * write
            + usage.cache_read * self.cache_read
            + usage.output * self.output
        )
        thousandths = pico * (self.batch_thousandths if batch else _BATCH_UNIT)
        unit = _PICO_PER_NANO * _BATCH_UNIT
        return (2 * thousandths + unit) // (2 * unit)


@final
class Prices:
    """The price list; made by `load_prices`."""

    def __init__(
        self,
        listed: dict[str, TokenPrice],
        of_providers: dict[str, TokenPrice],
        rates: dict[str, Decimal],
    ) -> None:
        """From names of models, names of providers, and currencies."""
        self._exact = {name: price for name, price in listed.items() if not name.endswith("*")}
        self._prefixes = sorted(
            ((name[:-1], price) for name, price in listed.items() if name.endswith("*")),
            key=lambda each: -len(each[0]),
        )
        self._of_providers = of_providers
        self._rates = rates
        self._found: dict[tuple[str, str], TokenPrice | None] = {}  # as many as are booked on

    def find(self, *, provider: str, model: str) -> TokenPrice | None:
        """The price of a model at a provider: its own, an exact name, else the longest prefix.

        None where nobody knows: its cost is unknown then, which is not nothing.
        """
        key = (provider, model)
        if key not in self._found:
            self._found[key] = self._of_providers.get(provider) or self._listed(model)
        return self._found[key]

    def rate(self, currency: str) -> Decimal:
        """How much of a currency one US dollar is.

        Raises:
          ConfigurationError: nobody has said.
        """
        if currency not in self._rates:
            raise ConfigurationError(
                f"no rate is known for {currency}: set it in [prices.rate], as so much for a dollar"
            )
        return self._rates[currency]

    def to_nano(self, amount: Decimal, currency: str) -> int:
        """An amount of money in nano-dollars, rounded half up. Raises like `rate`."""
        return int((amount / self.rate(currency) * NANO).to_integral_value(ROUND_HALF_UP))

    def from_nano(self, nano: int, currency: str) -> Decimal:
        """Nano-dollars as an amount of a currency, not rounded. Raises like `rate`."""
        return Decimal(nano) / NANO * self.rate(currency)

    def unpriced(self, providers: Iterable[config.Provider]) -> list[config.Provider]:
        """Those whose model has no price."""
        return [
            provider
            for provider in providers
            if self.find(provider=provider.name, model=provider.model) is None
        ]

    def _listed(self, model: str) -> TokenPrice | None:
        if model in self._exact:
            return self._exact[model]
        return next((price for prefix, price in self._prefixes if model.startswith(prefix)), None)


def load_prices(settings: config.Settings) -> Prices:
    """The list that comes with coach, under `prices.file`, under `[prices]`, under the providers'.

    Blocks on two small files: for start-up, not for a running server.

    Raises:
      ConfigurationError: a file that cannot be read or is no price list, or a currency that has no
        rate; one line.
    """
    layers = [_read(files(__package__) / "prices.toml")]
    if settings.prices.file is not None:
        layers.append(_read(Path(settings.prices.file)))
    layers.append(settings.prices)
    rates = {USD: Decimal(1)}
    listed: dict[str, TokenPrice] = {}
    for layer in layers:
        rates |= layer.rate
    for layer in layers:
        for price in layer.price:
            listed |= dict.fromkeys(price.models, _token_price(price, rates))
    of_providers = {
        provider.name: _token_price(provider.price, rates)
        for provider in settings.provider
        if provider.price is not None
    }
    prices = Prices(listed, of_providers, rates)
    prices.rate(settings.costs.currency)
    return prices


def _read(path: Path | Traversable) -> config.Prices:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
    except OSError as error:
        raise ConfigurationError(f"prices.file: cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"prices.file: {path} is not TOML: {error}") from error
    try:
        return msgspec.convert(data, config.Prices)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"prices.file: {path}: {error}") from error


def _token_price(price: config.Price, rates: dict[str, Decimal]) -> TokenPrice:
    if price.currency not in rates:
        raise ConfigurationError(
            f"prices: no rate is known for {price.currency}: set it in [prices.rate]"
        )

    def pico(amount: Decimal) -> int:
        in_dollars = amount / rates[price.currency]
        return int((in_dollars * 1_000_000).to_integral_value(ROUND_HALF_UP))

    write_5m = price.input if price.cache_write_5m is None else price.cache_write_5m
    write_1h = write_5m if price.cache_write_1h is None else price.cache_write_1h
    return TokenPrice(
        input=pico(price.input),
        cache_write_5m=pico(write_5m),
        cache_write_1h=pico(write_1h),
        cache_read=pico(price.input if price.cache_read is None else price.cache_read),
        output=pico(price.output),
        batch_thousandths=int(price.batch_factor * _BATCH_UNIT),
        cacheable_tokens_min=price.cacheable_tokens_min,
    )
