"""Cross-identity reenactment: portraits under the motion of other people's clips, as figures and contact sheets."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from mssync.data.clips import Clip
from mssync.errors import InputError, input_file
from mssync.faces import crop
from mssync.metrics import estimates
from mssync.metrics.estimates import Estimate
from mssync.metrics.pictures import to_tensor
from mssync.metrics.reenactment import BATCH, driven_times, faded_in, followed, keypoints, read_frames
from mssync.motion import best_start, relative
from mssync.reenact import SIZE

if TYPE_CHECKING:
    from mssync.animate import Pipeline

T = TypeVar("T")

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
MAX_PORTRAITS = 10  # taken from a folder, unless told otherwise
SHEET_FRAMES = 8  # columns of a contact sheet, besides the portrait's
TILE = 144  # pixels, side of a picture on a sheet


@dataclass
class TransferFigures:
    """Figures of one portrait under one clip's motion: r of the driving landmarks with those measured on the
    output (nan: the clip does not move so), and the share of output frames on which a face is found."""

    portrait: str
    clip: str
    r_mouth: float
    r_eyes: float
    r_yaw: float
    r_pitch: float
    followed: float


def find_portraits(paths: Sequence[Path], most: int = MAX_PORTRAITS) -> list[Path]:
    """The given pictures; of a folder at most `most` of its pictures, spread evenly over their sorted names.

    Raises InputError for a picture that is no file and a folder without pictures.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(input_file(path))
            continue
        pictures = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGES)
        if not pictures:
            raise InputError(f"{path}: no pictures ({', '.join(IMAGES)}) in this folder")
        found += spread(pictures, most)
    return found


def driving_clips(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips of different people, spread evenly over the clips' names."""
    first = {clip.entry.identity: clip for clip in sorted(clips, key=lambda clip: clip.entry.name, reverse=True)}
    return spread(sorted(first.values(), key=lambda clip: clip.entry.name), count)


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def transfer(
    pipeline: Pipeline, portraits: Sequence[Path], clips: Sequence[Clip], folder: Path, label: str
) -> list[TransferFigures]:
    """Reenact every portrait with every clip, as `Pipeline.reenact` does; writes CLIP_LABEL.png into `folder`.

    A sheet shows one clip: the driving frames on top, below them a row for each portrait, which comes first.
    Raises InputError, before anything is drawn, for a portrait without a face.
    """
    from PIL import Image
    from rich.progress import track

    prepared = [pipeline.portrait(path) for path in portraits]
    folder.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^\w.-]+", "_", label).strip("_.")
    rows: list[TransferFigures] = []
    for clip in track(clips, "transfer"):
        times, landmarks = driven_times(len(clip), faded_in(clip)), clip.landmarks
        driving, motion = _driving(pipeline, clip, landmarks, times)
        sheet = [_row(np.zeros_like(driving[0]), clip.entry.name, driving)]
        for path, portrait in zip(portraits, prepared, strict=True):
            start = best_start(motion, portrait.pose)
            frames = np.stack(
                list(pipeline.render(portrait, relative(motion, motion[start], portrait.pose), size=SIZE))
            )
            figures = followed(landmarks[times], frames, pipeline.face_mesh)
            rows.append(TransferFigures(portrait=path.stem, clip=clip.entry.name, **figures))
            sheet.append(_row(crop(portrait.picture, portrait.box, SIZE), path.stem, frames))
        Image.fromarray(np.vstack(sheet)).save(folder / f"{clip.entry.name}_{name}.png")
    return rows


def summary(rows: Sequence[TransferFigures]) -> dict[str, Estimate]:
    """Means over driving clips of the means over portraits: pairs that share a clip tell much the same."""
    if not rows:
        return {}
    names = [f.name for f in fields(TransferFigures) if f.name not in ("portrait", "clip")]
    clips = sorted({row.clip for row in rows})
    found = {}
    for name in names:
        # Whether a clip moves (nan) is the same for all of its portraits.
        of_clips = [np.mean([getattr(row, name) for row in rows if row.clip == clip]) for clip in clips]
        found[name] = estimates.mean(np.array(of_clips))
    return found


@torch.inference_mode()
def _driving(
    pipeline: Pipeline, clip: Clip, landmarks: np.ndarray, times: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Frames (T, s, s, 3) uint8 of a clip and their motion (T, 10, 6)."""
    frames = read_frames(clip, times)
    batches = [slice(start, start + BATCH) for start in range(0, len(times), BATCH)]
    motion = [
        keypoints(pipeline.reenactor, to_tensor(frames[at]).to(pipeline.device), landmarks[times[at]]).cpu()
        for at in batches
    ]
    return frames, torch.cat(motion).numpy()


def _row(first: np.ndarray, title: str, frames: np.ndarray) -> np.ndarray:
    """A titled picture and SHEET_FRAMES of frames (T, s, s, 3) beside it, (TILE, …, 3)."""
    from PIL import Image, ImageDraw

    pictures = [first, *spread(list(frames), SHEET_FRAMES)]
    row = Image.fromarray(np.hstack(pictures)).resize((TILE * len(pictures), TILE), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(row)
    draw.rectangle(draw.textbbox((2, 1), title), fill="black")
    draw.text((2, 1), title, fill="white")
    return np.asarray(row)
