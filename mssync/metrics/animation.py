"""How a generated talking head relates to its speech: mouth and loudness, movement of the head, background."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mssync.audio import SAMPLE_RATE, load_audio
from mssync.face.analyser import FaceMesh
from mssync.faces import Face, head_pose, mouth_opening
from mssync.metrics.estimates import correlation
from mssync.spontaneous import own_seed
from mssync.video import FPS, VideoReader

if TYPE_CHECKING:
    from mssync.animate import Pipeline

MIN_FOUND = 10  # frames with a face, below which nothing is measured
LOUD, QUIET = -20.0, -40.0  # dB below the loudest frame: speech, pause
SHEET_FRAMES = 8  # frames on a contact sheet
BORDER = 0.06  # width of the picture's border that counts as background, in sides


@dataclass
class AnimationFigures:
    """Figures of one generated video.

    image, audio: names of what it was made of.
    r: correlation of mouth opening with loudness; r_shuffled: mean over circular shifts of the loudness;
    open_loud, open_quiet: mean opening (see faces.mouth_opening) in loud frames and in pauses;
    yaw, pitch, roll: standard deviations in degrees; border: mean absolute change of the picture's border
    against the first frame, in grey levels of 255; found: share of frames with a face.
    """

    image: str
    audio: str
    frames: int
    r: float
    r_shuffled: float
    open_loud: float
    open_quiet: float
    yaw: float
    pitch: float
    roll: float
    border: float
    found: float


def loudness(waveform: np.ndarray, frames: int) -> np.ndarray:
    """Level of each video frame in dB below the loudest, (frames,), from 80 ms around it; at least -60."""
    samples = SAMPLE_RATE // FPS
    power = np.convolve(waveform.astype(np.float64) ** 2, np.ones(2 * samples) / (2 * samples), "same")
    at = np.minimum(np.arange(frames) * samples + samples // 2, len(power) - 1)
    level = 10 * np.log10(power[at] + 1e-12)
    return np.maximum(level - level.max(), -60.0)


def evaluate_all(
    pipeline: Pipeline, images: list[Path], recordings: list[Path], folder: Path
) -> list[AnimationFigures]:
    """Animate every image with every recording into `folder`: IMAGE_AUDIO.mp4 and a contact sheet IMAGE_AUDIO.png.

    Figures are measured on the decoded video, not on the frames that went into it.
    """
    from PIL import Image
    from rich.progress import track

    folder.mkdir(parents=True, exist_ok=True)
    mesh, rows = FaceMesh(), []
    for image in track(images, "animating"):
        portrait = pipeline.portrait(image)
        for recording in recordings:
            waveform = load_audio(recording)
            path = folder / f"{image.stem}_{recording.stem}.mp4"
            pipeline.animate(portrait, recording, seed=own_seed(path.stem)).save(path)
            figures, sheet = evaluate(VideoReader(path), waveform, mesh, image.stem, recording.stem)
            Image.fromarray(sheet).save(path.with_suffix(".png"))
            rows.append(figures)
    return rows


def summary(rows: list[AnimationFigures]) -> dict[str, float]:
    """Means over videos (nan left out), and the shares of videos that follow their speech as they should."""
    names = [f.name for f in fields(AnimationFigures) if f.name not in ("image", "audio")]
    means = {name: float(np.nanmean([getattr(row, name) for row in rows])) for name in names}
    means["share_r_above_shuffled"] = float(np.mean([row.r > row.r_shuffled for row in rows]))
    means["share_open_when_loud"] = float(np.mean([row.open_loud > row.open_quiet for row in rows]))
    return means


def evaluate(
    frames: Iterable[np.ndarray], waveform: np.ndarray, mesh: FaceMesh, image: str = "", audio: str = ""
) -> tuple[AnimationFigures, np.ndarray]:
    """Figures of a video's frames (H, W, 3) uint8 with its speech (n,), and a contact sheet of the video."""
    kept: list[np.ndarray] = []
    faces: list[Face | None] = list(mesh.track(_remembered(frames, kept)))
    found = np.array([face is not None for face in faces])
    names: dict[str, Any] = {"image": image, "audio": audio, "frames": len(faces), "found": float(found.mean())}
    names["border"] = _border(kept)
    if found.sum() < MIN_FOUND:
        nothing: dict[str, Any] = dict.fromkeys(
            ("r", "r_shuffled", "open_loud", "open_quiet", "yaw", "pitch", "roll"), float("nan")
        )
        return AnimationFigures(**(names | nothing)), _sheet(kept)
    marks = np.stack([face.landmarks for face in faces if face is not None])
    opening, level = mouth_opening(marks), loudness(waveform, len(faces))[found]
    shifts = range(FPS, max(len(level) - FPS, FPS + 1), max(1, FPS // 2))
    yaw, pitch, roll = head_pose(marks).std(0)
    figures = AnimationFigures(
        **names,
        r=correlation(level, opening),
        r_shuffled=float(np.mean([correlation(np.roll(level, shift), opening) for shift in shifts])),
        open_loud=_mean(opening[level > LOUD]),
        open_quiet=_mean(opening[level < QUIET]),
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
    )
    return figures, _sheet(kept)


def _remembered(frames: Iterable[np.ndarray], kept: list[np.ndarray]) -> Iterable[np.ndarray]:
    """Pass frames on, keeping two a second: enough for the sheet, little memory."""
    for t, frame in enumerate(frames):
        if t % (FPS // 2) == 0:
            kept.append(frame.copy())
        yield frame


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _border(kept: list[np.ndarray]) -> float:
    """The border's top and upper sides: shoulders at the bottom may move."""
    size = kept[0].shape[0]
    width, half = max(1, round(BORDER * size)), size // 2
    mask = np.zeros(kept[0].shape[:2], bool)
    mask[:width], mask[:half, :width], mask[:half, -width:] = True, True, True
    first = kept[0][mask].astype(np.float32)
    return float(np.mean([np.abs(frame[mask] - first).mean() for frame in kept]))


def _sheet(kept: list[np.ndarray]) -> np.ndarray:
    chosen = np.linspace(0, len(kept) - 1, SHEET_FRAMES).round().astype(int)
    return np.hstack([kept[i] for i in chosen])
