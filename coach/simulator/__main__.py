"""`python -m coach.simulator`: a provider on this machine, for demos, tests and measurements."""

from __future__ import annotations

import argparse
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, get_type_hints

import msgspec
import trio

from ..errors import ConfigurationError
from .completions import Completions
from .dialect import Dialect
from .faults import FAULTS, FaultName, Rule, rule_from_text
from .messages import Messages
from .provider import open_provider, spare_the_collector
from .settings import Settings

PORT_MAX: Final = 65_535
PROTOCOLS: Final[dict[str, type[Messages | Completions]]] = {
    "anthropic": Messages,
    "openai": Completions,
}


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    parser = _parser()
    options = vars(parser.parse_args(arguments))
    port, data_dir = options.pop("port"), Path(options.pop("data_dir"))
    faults = dict(options.pop("fault"))
    dialect = PROTOCOLS[options.pop("protocol")]()
    given = {name: value for name, value in options.items() if value is not None}
    try:
        settings = msgspec.convert(given, Settings, strict=False)
    except msgspec.ValidationError as error:
        what, _, field = str(error).rpartition(" - at `$.")
        parser.error(f"argument --{field.rstrip('`').replace('_', '-')}: {what}")
    try:
        trio.run(partial(_run, settings, faults, dialect, data_dir=data_dir, port=port))
    except ConfigurationError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


async def _run(
    settings: Settings,
    faults: dict[FaultName, Rule],
    dialect: Dialect,
    *,
    data_dir: Path,
    port: int,
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_provider(
            settings, faults, data_dir=data_dir, port=port, dialect=dialect
        ) as provider:
            spare_the_collector()
            sys.stdout.write(f"ready {provider.url}\n")
            sys.stdout.flush()
            await anext(signals)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the page of options."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"not a number between 0 and {PORT_MAX}: {text!r}")
    return int(text)


def _fault(text: str) -> tuple[FaultName, Rule]:
    try:
        return rule_from_text(text)
    except msgspec.ValidationError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m coach.simulator",
        description="Simulates an AI provider over HTTP/2 and TLS on this machine.",
        epilog="faults: " + "; ".join(f"{name}: {what}" for name, what in FAULTS.items()),
    )
    parser.add_argument(
        "--port", type=_port, metavar="N", default=0, help="0 (the default): a free one"
    )
    parser.add_argument(
        "--protocol",
        choices=PROTOCOLS,
        default="anthropic",
        help="Anthropic's Messages (the default) or OpenAI's Chat Completions",
    )
    parser.add_argument("--data-dir", default=".coach", help="where simulator-ca.pem is written")
    parser.add_argument(
        "--fault",
        type=_fault,
        action="append",
        default=[],
        metavar="NAME=P|NAME:N",
        help="a fault with a probability, or for the next N requests; may be repeated",
    )
    for field in msgspec.structs.fields(Settings):
        default = "" if field.default is None else f" (default {field.default})"
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", metavar="X", help=_meaning(field.name) + default
        )
    return parser


def _meaning(name: str) -> str:
    hint: Any = get_type_hints(Settings, include_extras=True)[name]
    return str(hint.__metadata__[-1])


if __name__ == "__main__":
    sys.exit(main())
