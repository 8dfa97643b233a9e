"""`mssync train`: one command a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    ConfigOption,
    DataOption,
    OverridesArgument,
    RunOption,
    check_prepared,
    finished,
    need,
    train_app,
)

MinutesOption = Annotated[float | None, typer.Option(metavar="F", help="Stop after F minutes.", show_default=False)]


@train_app.command("reenactor")
def train_reenactor(
    data: DataOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the compact reenactment model."""
    settings = training_config(config, overrides, data)
    from mssync.training.reenactor import train

    train(settings, data, run, max_minutes)


@train_app.command("syncer")
def train_syncer(
    level: Annotated[
        int,
        typer.Option(metavar="N", min=1, max=4, help="Level of the pyramid, 1 (finest) to 4.", show_default=False),
    ],
    data: DataOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the syncer of one level of the pyramid."""
    settings = training_config(config, overrides, data)
    from mssync.training.syncer import train

    train(settings, data, run, level, max_minutes)


@train_app.command("generator")
def train_generator(
    data: DataOption,
    run: RunOption,
    syncers: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder with syncer1 … syncer4.safetensors.", show_default=False),
    ],
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the generator and its discriminators, under the frozen syncers."""
    settings = training_config(config, overrides, data)
    from mssync.training.generator import train

    train(settings, data, syncers, run, max_minutes)


@train_app.command("meter")
def train_meter(
    data: DataOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the sync meter, which `mssync score` measures with."""
    settings = training_config(config, overrides, data)
    from mssync.training.meter import train

    finished(train(settings, data, run, max_minutes), "the sync meter")


def training_config(config: str, overrides: list[str] | None, data: Path) -> Any:
    check_prepared(data)
    need("lightning", "train")
    from mssync.config import load_config

    return load_config(config, overrides or [])
