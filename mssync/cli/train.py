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
from mssync.errors import input_file

SyncerDataOption = Annotated[
    Path,
    typer.Option(
        metavar="DIR|NPZ",
        help="Folder that `mssync preprocess` made, or an .npz file of your own motion.",
        show_default=False,
    ),
]

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
    data: SyncerDataOption,
    run: RunOption,
    level: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            max=4,
            help="Only this level of the pyramid, 1 (finest) to 4; all four unless given.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the syncers of the pyramid, on prepared clips or on motion of your own."""
    settings = training_config(config, overrides, data, own=True)
    from mssync.training.syncer import train, train_pyramid

    if level is None:
        train_pyramid(settings, data, run, max_minutes)
    else:
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


def training_config(config: str, overrides: list[str] | None, data: Path, own: bool = False) -> Any:
    """The configuration, after a check of the data: a prepared folder or, with `own`, a file."""
    if own and (data.is_file() or data.suffix == ".npz"):
        input_file(data)
    else:
        check_prepared(data)
    need("lightning", "train")
    from mssync.config import load_config

    return load_config(config, overrides or [])
