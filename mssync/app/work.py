"""What the studio's jobs do, and the process that does them: one job at a time, ended from outside at any time.

A job is a function of the tools (models, loaded once a process), a folder of its own for what it makes, a function
that tells how far it is, and what the visitor gave. It returns what is sent back, JSON with paths in that folder.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from multiprocessing import connection, parent_process
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mssync.errors import InputError, input_file

if TYPE_CHECKING:
    from mssync.animate import Frames, Pipeline, Portrait
    from mssync.meter import SyncMeter

MAX_PIXELS = 50_000_000  # of a picture: any camera's; decoded it takes 150 MB
MAX_FRAME = 3840 * 2160  # pixels of a video's frame: 4K
MAX_SECONDS = 300.0  # of speech and of videos

Tell = Callable[[int, int, str], None]  # done, of (0: unknown), what is being done

ASSETS = Path(__file__).parent.parent / "assets"
DEMO_PORTRAIT, DEMO_SPEECH = ASSETS / "demo_portrait.jpg", ASSETS / "demo_speech.ogg"
DEMO_LATE_MS = 200.0  # by how much the sound of the example for the meter is late


@dataclass
class Tools:
    """The models of one process, loaded when they are first used."""

    model: str
    device: str
    precision: str

    @cached_property
    def talker(self) -> Pipeline:
        from mssync.animate import load

        return load(self.model, self.device, precision=self.precision)

    @cached_property
    def meter(self) -> SyncMeter:
        from mssync.meter import SyncMeter

        return SyncMeter.load()


# Jobs


def animate(
    tools: Tools,
    folder: Path,
    tell: Tell,
    *,
    picture: str,
    speech: str,
    head_motion: float,
    expression: float,
    smooth: float,
    seed: int,
    paste_back: bool,
    badge: bool,
    motion: bool,
) -> dict[str, Any]:
    """A talking video: {"video", "says"}. motion: draw the keypoints over it."""
    check_picture(picture)
    check_length(speech)
    tell(0, 0, "listening")
    portrait = tools.talker.portrait(picture)
    frames = tools.talker.animate(
        portrait,
        speech,
        head_motion=head_motion,
        expression=expression,
        smooth=smooth,
        seed=seed,
        paste_back=paste_back,
    )
    return _written(folder / "talking.mp4", frames, portrait, tell, paste_back, badge, motion)


def reenact(
    tools: Tools,
    folder: Path,
    tell: Tell,
    *,
    picture: str,
    video: str,
    absolute: bool,
    best_frame: bool,
    paste_back: bool,
    badge: bool,
    motion: bool,
) -> dict[str, Any]:
    """A portrait moved like the face of a video: {"video", "says"}."""
    check_picture(picture)
    check_length(video)
    tell(0, 0, "watching the driving video")
    portrait = tools.talker.portrait(picture)
    frames = tools.talker.reenact(portrait, video, absolute=absolute, best_frame=best_frame, paste_back=paste_back)
    return _written(folder / "reenacted.mp4", frames, portrait, tell, paste_back, badge, motion)


def score(tools: Tools, folder: Path, tell: Tell, *, video: str) -> dict[str, Any]:
    """What the sync meter finds in a video: the content of `mssync score --json`."""
    from mssync.sync.score import as_json
    from mssync.sync.score import score as measure

    check_length(video)
    tell(0, 0, "watching the video")
    found = measure(video, tools.meter)
    return {**as_json(found), "file": Path(video).name, "over_time_says": found.drift_in_words}


def mend(tools: Tools, folder: Path, tell: Tell, *, video: str) -> dict[str, Any]:
    """A video with its sound moved into place: {"video", "says"}."""
    from mssync.sync.resync import resync

    check_length(video)
    tell(0, 0, "watching the video")
    suffix = Path(video).suffix.lower()
    output = folder / f"mended{suffix if suffix in ('.mp4', '.mov', '.webm') else '.mkv'}"
    return {"video": str(output), "says": resync(video, output, tools.meter).says}


def example(tools: Tools, folder: Path, tell: Tell, *, late: bool) -> dict[str, Any]:
    """The demo's video: {"video"}. late: with its sound DEMO_LATE_MS late, for the meter to find."""
    from mssync.sync.resync import shift_sound
    from mssync.video import write_video

    tell(0, 0, "listening")
    frames = tools.talker.animate(str(DEMO_PORTRAIT), str(DEMO_SPEECH))
    shown = _counted(frames, len(frames), tell)
    write_video(folder / "demo.mp4", shown, frames.audio, model=frames.model, precision=frames.precision)
    if not late:
        return {"video": str(folder / "demo.mp4")}
    shift_sound(folder / "demo.mp4", folder / "late.mp4", DEMO_LATE_MS)
    (folder / "demo.mp4").unlink()
    return {"video": str(folder / "late.mp4")}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "animate": animate, "reenact": reenact, "score": score, "mend": mend, "example": example,
}  # fmt: skip


def check_picture(path: str) -> None:
    """Raises InputError: not a picture, or one of more pixels than a visitor may send."""
    from mssync.pictures import open_image, unreadable

    source = input_file(path)
    image = open_image(source, path)
    if image is None:
        raise InputError(unreadable(source, path))
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise InputError(
                f"{path} has {image.width}x{image.height} pixels; scale it to {MAX_PIXELS:,} in all or less"
            )


def check_length(path: str) -> None:
    """Raises InputError: no recording or video, or one that is longer or larger than a visitor may send."""
    from mssync.video import probe

    about = probe(path)
    if about.seconds is None:
        raise InputError(f"{path} is a picture; give a recording or a video")
    check_seconds(path, about.seconds)
    if about.width is not None and about.height is not None and about.width * about.height > MAX_FRAME:
        raise InputError(f"{path} has frames of {about.width}x{about.height} pixels; scale it to 3840x2160 or less")


def check_header(path: str) -> None:
    """Raises InputError for media that are too long by their header, without decoding anything of them."""
    from mssync.video import declared_seconds, open_media

    try:
        with open_media(path) as container:
            longest = max((float(declared_seconds(container, stream)) for stream in container.streams), default=0.0)
    except InputError:
        return  # no media: what it is meant for will say so
    check_seconds(path, longest)


def check_seconds(path: str, seconds: float) -> None:
    """Raises InputError for more than visitors may send."""
    if seconds > MAX_SECONDS:
        raise InputError(
            f"{path} lasts {seconds / 60:.0f} minutes; at most {MAX_SECONDS / 60:.0f} are taken here: "
            "cut it, or use `mssync` on your own machine, which has no limit"
        )


def _written(
    path: Path, frames: Frames, portrait: Portrait, tell: Tell, paste_back: bool, badge: bool, motion: bool
) -> dict[str, Any]:
    from mssync.app.overlay import with_motion
    from mssync.provenance import badged
    from mssync.video import FPS, write_video

    pictures: Iterator[np.ndarray] = with_motion(frames, portrait, paste_back) if motion else frames
    pictures = badged(pictures) if badge else pictures
    shown = _counted(pictures, len(frames), tell)
    count = write_video(path, shown, frames.audio, model=frames.model, precision=frames.precision)
    return {"video": str(path), "says": f"{count / FPS:.1f} s of video, {count} frames"}


def _counted(frames: Iterator[np.ndarray], total: int, tell: Tell) -> Iterator[np.ndarray]:
    for done, frame in enumerate(frames):
        tell(done, total, "drawing")
        yield frame


# The process


def serve(pipe: connection.Connection, model: str, device: str, precision: str, threads: int) -> None:
    """Load the models, then do what the pipe asks for until it is closed or the server is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the server ends its workers
    threading.Thread(target=_end_with_server, daemon=True).start()
    import torch

    torch.set_num_threads(threads)
    tools = Tools(model, device, precision)
    tools.talker.face_mesh.load()  # before somebody waits for it
    listen(pipe, tools)


def listen(pipe: connection.Connection, tools: Tools) -> None:
    """In: (job, folder, arguments). Out: ("told", done, of, what) many times, then one of ("done", answer),
    ("refused", message) and ("broken", traceback)."""

    def tell(done: int, of: int, what: str) -> None:
        pipe.send(("told", done, of, what))

    while True:
        try:
            name, folder, arguments = pipe.recv()
        except EOFError:
            return
        pipe.send(_done(tools, name, Path(folder), tell, arguments))


def _done(tools: Tools, name: str, folder: Path, tell: Tell, arguments: dict[str, Any]) -> tuple[str, Any]:
    given = [value for value in arguments.values() if isinstance(value, str)]
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("always", module=r"mssync(\.|$)")
            answer = JOBS[name](tools, folder, tell, **arguments)
        answer["warnings"] = [nameless(str(warning.message), *given) for warning in caught]
    except InputError as error:
        return "refused", nameless(str(error), *given, str(folder))
    except Exception:
        return "broken", traceback.format_exc()
    return "done", answer


def nameless(message: str, *paths: str) -> str:
    """A message without the folders of the given paths, which are none of a visitor's business."""
    for path in paths:
        message = message.replace(path, Path(path).name)
    return " ".join(message.split())


def _end_with_server() -> None:
    """A server that was killed takes its workers with it."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
