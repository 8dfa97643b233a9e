"""Turn videos into prepared clips: one fixed crop, landmarks of every frame, the sound.

A prepared folder holds, per clip, ``NAME.jpgs`` (the 256×256 frames, JPEG, one after the other) and ``NAME.npz``:

==========  =====================  ==========================================================
offsets     (T + 1,) int64         frame t is bytes offsets[t]:offsets[t + 1] of NAME.jpgs
landmarks   (T, 478, 3) float16    mesh points in the crop, [-1, 1], x right, y down, z away
waveform    (n,) int16             16 kHz mono
box         (3,) float32           x0, y0, side of the crop in the source's pixels
==========  =====================  ==========================================================

and one ``index.csv`` over all of them: name, split, identity, corpus, frames, stabilised, source.
"""

from __future__ import annotations

import csv
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from mssync.audio import load_audio
from mssync.errors import InputError, written_whole
from mssync.faces import Box, Face, FaceMesh, crop, crop_box
from mssync.video import FPS, VideoReader

SIZE = 256  # side of the prepared frames, in pixels
JPEG_QUALITY = 95
VIDEOS = {".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v"}
MIN_FRAMES = 2 * FPS
MAX_MISSING = 0.1  # share of frames without a found face above which a clip is dropped
STABILISED = ("ViCo",)  # corpora whose clips follow the face: lips are real, head motion is not


@dataclass(frozen=True)
class Entry:
    """One line of index.csv."""

    name: str
    split: str
    identity: str
    corpus: str
    frames: int
    stabilised: bool
    source: str


@dataclass(frozen=True)
class _Job:
    path: Path
    name: str
    split: str
    identity: str
    corpus: str


def prepare(source: str | Path, out: str | Path, workers: int | None = None) -> dict[str, int]:
    """Prepare every clip of a manifest (or of a folder of videos) and write index.csv.

    source: a folder with ``manifest.csv`` (columns file, split, identity, corpus), the manifest itself, or a
        plain folder of videos (every file its own identity, all of them ``train``).
    out: the prepared folder; clips that it already holds are kept, so a stopped run goes on where it was.

    Returns counts: kept, and one count for each reason of dropping. Raises InputError when there is nothing to read.
    """
    jobs, out = _jobs(Path(source)), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, int] = {}
    entries: list[Entry] = []
    # Fresh processes: a fork of one in which mediapipe's threads run already would die.
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=get_context("spawn")) as pool:
        pending = {pool.submit(_prepare_clip, job, out): job for job in jobs}
        for done in _progress(as_completed(pending), len(pending)):
            job, frames = pending[done], 0
            try:
                frames = done.result()
                reason = "kept"
            except InputError as error:
                reason = str(error).split(": ", 1)[-1]
                warnings.warn(f"dropped: {error}", stacklevel=1)
            counts[reason] = counts.get(reason, 0) + 1
            if frames:
                stabilised = job.corpus in STABILISED
                source_name = str(job.path)
                entries.append(Entry(job.name, job.split, job.identity, job.corpus, frames, stabilised, source_name))
    write_index(out, entries)
    return counts


def _jobs(source: Path) -> list[_Job]:
    manifest = source / "manifest.csv" if source.is_dir() else source
    if manifest.suffix == ".csv" and manifest.is_file():
        return _listed(manifest)
    if not source.is_dir():
        raise InputError(f"{source}: give a folder of videos or a manifest.csv")
    videos = sorted(p for p in source.rglob("*") if p.suffix.lower() in VIDEOS)
    if not videos:
        raise InputError(f"{source}: no manifest.csv and no videos in this folder")
    # id1/00001.mp4 and id2/00001.mp4 are two clips
    names = ["_".join(path.relative_to(source).with_suffix("").parts) for path in videos]
    return [_Job(path, name, "train", name, source.name) for path, name in zip(videos, names, strict=True)]


def _listed(manifest: Path) -> list[_Job]:
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    missing = {"file", "split", "identity", "corpus"} - set(rows[0] if rows else ())
    if missing:
        raise InputError(f"{manifest}: no rows, or no column {', '.join(sorted(missing))}")
    paths = [manifest.parent / row["file"] for row in rows]
    names = [path.stem for path in paths]
    if len(set(names)) < len(names):  # the same file name in several folders
        names = ["_".join(Path(row["file"]).with_suffix("").parts) for row in rows]
    return [
        _Job(path, name, row["split"], row["identity"], row["corpus"])
        for path, name, row in zip(paths, names, rows, strict=True)
    ]


def _progress(futures: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.progress import track

    return track(futures, "preparing clips", total=total)


_mesh: FaceMesh | None = None  # one per worker process: building the graphs takes a second


def _prepare_clip(job: _Job, out: Path) -> int:
    """Prepare one clip; returns its number of frames. Raises InputError when the clip is dropped."""
    global _mesh
    target = out / f"{job.name}.npz"
    if target.exists():
        with np.load(target) as data:
            return len(data["offsets"]) - 1
    _mesh = _mesh or FaceMesh()
    reader = VideoReader(job.path)
    points = fill_gaps(list(_mesh.track(reader)))
    if points is None:
        raise InputError(f"{job.path}: no face in more than {MAX_MISSING:.0%} of the frames")
    if len(points) < MIN_FRAMES:
        raise InputError(f"{job.path}: shorter than {MIN_FRAMES / FPS:g} s")
    box = crop_box([Face(p) for p in points], reader.width, reader.height)
    centred = (points - np.array([box.x0, box.y0, 0], np.float32)) / box.side
    landmarks = centred * 2 - np.array([1, 1, 0], np.float32)
    waveform = load_audio(job.path)
    # A second pass over the file: its frames at full size may not fit into memory.
    _write_clip(out, job.name, (crop(frame, box, SIZE) for frame in reader), landmarks, waveform, box)
    return len(points)


def fill_gaps(faces: list[Face | None]) -> np.ndarray | None:
    """Landmarks (T, 478, 3) with short gaps interpolated; None when more than MAX_MISSING are missing."""
    found = np.array([face is not None for face in faces])
    if found.mean() < 1 - MAX_MISSING:
        return None
    known = np.stack([face.landmarks for face in faces if face is not None])
    at, where = np.arange(len(faces)), np.flatnonzero(found)
    right = np.clip(np.searchsorted(where, at), 0, len(where) - 1)
    left = np.clip(right - (where[right] > at), 0, len(where) - 1)
    span = np.maximum(where[right] - where[left], 1)
    weight = np.clip((at - where[left]) / span, 0, 1)[:, None, None].astype(np.float32)
    return known[left] * (1 - weight) + known[right] * weight


def _write_clip(
    out: Path, name: str, frames: Iterable[np.ndarray], landmarks: np.ndarray, waveform: np.ndarray, box: Box
) -> None:
    import cv2

    offsets, quality = [0], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    with written_whole(out / f"{name}.jpgs", ".jpgs") as temporary, temporary.open("wb") as file:
        for frame in frames:
            offsets.append(offsets[-1] + file.write(cv2.imencode(".jpg", frame[..., ::-1], quality)[1].tobytes()))
    with written_whole(out / f"{name}.npz", ".npz") as temporary:  # last: a clip exists when its .npz does
        np.savez(
            temporary,
            offsets=np.array(offsets),
            landmarks=landmarks.astype(np.float16),
            waveform=np.rint(np.clip(waveform, -1, 1) * 32767).astype(np.int16),
            box=np.array([box.x0, box.y0, box.side], np.float32),
        )


def write_index(folder: Path, entries: list[Entry]) -> None:
    """Write index.csv, sorted by name."""
    with written_whole(folder / "index.csv", ".csv") as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Entry)])
        writer.writeheader()
        writer.writerows(asdict(e) for e in sorted(entries, key=lambda e: e.name))
