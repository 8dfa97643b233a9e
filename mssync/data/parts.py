"""One source to a part: the samples of its tracks in a tar file, and a record of what was kept and dropped."""

from __future__ import annotations

import errno
import json
import os
import tarfile
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mssync.audio import KINDS, SAMPLE_RATE, SAMPLES_PER_VIDEO, features, is_silent, load_audio
from mssync.data import shards, workers
from mssync.data.clips import SIZE, Entry
from mssync.data.readers import Job
from mssync.data.tracks import BOXES, Limits, Track, find_tracks, objection
from mssync.errors import InputError, written_whole
from mssync.face.analyser import FaceMesh
from mssync.faces import Box, crop
from mssync.meter import FRAME_MS, SyncMeter
from mssync.pictures import RGB
from mssync.pixels import decode_jpeg, encode_jpeg
from mssync.video import FPS, VideoReader

JPEG_QUALITY = 95
UNREADABLE, NO_SOUND, SILENT, NO_FACE = "unreadable", "no sound", "silent", "no face"
MIN_REGION = 64  # pixels: a list's crop that leaves less of the picture is a mistake
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE}  # no fault of the video
SHORTEST = FPS  # frames of a track from which on its offset is measured
SECONDS, SECONDS_PER_MB = 900, 30  # a process that takes longer for a file hangs: real ones take a tenth of this


@dataclass(frozen=True)
class Settings:
    """What a prepared folder is made with; a folder keeps to one.

    style: "fixed" (one box a track) or "centred" (a box that follows the face). features: kind of audio features.
    model: also store the motion of this reenactor (a name or path). val, test: shares of identities, see `read_jobs`.
    per_shard: sources a shard.
    """

    style: str = "fixed"
    limits: Limits = field(default_factory=Limits)
    features: str = "logfbank"
    model: str | None = None
    layout: str | None = None
    val: float = 0.0
    test: float = 0.0
    per_shard: int = 100

    def check(self) -> None:
        """Raise InputError for values out of range."""
        for name, value, known in (("style", self.style, BOXES), ("features", self.features, KINDS)):
            if value not in known:
                raise InputError(f"unknown {name} {value!r}; choose one of {', '.join(known)}")
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise InputError(f"val {self.val:g} and test {self.test:g}: give shares that leave something to train on")
        if self.per_shard < 1:
            raise InputError(f"{self.per_shard} sources a shard: give 1 or more")


@dataclass(frozen=True)
class Row:
    """One line of report.csv: a track, or a source in which there is none to keep or drop.

    name: the clip's, where kept. start, seconds: of the track in the source. reason, detail: why it was dropped. face
    (pixels), sharpness, missing, others: see `Track`. note: what else was strange about the source.
    """

    source: str
    kept: bool
    reason: str
    detail: str = ""
    name: str = ""
    split: str = ""
    identity: str = ""
    corpus: str = ""
    start: float = 0.0
    seconds: float = 0.0
    face: float = 0.0
    sharpness: float = 0.0
    missing: float = 0.0
    others: float = 0.0
    note: str = ""


class Task(NamedTuple):
    """A job and the shard that it goes to."""

    job: Job
    shard: str


def process(task: Task, settings: Settings, parts: Path) -> None:
    """Write the part of a job. A video that cannot be used leaves one as well, with the reason in its record."""
    job, folder = task.job, parts / task.shard
    tools = _tools(settings.model)  # what fails here is no fault of the video
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        workers.end_after(_time_limit(job.path))
        try:
            clips, rows = _clips_of(job, settings, tools, Path(scratch), f"{task.shard}.tar")
        except Exception as error:  # what broken files make decoders raise
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in FULL_DISK):
                raise
            reason, detail = _told(error, job.path)
            clips, rows = [], [dropped(job, reason, detail)]
        finally:
            workers.end_after(0)
        ours = [w.message for w in noted if f"{os.sep}mssync{os.sep}" in w.filename]
        note = "; ".join(sorted({str(message).replace(str(job.path), "it") for message in ours}))
        write_part(folder, job, clips, [replace(row, note=note) for row in rows])


def _time_limit(path: Path) -> int:
    try:
        return SECONDS + SECONDS_PER_MB * (path.stat().st_size >> 20)
    except OSError:
        return SECONDS


class _Dropped(Exception):
    """A video is of no use: reason and detail."""


def _told(error: Exception, path: Path) -> tuple[str, str]:
    if isinstance(error, _Dropped):
        return error.args[0], error.args[1]
    if isinstance(error, InputError):
        return UNREADABLE, str(error).replace(str(path), "").strip()
    return UNREADABLE, f"{type(error).__name__}: {error}"


def dropped(job: Job, reason: str, detail: str) -> Row:
    """The line of the report for a job without tracks."""
    start = job.start
    return Row(
        str(job.path), False, reason, detail,
        split=job.split or "", identity=job.identity, corpus=job.corpus, start=start,
    )  # fmt: skip


@dataclass(frozen=True)
class _Clip:
    """A finished sample: its entry and its members, as file names' endings and bytes or the file that holds them."""

    entry: Entry
    members: dict[str, bytes | Path]


def write_part(folder: Path, job: Job, clips: list[_Clip], rows: list[Row]) -> None:
    """Write a job's samples and then its record; the part is there when the record is."""
    with written_whole(folder / f"{job.key}.tar", ".tar") as temporary, shards.create(temporary) as part:
        for clip in clips:
            for ending, content in clip.members.items():
                _add(part, f"{clip.entry.name}.{ending}", content)
    record = {"entries": [asdict(clip.entry) for clip in clips], "rows": [asdict(row) for row in rows]}
    write_json(record_of(folder, job), record)


def record_of(folder: Path, job: Job) -> Path:
    """Where the record of a job lies in its shard's folder of parts."""
    return folder / f"{job.key}.json"


def write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path, ".json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


def _add(part: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        shards.add_bytes(part, name, content)
    else:
        with content.open("rb") as file:
            shards.add(part, name, file, content.stat().st_size)


_Tools = tuple[FaceMesh, Any]  # the face mesh and the reenactor, None without a model


@lru_cache(maxsize=1)
def _tools(model: str | None) -> _Tools:
    """The tools of this process; building them takes a second."""
    import torch

    torch.set_num_threads(1)  # there is a process for every core
    if model is None:
        return FaceMesh(), None
    from mssync.animate import load

    reenactor = load(model).reenactor
    return FaceMesh(), reenactor


class _Seen:
    """The frames of a job, cut to its region; iterate as often as needed. x, y: the region's corner in the source."""

    def __init__(self, job: Job) -> None:
        self.reader = VideoReader(job.path, job.start, job.stop, threads=False)
        if not self.reader.has_audio:
            raise _Dropped(NO_SOUND, "")
        self.x, self.y, self.width, self.height = 0, 0, self.reader.width, self.reader.height
        if job.region is not None:
            scale = self.height / job.region_height if job.region_height else 1.0
            x, y, width, height = (round(scale * value) for value in job.region)
            self.x, self.y = min(x, self.width), min(y, self.height)
            self.width, self.height = min(width, self.width - self.x), min(height, self.height - self.y)
            if min(self.width, self.height) < MIN_REGION:
                raise InputError(f"{job.path}: the crop of its list lies outside the picture")

    def __iter__(self) -> Iterator[RGB]:
        for frame in self.reader:
            yield np.ascontiguousarray(frame[self.y : self.y + self.height, self.x : self.x + self.width])


def _clips_of(job: Job, settings: Settings, tools: _Tools, scratch: Path, shard: str) -> tuple[list[_Clip], list[Row]]:
    """The samples of a job's tracks, in order, and a row for each track. scratch: a folder for what gets large."""
    mesh, reenactor = tools
    seen = _Seen(job)
    waveform = _sound(job)
    tracks, count = find_tracks(seen, mesh)
    if not tracks:
        raise _Dropped(NO_FACE, f"in {count} frames")
    rows: list[Row] = []
    kept: list[tuple[str, Track, np.ndarray]] = []
    for track in tracks:
        sound = waveform[track.start * SAMPLES_PER_VIDEO : track.stop * SAMPLES_PER_VIDEO]
        if settings.limits.max_offset is not None:
            track.offset = _offset(track, sound)
        against = objection(track, settings.limits) or _silence(sound)
        name = "" if against else job.key + (f"+{len(kept)}" if kept else "")
        if against is None:
            kept.append((name, track, sound))
        rows.append(_row(job, track, name, against))
    boxes = [BOXES[settings.style](track, seen.width, seen.height) for _, track, _ in kept]
    pictures = _cropped(seen, [track for _, track, _ in kept], boxes, scratch)
    made = zip(kept, boxes, pictures, strict=True)
    clips = []
    for (name, track, sound), box, (file, offsets) in made:
        stabilised = job.stabilised or settings.style == "centred"
        entry = Entry(name, job.split or "", job.identity, job.corpus, len(track), stabilised, str(job.path), shard)
        arrays = _arrays(track, box, sound, offsets, settings.features)
        members: dict[str, bytes | Path] = {"json": _told_of(entry, job, track, settings)}
        if reenactor is not None:
            members["motion.npz"] = _motion(reenactor, f"{reenactor.space} {settings.features}", file, arrays)
        corner = np.array([seen.x, seen.y, 0], np.float32)
        members |= {"npz": shards.npz(**{**arrays, "boxes": box + corner}), "jpgs": file}
        clips.append(_Clip(entry, members))
    return clips, rows


def _sound(job: Job) -> np.ndarray:
    """The job's sound (n,) float32, mono at 16 kHz."""
    stop = None if job.stop is None else round(job.stop * SAMPLE_RATE)
    return load_audio(job.path)[round(job.start * SAMPLE_RATE) : stop]


def _offset(track: Track, sound: np.ndarray) -> float:
    """Frames by which a track's sound leads; 0 where the sync meter cannot tell."""
    if len(track) < SHORTEST or not sound.size:
        return 0.0
    found = _meter().offset(track.landmarks, sound)
    return found.milliseconds / FRAME_MS if found.sure else 0.0


@lru_cache(maxsize=1)
def _meter() -> SyncMeter:
    return SyncMeter.load()


def _silence(sound: np.ndarray) -> tuple[str, str] | None:
    if sound.size == 0:
        return NO_SOUND, "it ends before"
    return (SILENT, "") if is_silent(sound) else None


def _row(job: Job, track: Track, name: str, against: tuple[str, str] | None) -> Row:
    reason, detail = against or ("", "")
    return Row(
        str(job.path), against is None, reason, detail, name, job.split or "", job.identity, job.corpus,
        round(job.start + track.start / FPS, 2), round(len(track) / FPS, 2), round(track.face, 1),
        round(track.sharpness, 1), round(track.missing, 3), round(track.others, 3),
    )  # fmt: skip


def _cropped(
    seen: Iterable[RGB], tracks: list[Track], boxes: list[np.ndarray], scratch: Path
) -> list[tuple[Path, np.ndarray]]:
    """A file of JPEGs for every track, and the bytes (T + 1,) at which its frames start. A second pass over the video:
    its frames at full size may not fit into memory."""
    files = [scratch / f"{n}.jpgs" for n in range(len(tracks))]
    offsets: list[list[int]] = [[0] for _ in tracks]
    end = max((track.stop for track in tracks), default=0)
    for t, frame in zip(range(end), seen, strict=False):
        for file, track, box, starts in zip(files, tracks, boxes, offsets, strict=True):
            if track.start <= t < track.stop:
                picture = crop(frame, Box(*box[t - track.start].tolist()), SIZE)
                with file.open("ab") as stream:
                    starts.append(starts[-1] + stream.write(encode_jpeg(picture, JPEG_QUALITY)))
    return list(zip(files, map(np.array, offsets), strict=True))


def _arrays(track: Track, box: np.ndarray, sound: np.ndarray, offsets: np.ndarray, kind: str) -> dict[str, np.ndarray]:
    low, side = box[:, None, :2], box[:, None, 2:]
    plane = (track.landmarks[..., :2] - low) / side * 2 - 1
    depth = track.landmarks[..., 2:] / side * 2
    samples = np.rint(np.clip(sound, -1, 1) * 32767).astype(np.int16)
    return {
        "offsets": offsets,
        "landmarks": np.concatenate([plane, depth], -1).astype(np.float16),
        "waveform": samples,
        "audio": features(samples.astype(np.float32) / 32767, kind, len(track)).numpy(),
    }


def _motion(reenactor: Any, made_by: str, file: Path, arrays: dict[str, np.ndarray]) -> bytes:
    from mssync.data.sequences import motion_arrays

    offsets = arrays["offsets"]

    def frame(t: int) -> np.ndarray:
        return decode_jpeg(shards.read(file, int(offsets[t]), int(offsets[t + 1] - offsets[t])))

    return shards.npz(**motion_arrays(reenactor, made_by, frame, arrays["landmarks"], arrays["audio"]))


def _told_of(entry: Entry, job: Job, track: Track, settings: Settings) -> bytes:
    about = {
        **asdict(entry), "style": settings.style, "features": settings.features,
        "start": round(job.start + track.start / FPS, 2), "face": round(track.face, 1),
        "sharpness": round(track.sharpness, 1), "missing": round(track.missing, 3), "others": round(track.others, 3),
    }  # fmt: skip
    return json.dumps(about, sort_keys=True).encode()
