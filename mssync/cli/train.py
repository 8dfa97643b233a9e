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
from mssync.errors import InputError, input_file

SyncerDataOption = Annotated[
    Path,
    typer.Option(
        metavar="DIR|NPZ",
        help="Folder that `mssync preprocess` made, or an .npz file of your own motion.",
        show_default=False,
    ),
]

MinutesOption = Annotated[float | None, typer.Option(metavar="F", help="Stop after F minutes.", show_default=False)]


FramesOption = Annotated[
    Path, typer.Option("--data", metavar="DIR", help="Folder that `mssync frames` made.", show_default=False)
]
FoldersOption = Annotated[
    list[Path],
    typer.Option(
        "--data", metavar="DIR", help="Folders that `mssync frames` made, close and wide.", show_default=False
    ),
]


@train_app.command("mouth")
def train_mouth(
    data: FramesOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the painter of mouths, a part of the renderer."""
    _train_painter("mouth", data, run, config, max_minutes, overrides)


@train_app.command("eye")
def train_eye(
    data: FramesOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the painter of eyes, a part of the renderer."""
    _train_painter("eye", data, run, config, max_minutes, overrides)


def _train_painter(
    organ: str, data: Path, run: Path, config: str, max_minutes: float | None, overrides: list[str] | None
) -> None:
    settings = _frames_config(config, overrides, data)
    from mssync.training.painter import train

    finished(train(settings, data, run, organ, max_minutes), f"the painter of the {organ}")


@train_app.command("mesh")
def train_mesh(
    data: FramesOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the network that sees the mesh of a face."""
    settings = _frames_config(config, overrides, data)
    from mssync.training.perception import train_mesh

    finished(train_mesh(settings, data, run, max_minutes), "the mesh network")


@train_app.command("finder")
def train_finder(
    data: FoldersOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the network that finds faces."""
    settings = _frames_config(config, overrides, *data)
    from mssync.training.finder import train_finder

    finished(train_finder(settings, data, run, max_minutes), "the face detector")


@train_app.command("matte")
def train_matte(
    data: FoldersOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the matte network, a part of the renderer, on labels of scripts/label_mattes.py."""
    settings = _frames_config(config, overrides, *data)
    from mssync.training.matte import train

    finished(train(settings, data, run, max_minutes), "the matte network")


@train_app.command("residual")
def train_residual(
    data: FramesOption,
    run: RunOption,
    model: Annotated[
        str, typer.Option(metavar="FILE", help="The renderer whose matte and keypoints are used.")
    ] = "reenactor",
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the residual layer, a part of the renderer: how hair and body follow, and how light changes."""
    settings = _frames_config(config, overrides, data)
    from mssync.training.residual import train

    finished(train(settings, data, run, model, max_minutes), "the residual layer")


def _frames_config(config: str, overrides: list[str] | None, *data: Path) -> Any:
    for folder in data:
        if not folder.is_dir():
            raise InputError(f"{folder} is no folder of frames; make one with `mssync frames`")
    need("lightning", "train")
    from mssync.config import load_config

    return load_config(config, overrides or [])


@train_app.command("speech")
def train_speech(
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder that scripts/label_speech.py made.", show_default=False)
    ],
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the speech encoder, which tells what is said, on the labels of a teacher."""
    need("lightning", "train")
    from mssync.config import load_config
    from mssync.training.speech import train

    finished(train(load_config(config, overrides or []), data, run, max_minutes), "the speech encoder")


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
