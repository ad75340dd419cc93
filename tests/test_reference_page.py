"""docs/reference.md names everything an operator or integrator can meet."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest
from prometheus_client import REGISTRY

from coach import config
from coach.cli import cli
from coach.errors import Code
from coach.ops import metrics

PAGE = (Path(__file__).parent.parent / "docs" / "reference.md").read_text(encoding="utf-8")
SECTIONS = [
    config.Settings,
    *(getattr(config, name) for name in ("Server", "Redis", "Auth", "Limits", "Provider", "Quota")),
    *(
        getattr(config, name)
        for name in (
            "Pool",
            "Budget",
            "Failover",
            "Grading",
            "Webhooks",
            "Webhook",
            "Rollout",
            "Traces",
            "Log",
            "Session",
        )
    ),
    config.Webhooks,
    config.Webhook,
]


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_setting_is_explained(section: type[msgspec.Struct]) -> None:
    for field in msgspec.structs.fields(section):
        is_section = isinstance(field.type, type) and issubclass(field.type, config.Section)
        wanted = f"[{field.name}]" if is_section and field.name != "quota" else f"`{field.name}`"
        assert wanted in PAGE or f"[[{field.name}]]" in PAGE


def test_every_metric_is_explained() -> None:
    assert metrics.CONTENT_TYPE  # imported, so they are registered
    ours = {
        collected.name + ("_total" if collected.type == "counter" else "")
        for collected in REGISTRY.collect()
        if collected.name.startswith("coach_")
    }
    assert len(ours) > 10
    assert {name for name in ours if f"`{name}`" not in PAGE} == set()


def test_every_error_code_is_explained() -> None:
    assert {code for code in get_args(Code) if f"| `{code}` |" not in PAGE} == set()


def test_every_command_is_explained() -> None:
    names = [
        command.name or command.callback.__name__
        for command in cli.registered_commands
        if command.callback is not None and not command.hidden
    ]
    assert {name for name in names if f"`coach {name}`" not in PAGE} == set()
    for group in cli.registered_groups:
        assert group.typer_instance is not None
        for command in group.typer_instance.registered_commands:
            assert command.callback is not None
            name = command.name or command.callback.__name__
            alone, of_group = f"`coach {group.name} {name}`", f"`coach {group.name}`"
            assert alone in PAGE or (of_group in PAGE and f"`{name}" in PAGE), alone
