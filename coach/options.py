"""What the commands of the command line have in common: where the settings are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from . import config

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file (TOML); else $COACH_CONFIG, else ./coach.toml."),
]
DataDirOption = Annotated[
    Path | None, typer.Option("--data-dir", help="Folder for the embedded Redis, keys and logs.")
]


def load(path: Path | None, data_dir: Path | None = None) -> config.Settings:
    """Read the settings, and hand what the command line said on to child processes.

    Raises:
      ConfigurationError: see `config.load`.
    """
    if path is None and "COACH_CONFIG" not in os.environ and Path("coach.toml").is_file():
        path = Path("coach.toml")
    if path is not None:
        os.environ["COACH_CONFIG"] = str(path.absolute())
    if data_dir is not None:
        os.environ["COACH_DATA_DIR"] = str(data_dir.absolute())
    return config.load(config.path_from_environment())
