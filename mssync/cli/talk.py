"""Commands that make talking videos."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mssync.cli.common import (
    DEMO_SPEECH,
    TALKING,
    ModelOption,
    VideoArgument,
    VideoOutput,
    app,
    check_files,
    finished,
    need,
    stderr_console,
    waiting,
)
from mssync.errors import InputError, written_whole

if TYPE_CHECKING:
    from mssync.animate import Frames, Progress
    from mssync.signing import Signer

# Arguments and options that several commands share.

ImageArgument = Annotated[
    Path,
    typer.Argument(metavar="IMAGE", help="A picture with a face (jpg, png, webp, …).", show_default=False),
]

SizeOption = Annotated[
    int, typer.Option(metavar="N", help="Width and height of the video in pixels: even, 64 to 2160.")
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

DeviceOption = Annotated[str, typer.Option(metavar="NAME", help="Where to compute: cpu, cuda, mps, or auto.")]

PrecisionOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Draw in float32 or bfloat16; auto: what this processor is made for. MSSYNC_PRECISION sets it, too.",
        show_default="auto",
    ),
]

SeedOption = Annotated[
    int, typer.Option(metavar="N", help="Of turns of the head, blinks and where eyes look: another take.")
]

SaveMotionOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE.npz", help="Also write the motion, for `mssync render`.", show_default=False),
]


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
    seed: SeedOption = 0,
    size: SizeOption = 512,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    save_motion: SaveMotionOption = None,
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Make a portrait speak: a picture and a recording in, a talking video out."""
    check_files([image, audio], [(output, ".mp4"), (save_motion, ".npz")])
    signer = load_signer(sign, key)
    from mssync.animate import check_options, load

    check_options(head_motion=head_motion, expression=expression, smooth=smooth, seed=seed, size=size)
    talker = load(model, device, precision=precision)
    with waiting("listening"):
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
    write_frames(output, frames, save_motion, badge, signer)


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
    size: SizeOption = 512,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    save_motion: SaveMotionOption = None,
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Move a portrait like the face in a video; the video's sound comes along."""
    check_files([image, video], [(output, ".mp4"), (save_motion, ".npz")])
    signer = load_signer(sign, key)
    from mssync.animate import check_options, load

    check_options(size=size)
    talker = load(model, device, precision=precision)
    with progress_bar("watching the driving video") as progress:
        frames = talker.reenact(
            image,
            video,
            absolute=absolute,
            best_frame=best_frame,
            size=size,
            paste_back=paste_back,
            progress=progress,
        )
    write_frames(output, frames, save_motion, badge, signer)


class MotionFormat(str, Enum):
    """What `mssync motion` writes."""

    face = "face-1"
    keypoints = "keypoints"
    arkit = "arkit"


@app.command(rich_help_panel=TALKING)
def motion(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="VIDEO|AUDIO", help="A video of one person, or with arkit a recording.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="A .npz; with arkit a .csv.", show_default=False),
    ],
    kind: Annotated[
        MotionFormat | None,
        typer.Option(
            "--format",
            help="A motion file of the space face-1, or of the model's own keypoints; or ARKit's 52 blendshapes and "
            "turns of head and eyes, as Live Link Face writes them, for a 3-D avatar.",
            show_default="face-1, where the model draws it",
        ),
    ] = None,
    model: ModelOption = "compact",
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
) -> None:
    """Read the motion of the face in a video into a file; or let a recording move a 3-D avatar (--format arkit)."""
    arkit = kind is MotionFormat.arkit
    check_files([source], [(output, ".csv" if arkit else ".npz")])
    from mssync.animate import load
    from mssync.blendshapes import save_blendshapes
    from mssync.face1 import SPACE
    from mssync.motion import save_motion
    from mssync.video import VideoReader, has_picture

    seen = has_picture(source)
    if not (seen or arkit):
        raise InputError(
            f"{source} shows nobody; a recording moves a face with --format arkit, or with `mssync animate`"
        )
    talker = load(model, device)
    space = talker.reenactor.space if kind is MotionFormat.keypoints else SPACE if kind else talker.spaces[-1]
    if seen:
        with progress_bar("watching the video") as progress:
            values = talker.motion(source, space=space, progress=progress)
    else:
        values = talker.speak(source, seed=seed)
    if arkit:
        save_blendshapes(output, values)
    else:
        reader = VideoReader(source)
        save_motion(output, values, space=space, source_size=(reader.height, reader.width))
    finished(output, f"{len(values)} frames of motion")


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
    size: SizeOption = 512,
    paste_back: PasteOption = False,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
    badge: BadgeOption = False,
    sign: SignOption = None,
    key: KeyOption = None,
) -> None:
    """Draw a portrait under the motion of a file, as it is."""
    check_files([image, motion, audio], [(output, ".mp4")])
    signer = load_signer(sign, key)
    from mssync.animate import check_options, load
    from mssync.soundtrack import Sound

    check_options(size=size)
    frames = load(model, device, precision=precision).render(image, motion, size=size, paste_back=paste_back)
    frames.audio = None if audio is None else Sound.read(audio)
    write_frames(output, frames, badge=badge, signer=signer)


@app.command(rich_help_panel=TALKING)
def demo(
    output: VideoOutput,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Write a demo video: a public-domain portrait (Eileen Collins, NASA) speaks a sentence."""
    check_files([DEMO_SPEECH], [(output, ".mp4")])
    need("skimage", "demo")
    from skimage.data import astronaut

    from mssync.animate import load

    with waiting("listening"):
        frames = load(model, device, precision=precision).animate(astronaut(), DEMO_SPEECH)
    write_frames(output, frames)


@app.command(rich_help_panel=TALKING)
def serve(
    portrait: Annotated[
        Path | None,
        typer.Option(metavar="IMAGE", help="Who speaks live for visitors without a picture.", show_default=False),
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
    sessions: Annotated[int, typer.Option(metavar="N", min=1, help="How many may speak live at once.")] = 4,
    jobs: Annotated[int, typer.Option(metavar="N", min=1, help="How many videos are made at once.")] = 2,
    live_size: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="Pixels of live frames' sides; else 512 where the machine is quick enough, or 384."
        ),
    ] = None,
    model: ModelOption = "compact",
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Open the studio: a page that animates, reenacts, scores and talks live."""
    check_files([portrait], [])
    for module in ("gradio", "starlette", "uvicorn", "websockets"):
        need(module, "app")
    from mssync.animate import load
    from mssync.app.server import address, local
    from mssync.app.server import serve as run
    from mssync.app.studio import create_studio

    if token is None and not local(host):
        import secrets

        token = secrets.token_urlsafe(16)
    with waiting("loading"):
        talker = load(model, device, live=True, precision=precision)
        access: Any = {"token": token, "sessions": sessions, "jobs": jobs, "live_size": live_size}
        studio = create_studio(talker, portrait, model=model, device=device, **access)
    typer.echo(f"open {address(host, port, token)} (Ctrl-C ends)")
    run(studio, host, port)


def load_signer(certificate: Path | None, key: Path | None) -> Signer | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InputError("--sign and --key go together: a certificate and its private key")
    from mssync.signing import Signer

    return Signer(certificate, key)


def write_frames(
    output: Path,
    frames: Frames,
    save_motion: Path | None = None,
    badge: bool = False,
    signer: Signer | None = None,
) -> None:
    """Write the video, then the motion where it is asked for: a run that fails leaves neither."""
    from mssync.video import FPS

    with ExitStack() as both:
        if save_motion is not None:
            frames.save_motion(both.enter_context(written_whole(save_motion, ".npz")))
        progress = both.enter_context(progress_bar("drawing"))
        count = frames.save(output, badge=badge, signer=signer, progress=progress)
    finished(output, f"{count / FPS:.2f} s, {count} frames")


@contextmanager
def progress_bar(label: str) -> Iterator[Progress | None]:
    """What tells a bar on the terminal how far something is; None where nobody watches."""
    from rich.progress import Progress as Bar

    console = stderr_console()
    if not console.is_terminal:
        yield None
        return
    with Bar(console=console, transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
