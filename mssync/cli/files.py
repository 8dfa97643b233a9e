"""Commands about files: what they hold, data for training, benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mssync.cli.common import (
    DEMO_SPEECH,
    WORKSHOP,
    ConfigOption,
    ModelOption,
    app,
    check_files,
    check_prepared,
    finished,
    need,
    waiting,
    write_json,
)
from mssync.errors import input_file, written_whole

DataArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False),
]


# Files and training


@app.command(rich_help_panel=WORKSHOP)
def info(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A picture, recording, video, motion or model file.")],
) -> None:
    """Tell what a file holds."""
    from rich.console import Console
    from rich.table import Table

    input_file(file)
    about = {".npz": _about_motion, ".safetensors": _about_model}.get(file.suffix.lower(), _about_media)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in about(file).items():
        table.add_row(name, str(value))
    Console().print(table, highlight=False, markup=False)


@app.command(rich_help_panel=WORKSHOP)
def convert(
    checkpoint: Annotated[
        Path,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A public vox-256 or vox-adv-256 checkpoint (.pth.tar).",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE.safetensors", help="The file to write.", show_default=False),
    ],
) -> None:
    """Turn a public checkpoint of the first-order motion model into a model file."""
    check_files([checkpoint], [(output, ".safetensors")])
    from mssync.reenact.convert import convert_checkpoint

    with waiting("converting"):
        convert_checkpoint(checkpoint, output)
    finished(output, "use it with --model")


@app.command(rich_help_panel=WORKSHOP)
def preprocess(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE", help="Folders of videos or of a corpus, manifest.csv files, videos.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The prepared folder.", show_default=False)
    ],
    layout: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="manifest, hdtf, lrs2, voxceleb2 or folder; found out unless given.",
            show_default=False,
        ),
    ] = None,
    style: Annotated[
        str, typer.Option(metavar="NAME", help="fixed: one box a track, the head moves in it; centred: it follows.")
    ] = "fixed",
    val: Annotated[float, typer.Option(metavar="F", help="Share of people to validate on, where no list says.")] = 0.0,
    test: Annotated[float, typer.Option(metavar="F", help="Share of people to test on, where no list says.")] = 0.0,
    min_seconds: Annotated[float, typer.Option(metavar="F", min=0.2, help="Drop shorter tracks.")] = 2.0,
    min_face: Annotated[int, typer.Option(metavar="PX", min=1, help="Drop faces less high than this.")] = 48,
    min_sharpness: Annotated[
        float, typer.Option(metavar="F", min=0, help="Drop faces that are more blurred; see report.csv for values.")
    ] = 15.0,
    single: Annotated[
        bool, typer.Option("--single/--several", help="Drop faces beside another one that may be the speaker's.")
    ] = True,
    max_offset: Annotated[
        float | None,
        typer.Option(metavar="F", min=0, help="Drop tracks whose sound is more frames off.", show_default=False),
    ] = None,
    features: Annotated[str, typer.Option(metavar="NAME", help="Audio features: logfbank or mfcc.")] = "logfbank",
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="Also store the motion of this reenactor.", show_default=False),
    ] = None,
    per_shard: Annotated[int, typer.Option(metavar="N", help="Videos a shard.")] = 100,
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, help="Processes; one a core unless given.", show_default=False),
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Work on a Ray cluster: local, auto, or HOST:PORT.", show_default=False),
    ] = None,
) -> None:
    """Turn videos into shards for training: one clip for every face that can be followed, with landmarks and sound.

    A stopped run goes on when started again; report.csv tells what was dropped and why.
    """
    from mssync.data.prepare import Settings, prepare
    from mssync.data.tracks import Limits

    limits = Limits(min_seconds, min_face, min_sharpness, single, max_offset)
    settings = Settings(style, limits, features, model, layout, val, test, per_shard)
    _print_prepared(output, prepare(sources, output, settings, processes=workers, ray=ray))


def _print_prepared(output: Path, totals: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "", "clips", "minutes", "people", title=f"{output}: {totals['sources']} sources", title_justify="left"
    )
    for column in table.columns[1:]:
        column.justify = "right"
    for split, figures in totals["splits"].items():
        table.add_row(split, str(figures["clips"]), f"{figures['seconds'] / 60:.1f}", str(figures["identities"]))
    for reason, count in totals["dropped"].items():
        table.add_row(f"dropped: {reason}", str(count), "", "")
    Console().print(table)


@app.command(rich_help_panel=WORKSHOP)
def frames(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="SOURCE…", help="As `mssync preprocess` takes them; a manifest may list stills, too."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to fill.")],
    count: Annotated[int, typer.Option("--frames", metavar="N", min=2, help="Frames of a clip, at most.")] = 50,
    clips: Annotated[int, typer.Option(metavar="N", min=1, help="Clips of a person, at most.")] = 10,
    teacher: Annotated[
        bool,
        typer.Option("--teacher", help="Meshes by MediaPipe (extra teachers), to learn from."),
    ] = False,
    around: Annotated[
        float, typer.Option(metavar="F", min=1.0, help="Store F sides of the square of head and shoulders.")
    ] = 1.0,
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processes; one a core unless given.", show_default=False)
    ] = None,
) -> None:
    """Store single frames in their full size with face meshes: what `mssync train mouth`, eye and matte learn from.

    A stopped run goes on when started again.
    """
    from mssync.data.frames import Settings, collect

    stored = collect(sources, output, Settings(count, clips, teacher, around), workers)
    finished(output, f"{stored} clips and stills")


@app.command(rich_help_panel=WORKSHOP)
def extract(
    data: DataArgument,
    model: ModelOption = "compact",
    config: ConfigOption = "compact",
) -> None:
    """Add every clip's motion and audio features to a prepared folder, for training syncers and generator."""
    check_prepared(data)
    from mssync.animate import load
    from mssync.config import load_config
    from mssync.data.sequences import extract as add_motion

    settings = load_config(config)
    add_motion(data, load(model).reenactor, settings.audio.kind)
    finished(data, "motion added")


@app.command(rich_help_panel=WORKSHOP)
def bench(
    sections: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION",
            help="startup, animation, processors, drawing, generation, training, live, limits; or all.",
        ),
    ] = None,
    image: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="A portrait; the demo's unless given.", show_default=False)
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also time a checkout of public MS-Sync or FOMM code.", show_default=False),
    ] = None,
    minutes: Annotated[float, typer.Option(metavar="F", min=0, help="Also watch a live session of F minutes.")] = 0.0,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="The figures, for machines.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(metavar="FILE.md", help="The table, for people.", show_default=False)
    ] = None,
) -> None:
    """Measure how fast everything is on this machine. Close what else runs: only ratios bear a busy machine."""
    check_files([image], [(json_file, ".json"), (markdown, ".md")])
    from mssync.audio import load_audio
    from mssync.bench import Bench, as_json, as_markdown, run
    from mssync.pictures import read_image

    if image is None:
        need("skimage", "demo")
        from skimage.data import astronaut
    picture = astronaut() if image is None else read_image(image)
    figures = []
    for figure in run(Bench(picture, load_audio(DEMO_SPEECH), reference, minutes), sections or []):
        figures.append(figure)
        typer.echo(f"{figure.section:10}  {figure.name}: {figure.value:.4g} {figure.unit}  {figure.goal}".rstrip())
    if json_file is not None:
        write_json(json_file, as_json(figures))
    if markdown is not None:
        with written_whole(markdown, ".md") as temporary:
            temporary.write_text(as_markdown(figures), encoding="utf-8")


# What `mssync info` tells


def _about_media(path: Path) -> dict[str, Any]:
    from mssync.video import probe

    media = probe(path)
    kinds: list[str] = [media.kind]
    if media.format is not None:
        kinds += [media.format] + [f"{media.frames} frames"] * (media.frames != 1)
    rows: dict[str, Any] = {"kind": ", ".join(kinds)}
    if media.width is not None:
        rows["size"] = f"{media.width} × {media.height}"
    if media.fps is not None:
        rows["frames"] = f"{media.frames} at {media.fps:.6g} a second"
    if media.seconds is not None:
        rows["length"] = f"{media.seconds:.2f} s"
    if media.sample_rate is not None:
        channels = "mono" if media.channels == 1 else f"{media.channels} channels"
        rows["sound"] = f"{media.sample_rate} Hz, {channels}"
    elif media.kind == "video":
        rows["sound"] = "none"
    if media.provenance is not None:
        rows["generated"] = media.provenance.words()
        rows["source type"] = media.provenance.source_type or "not told"
        rows["marked in"] = ", ".join(media.provenance.marks)
    elif media.kind == "video":
        rows["generated"] = "not marked as made by MS-Sync"
    if media.kind == "video":
        from mssync.signing import read_signature

        signature = read_signature(path)
        if signature is not None:
            rows["signed (C2PA)"] = signature if isinstance(signature, str) else signature.words()
    return rows


def _about_motion(path: Path) -> dict[str, Any]:
    from mssync.motion import FPS, load_motion

    loaded = load_motion(path)
    height, width = loaded.source_size
    return {
        "kind": "motion",
        "frames": f"{len(loaded.motion)} at {FPS} a second",
        "length": f"{len(loaded.motion) / FPS:.2f} s",
        "space": loaded.space,
        "source": f"{width} × {height}",
    }


def _about_model(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    from mssync.weights import read_metadata

    metadata = read_metadata(path)
    with safe_open(path, "numpy") as file:
        slices = [file.get_slice(name) for name in file.keys()]  # noqa: SIM118 (no dictionary)
        types = sorted({tensor.get_dtype() for tensor in slices})
        count = sum(_product(tensor.get_shape()) for tensor in slices)
    return {
        "kind": f"model: {metadata['kind']}",
        "numbers": f"{count / 1e6:.2f} million ({', '.join(types)})",
        **{f"config {name}": value for name, value in metadata["config"].items()},
        **{f"training {name}": value for name, value in metadata["training"].items()},
    }


def _product(shape: list[int]) -> int:
    result = 1
    for side in shape:
        result *= side
    return result
