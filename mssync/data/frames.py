"""Single frames in their full size with face meshes: what the layered renderer is trained on.

A folder holds a file KEY.npz for every clip and still:

==========  =====================  ==============================================================
jpegs       (n,) uint8             the frames as JPEG, one after the other
offsets     (T + 1,) int64         frame t is bytes offsets[t]:offsets[t + 1] of jpegs
landmarks   (T, 478, 3) float32    mesh points in pixels of the frame, x right, y down, z away
split       str                    train, val or test
identity    str                    who it is
==========  =====================  ==============================================================
"""

from __future__ import annotations

import os
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from mssync.data import workers
from mssync.data.readers import Job, read_jobs
from mssync.errors import InputError, written_whole
from mssync.face.analyser import FaceMesh
from mssync.faces import crop, crop_box, grown
from mssync.pictures import read_image
from mssync.pixels import decode_jpeg, encode_jpeg
from mssync.video import RGB, VideoReader

MATTE = ".matte.npz"  # end of the files that `scripts/label_mattes.py` writes beside
QUALITY = 95  # of the JPEGs
MAX_SIDE = 640  # pixels of a stored frame
MIN_FACE = 80  # pixels from forehead to chin: smaller ones teach blur
STILLS = {".jpg", ".jpeg", ".png", ".webp"}


@dataclass(frozen=True)
class Settings:
    """frames: at most so many of a clip, evenly spread; clips: at most so many of a person; teacher: whether meshes
    are those of MediaPipe, to learn from; around: sides of the square of head and shoulders that are stored, or as
    many as there are, where 1 stores a small frame whole."""

    frames: int = 40
    clips: int = 8
    teacher: bool = False
    around: float = 1.0


def collect(
    sources: Iterable[str | Path], out: str | Path, settings: Settings | None = None, processes: int | None = None
) -> int:
    """Fill the folder `out`; returns how many files are in it. A run that was stopped goes on where it was.

    sources: as `mssync preprocess` takes them (`data.readers`); a manifest may list pictures, too.
    processes: how many; one a core unless given.
    Raises InputError for sources that cannot be read.
    """
    settings, out = settings or Settings(), Path(out)
    jobs, _ = read_jobs(sources, None, 0.0, 0.0)
    kept: dict[str, list[Job]] = defaultdict(list)
    for job in jobs:
        kept[job.identity].append(job)
    out.mkdir(parents=True, exist_ok=True)
    wanted = [job for those in kept.values() for job in those[: settings.clips]]
    left = [job for job in wanted if not (out / f"{job.key}.npz").exists()]
    task = partial(_collect_one, out=out, settings=settings)
    for job, died in workers.in_processes(task, left, min(processes or os.cpu_count() or 1, max(len(left), 1))):
        if died is not None:
            warnings.warn(f"{job.path}: {died}", stacklevel=1)
    return len(clip_files(out))


def _collect_one(job: Job, out: Path, settings: Settings) -> None:
    try:
        frames = [read_image(job.path)] if job.path.suffix.lower() in STILLS else _spread(job, settings.frames)
    except InputError as error:
        warnings.warn(str(error), stacklevel=1)
        frames = []
    mesh = _seer(settings.teacher)
    faces = list(mesh.track(iter(frames))) if len(frames) > 1 else [next(iter(mesh(frame)), None) for frame in frames]
    seen = [(frame, face) for frame, face in zip(frames, faces, strict=True) if face is not None]
    seen = [(f, face) for f, face in seen if face.box[3] - face.box[1] >= MIN_FACE]
    blobs, landmarks = [], []
    if seen:
        height, width = seen[0][0].shape[:2]
        box = grown(crop_box([face for _, face in seen], width, height), settings.around, width, height)
        for frame, face in seen:
            picture: np.ndarray = frame
            points = np.asarray(face.landmarks, np.float32)
            if max(height, width) > MAX_SIDE or settings.around > 1:
                size = min(MAX_SIDE, round(box.side))
                picture = crop(frame, box, size)
                points = (points - np.array([box.x0, box.y0, 0], np.float32)) * np.float32(size / box.side)
            blobs.append(encode_jpeg(picture, QUALITY, "4:4:4"))
            landmarks.append(points)
    with written_whole(out / f"{job.key}.npz", ".npz") as temporary:
        np.savez(
            temporary,
            jpegs=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0, *map(len, blobs)]),
            landmarks=np.array(landmarks, np.float32).reshape(-1, 478, 3),
            split=np.array(job.split),
            identity=np.array(job.identity),
        )


def _seer(teacher: bool) -> Any:
    if not teacher:
        return FaceMesh()
    from mssync.training.teacher import Teacher

    return Teacher()


def _spread(job: Job, count: int) -> list[RGB]:
    """At most `count` frames of a clip, evenly spread."""
    reader = VideoReader(job.path, job.start, job.stop)
    step = max(1, round(reader.duration * 25 / count))
    return [frame for k, frame in enumerate(reader) if k % step == step // 2][:count]


class Shown:
    """One clip's frames."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _file(self) -> dict[str, np.ndarray]:
        with np.load(self.path) as file:
            return dict(file)

    def __len__(self) -> int:
        return len(self.landmarks)

    @property
    def split(self) -> str:
        return str(self._file["split"])

    @property
    def identity(self) -> str:
        return str(self._file["identity"])

    @property
    def landmarks(self) -> np.ndarray:
        """(T, 478, 3) float32 in pixels."""
        return self._file["landmarks"]

    def frame(self, t: int) -> RGB:
        start, stop = self._file["offsets"][t : t + 2]
        return decode_jpeg(self._file["jpegs"][start:stop].tobytes())


def clip_files(folder: Path) -> list[Path]:
    """KEY.npz of all clips, without the mattes beside them."""
    return [path for path in sorted(folder.glob("*.npz")) if not path.name.endswith(MATTE)]


def read_frames(folder: str | Path, split: str) -> list[Shown]:
    """The clips of one split of which at least one face was seen. Raises InputError where there is none."""
    shown = [clip for clip in map(Shown, clip_files(Path(folder))) if clip.split == split and len(clip)]
    if not shown:
        raise InputError(f"{folder}: no frames of the split {split!r}; make this folder with `mssync frames`")
    return shown
