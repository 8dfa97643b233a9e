"""What pictures are measured on: frames of people's clips, of which the first is the portrait.

Frames are taken in blocks of three that follow each other, evenly spread over a clip, so that what flickers is seen;
beside them the moments that a person wants to look at.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from mssync.data.readers import Job, read_jobs
from mssync.driving import Shot, find_shots
from mssync.errors import InputError, input_file
from mssync.face.analyser import FaceMesh
from mssync.faces import crop, eye_opening, head_pose, mouth_opening
from mssync.video import RGB, VideoReader

T = TypeVar("T")

IMAGES = (".jpg", ".jpeg", ".png", ".webp")
BLOCK = 3  # frames that follow each other: the fewest with a second difference
SIZE = 512  # pixels: the side at which frames are drawn and measured, unless told otherwise
MOST = 60  # frames of a clip in blocks, unless told otherwise
FADED_IN = 0.7  # share of a clip's usual contrast that a frame needs to be a portrait: some clips fade in from white
GLANCE = 8  # every so many pixels are looked at to tell a frame's contrast
MOMENTS = ("portrait", "widest mouth", "closed lips", "closed eyes", "head left", "head right", "head up", "head down")


@dataclass(frozen=True)
class Clip:
    """Frames of one person.

    real: (T, s, s, 3) uint8, in order of time, the first is the portrait; landmarks: (T, 478, 3) float32 in their
    pixels; blocks: (k, BLOCK), which of them follow each other; shown: which are the MOMENTS.
    """

    name: str
    identity: str
    real: np.ndarray
    landmarks: np.ndarray
    blocks: np.ndarray
    shown: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.real.shape[1]


def find_jobs(sources: Sequence[Path], split: str, min_size: int = 0, people: int | None = None) -> list[Job]:
    """The videos of a split whose shorter side has at least `min_size` pixels; with `people` one each of so many.

    Videos of which no manifest tells the split are of "test". Raises InputError where there are none.
    """
    jobs = [job for job in read_jobs(sources, None, 0.0, 1.0)[0] if job.split == split]
    jobs = [job for job in jobs if min_size == 0 or _shorter_side(job.path) >= min_size]
    if not jobs:
        large = f" of {min_size} pixels or more" if min_size else ""
        raise InputError(f"no videos{large} of the split {split!r}; give --split train, val or test")
    if people is None:
        return jobs
    first = {job.identity: job for job in reversed(jobs)}
    return sorted(first.values(), key=lambda job: job.key)[:people]


def find_portraits(paths: Sequence[Path], most: int) -> list[Path]:
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


def spread(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, evenly spaced from the first to the last."""
    chosen = np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int)
    return [items[i] for i in chosen]


def _shorter_side(path: Path) -> int:
    reader = VideoReader(path)
    return min(reader.width, reader.height)


def watch(job: Job, mesh: FaceMesh, size: int = SIZE, most: int = MOST) -> Clip:
    """Read a video's longest shot, in one fixed crop around the face: at most `most` frames in blocks.

    Frames that a clip fades in with are left out. Raises InputError: no face, fewer than BLOCK + 1 frames of one.
    """
    reader, contrast = VideoReader(job.path, job.start, job.stop), list[float]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of cuts and other people: the longest shot is all that is asked for
        shots, _ = find_shots(_noted(reader, contrast), mesh, reader.width, reader.height, str(job.path))
    shot = max(shots, key=lambda shot: len(shot.landmarks))
    first = shot.start + first_clear(np.array(contrast[shot.start : shot.stop]))
    if shot.stop - first <= BLOCK:
        raise InputError(f"{job.path}: too short: a face is seen in {shot.stop - first} frames")
    landmarks = _in_pixels(shot, size)[first - shot.start :]
    blocks, shown = spread_blocks(len(landmarks), most), moments(landmarks)
    times = np.unique(np.concatenate([blocks.ravel(), shown]))
    real = _cropped(reader, shot, first + times, size)
    at = (np.searchsorted(times, wanted) for wanted in (blocks, shown))
    return Clip(job.key, job.identity, real, landmarks[times], next(at), tuple(map(int, next(at))))


def _noted(frames: VideoReader, contrast: list[float]) -> Iterator[RGB]:
    for frame in frames:
        contrast.append(float(frame[::GLANCE, ::GLANCE].std()))
        yield frame


def first_clear(contrast: np.ndarray) -> int:
    """The first frame that can be a portrait by the contrast of all (T,): 0, but for a clip that fades in."""
    return int(np.argmax(contrast >= FADED_IN * np.median(contrast)))


def _in_pixels(shot: Shot, size: int) -> np.ndarray:
    """A shot's landmarks (T, 478, 3) in the pixels of its crop, `size` pixels wide."""
    origin = np.array([shot.box.x0, shot.box.y0, 0], np.float32)
    return ((shot.landmarks - origin) * (size / shot.box.side)).astype(np.float32)


def _cropped(reader: VideoReader, shot: Shot, times: np.ndarray, size: int) -> np.ndarray:
    """The shot's crop of a video's frames at ascending times (T,): (T, size, size, 3) uint8."""
    wanted, found = set(times.tolist()), []
    for time, frame in enumerate(reader):
        if time in wanted:
            found.append(crop(frame, shot.box, size))
        if len(found) == len(wanted):
            break
    return np.stack(found)


def spread_blocks(frames: int, most: int) -> np.ndarray:
    """Times (k, BLOCK) of frames that follow each other, spread over 1 … frames - 1; at most `most` in all."""
    count = max(1, min(most, frames - 1) // BLOCK)
    starts = np.linspace(1, frames - BLOCK, count).astype(int)
    return starts[:, None] + np.arange(BLOCK)


def moments(landmarks: np.ndarray) -> np.ndarray:
    """When MOMENTS are in (T, 478, 3): (8,). Lips close after the mouth was half as wide open as it ever is."""
    mouth, eyes, pose = mouth_opening(landmarks), eye_opening(landmarks), head_pose(landmarks)
    spoken = int(np.argmax(mouth >= (mouth.min() + mouth.max()) / 2))
    closed = spoken + int(mouth[spoken:].argmin())
    left, up = pose[:, :2].argmin(0)
    right, down = pose[:, :2].argmax(0)
    return np.array([0, mouth.argmax(), closed, eyes.argmin(), left, right, up, down])
