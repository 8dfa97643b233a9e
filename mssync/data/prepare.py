"""Videos to a prepared folder: tracks of one person each, cropped, with landmarks and sound (see clips.py).

Every source file (`Job`) is worked on by itself and leaves a *part*: ``parts/SHARD/KEY.tar``, the samples of its
tracks, and then ``KEY.json``, the record of what was kept and dropped. When all parts of a shard are there they are
joined to ``SHARD.tar``, ``parts/SHARD.json`` is written, and the parts go. When all shards are there ``report.csv``,
``report.json`` and, last of all, ``index.csv`` are written. Everything is written under another name first and what is
in a shard depends on the jobs and settings alone: a run may be killed at any point and started again.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mssync.audio import KINDS, SAMPLE_RATE, SAMPLES_PER_VIDEO, features, is_silent, load_audio
from mssync.data import shards, workers
from mssync.data.clips import INDEX, SIZE, SPLITS, Clip, Entry, decode_jpeg, write_index
from mssync.data.readers import Job, read_jobs
from mssync.data.tracks import BOXES, Limits, Track, find_tracks, objection
from mssync.errors import InputError, written_whole
from mssync.faces import Box, FaceMesh, crop
from mssync.video import FPS, RGB, VideoReader

FORMAT = 1  # of the prepared folder
JPEG_QUALITY = 95
PARTS, SETTINGS, REPORT, TOTALS = "parts", "settings.json", "report.csv", "report.json"
UNREADABLE, NO_SOUND, SILENT, NO_FACE = "unreadable", "no sound", "silent", "no face"
MIN_REGION = 64  # pixels: a list's crop that leaves less of the picture is a mistake
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE}  # no fault of the video
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


class _Task(NamedTuple):
    """A job and the shard that it goes to."""

    job: Job
    shard: str


def prepare(
    sources: Iterable[str | Path],
    out: str | Path,
    settings: Settings | None = None,
    *,
    processes: int | None = None,
    ray: str | None = None,
) -> dict[str, Any]:
    """Prepare the videos of all sources (see readers.py) into the folder `out`; returns what report.json holds.

    A run that was stopped goes on where it was. processes: how many; one a core unless given. ray: the address of a
    Ray cluster to work on instead ("local": started here); its machines must see the same folders.

    Raises InputError for sources that cannot be used and for a folder that was made of others or with other settings.
    """
    settings, out = settings or Settings(), Path(os.path.abspath(out))
    settings.check()
    jobs, moved = read_jobs(sources, settings.layout, settings.val, settings.test)
    described = _describe(settings, jobs)
    _check_folder(out, described)
    if (out / INDEX).is_file():
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return json.loads((out / TOTALS).read_text())
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        if not (out / SETTINGS).is_file():
            _write_json(out / SETTINGS, described)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error
    if moved:
        names = ", ".join(moved[:3]) + (" …" if len(moved) > 3 else "")
        warnings.warn(f"{len(moved)} identities were in several splits and are in one now: {names}", stacklevel=2)
    with _locked(out):
        try:
            _work(_planned(jobs, settings.per_shard), settings, out, processes, ray)
        except KeyboardInterrupt:
            warnings.warn(f"{out} is not complete; the same command goes on where this one stopped", stacklevel=2)
            raise
        return _finish(out, settings, len(jobs), moved)


def _describe(settings: Settings, jobs: list[Job]) -> dict[str, Any]:
    """What must be the same for a run to go on in a folder."""
    digest, motion = hashlib.sha256(), None
    for job in jobs:
        digest.update(json.dumps(asdict(job), default=str, sort_keys=True).encode())
    if settings.model is not None:
        from mssync.animate import load
        from mssync.reenact import motion_space

        motion = motion_space(load(settings.model).reenactor)
    return {
        "format": FORMAT, **asdict(settings), "motion": motion,
        "sources": len(jobs), "sources_digest": digest.hexdigest()[:16],
    }  # fmt: skip


def _check_folder(out: Path, described: dict[str, Any]) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"cannot write {out}: it is a file; give the name of a folder")
    if not (out / SETTINGS).is_file():
        if (out / INDEX).exists():
            raise InputError(f"{out} was made by an older version; give a new folder, or remove this one")
        return
    try:
        before = json.loads((out / SETTINGS).read_text())
    except ValueError as error:
        raise InputError(f"{out / SETTINGS} is damaged; remove the folder") from error
    # through JSON, as what was read went
    now = json.loads(json.dumps(described))
    changed = [name for name in now if before.get(name) != now[name]]
    if changed:
        what = "other sources" if changed[0].startswith("sources") else "another value of " + ", ".join(changed)
        raise InputError(f"{out} was made with {what}; give a new folder, or remove this one")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keep other runs out of the folder; a killed run keeps nobody out."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (out / PARTS / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another run is at work on {out}; wait for it, or stop it") from None
        except OSError:  # a file system without locks
            pass
        yield


# All jobs


def _planned(jobs: list[Job], per_shard: int) -> dict[str, list[Job]]:
    """Which jobs go to which shard: mixed, so that shards are alike and a reader that shuffles a little will do."""
    planned: dict[str, list[Job]] = {}
    for split in SPLITS:
        mixed = sorted((j for j in jobs if j.split == split), key=lambda j: hashlib.sha256(j.key.encode()).digest())
        for number, start in enumerate(range(0, len(mixed), per_shard)):
            planned[f"{split}-{number:06d}"] = mixed[start : start + per_shard]
    return planned


def _work(planned: dict[str, list[Job]], settings: Settings, out: Path, processes: int | None, ray: str | None) -> None:
    """Do what is not done yet and write the shards, each as soon as its last job is done."""
    parts = out / PARTS
    left = {shard: jobs for shard, jobs in planned.items() if not (parts / f"{shard}.json").is_file()}
    waiting: dict[str, int] = {}
    tasks: list[_Task] = []
    for shard, jobs in left.items():
        (parts / shard).mkdir(exist_ok=True)
        new = [_Task(job, shard) for job in jobs if not _record(parts / shard, job).is_file()]
        waiting[shard] = len(new)
        tasks += new
    for shard, count in waiting.items():
        if count == 0:
            _pack(out, shard, left[shard])
    task = partial(_process, settings=settings, parts=parts)
    if not tasks:
        return
    if ray is not None:
        done = workers.on_ray(task, tasks, ray, processes)
    else:
        done = workers.in_processes(task, tasks, min(processes or os.cpu_count() or 1, len(tasks)))
    for (job, shard), died in _progress(done, len(tasks)):
        if died is not None:
            _write_part(parts / shard, job, [], [_dropped(job, UNREADABLE, died)])
        waiting[shard] -= 1
        if waiting[shard] == 0:
            _pack(out, shard, left[shard])


def _progress(done: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(done, "preparing", total, console=console) if console.is_terminal else done


def _record(folder: Path, job: Job) -> Path:
    return folder / f"{job.key}.json"


def _pack(out: Path, shard: str, jobs: list[Job]) -> None:
    """Join the parts of a shard; its record tells that it is done, then the parts are not needed any more."""
    folder = out / PARTS / shard
    shards.join((folder / f"{job.key}.tar" for job in jobs), out / f"{shard}.tar")
    records = [json.loads(_record(folder, job).read_text()) for job in jobs]
    together = {key: [item for record in records for item in record[key]] for key in ("entries", "rows")}
    _write_json(out / PARTS / f"{shard}.json", together)
    shutil.rmtree(folder)


def _finish(out: Path, settings: Settings, sources: int, moved: list[str]) -> dict[str, Any]:
    records = [json.loads(path.read_text()) for path in sorted((out / PARTS).glob("*.json"))]
    entries = [Entry(**entry) for record in records for entry in record["entries"]]
    rows = sorted((row for record in records for row in record["rows"]), key=lambda r: (r["source"], r["start"]))
    if settings.model is not None:
        from mssync.data.offsets import estimate

        estimate(out, [Clip(out, entry) for entry in entries])
    with written_whole(out / REPORT, ".csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(rows)
    totals = _totals(entries, rows, sources, moved)
    _write_json(out / TOTALS, totals)
    write_index(out, entries)  # last: a folder is complete when it has one
    shutil.rmtree(out / PARTS)
    return totals


def _totals(entries: list[Entry], rows: list[dict[str, Any]], sources: int, moved: list[str]) -> dict[str, Any]:
    splits = {}
    for split in SPLITS:
        here = [entry for entry in entries if entry.split == split]
        splits[split] = {
            "clips": len(here),
            "seconds": round(sum(entry.frames for entry in here) / FPS, 2),
            "identities": len({entry.identity for entry in here}),
        }
    dropped = Counter(row["reason"] for row in rows if not row["kept"])
    return {
        "sources": sources,
        "kept": len(entries),
        "dropped": dict(sorted(dropped.items())),
        "splits": splits,
        "moved_identities": moved,
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with written_whole(path, ".json") as temporary:
        temporary.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")


# One job, in a worker


def _process(task: _Task, settings: Settings, parts: Path) -> None:
    """Write the part of a job. A video that cannot be used leaves one as well, with the reason in its record."""
    job, folder = task.job, parts / task.shard
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch, warnings.catch_warnings(record=True) as noted:
        warnings.simplefilter("always")
        workers.end_after(_time_limit(job.path))
        try:
            clips, rows = _clips_of(job, settings, Path(scratch), f"{task.shard}.tar")
        except Exception as error:  # what broken files make decoders raise
            if isinstance(error, OSError) and error.errno in FULL_DISK:
                raise
            reason, detail = _told(error, job.path)
            clips, rows = [], [_dropped(job, reason, detail)]
        finally:
            workers.end_after(0)
        ours = [w.message for w in noted if f"{os.sep}mssync{os.sep}" in w.filename]
        note = "; ".join(sorted({str(message).replace(str(job.path), "it") for message in ours}))
        _write_part(folder, job, clips, [replace(row, note=note) for row in rows])


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


def _dropped(job: Job, reason: str, detail: str) -> Row:
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


def _write_part(folder: Path, job: Job, clips: list[_Clip], rows: list[Row]) -> None:
    with written_whole(folder / f"{job.key}.tar", ".tar") as temporary, shards.create(temporary) as part:
        for clip in clips:
            for ending, content in clip.members.items():
                _add(part, f"{clip.entry.name}.{ending}", content)
    record = {"entries": [asdict(clip.entry) for clip in clips], "rows": [asdict(row) for row in rows]}
    _write_json(_record(folder, job), record)


def _add(part: tarfile.TarFile, name: str, content: bytes | Path) -> None:
    if isinstance(content, bytes):
        shards.add_bytes(part, name, content)
    else:
        with content.open("rb") as file:
            shards.add(part, name, file, content.stat().st_size)


@lru_cache(maxsize=1)
def _tools(model: str | None) -> tuple[FaceMesh, Any, str]:
    """The face mesh, the reenactor (None without a model) and its motion space; building them takes a second."""
    import cv2
    import torch

    cv2.setNumThreads(1)  # there is a process for every core
    torch.set_num_threads(1)
    if model is None:
        return FaceMesh(), None, ""
    from mssync.animate import load
    from mssync.reenact import motion_space

    reenactor = load(model).reenactor
    return FaceMesh(), reenactor, motion_space(reenactor)


class _Seen:
    """The frames of a job, cut to its region; iterate as often as needed. x, y: the region's corner in the source."""

    def __init__(self, job: Job) -> None:
        self.reader = VideoReader(job.path, job.start, job.stop)
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


def _clips_of(job: Job, settings: Settings, scratch: Path, shard: str) -> tuple[list[_Clip], list[Row]]:
    """The samples of a job's tracks, in order, and a row for each track."""
    mesh, reenactor, space = _tools(settings.model)
    seen = _Seen(job)
    waveform = _sound(job)
    tracks, count = find_tracks(seen, mesh)
    if not tracks:
        raise _Dropped(NO_FACE, f"in {count} frames")
    rows: list[Row] = []
    kept: list[tuple[str, Track, np.ndarray]] = []
    for track in tracks:
        sound = waveform[track.start * SAMPLES_PER_VIDEO : track.stop * SAMPLES_PER_VIDEO]
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
            members["motion.npz"] = _motion(reenactor, f"{space} {settings.features}", file, arrays)
        corner = np.array([seen.x, seen.y, 0], np.float32)
        members |= {"npz": shards.npz(**{**arrays, "boxes": box + corner}), "jpgs": file}
        clips.append(_Clip(entry, members))
    return clips, rows


def _sound(job: Job) -> np.ndarray:
    """The job's sound (n,) float32, mono at 16 kHz."""
    stop = None if job.stop is None else round(job.stop * SAMPLE_RATE)
    return load_audio(job.path)[round(job.start * SAMPLE_RATE) : stop]


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
    import cv2

    files = [scratch / f"{n}.jpgs" for n in range(len(tracks))]
    offsets: list[list[int]] = [[0] for _ in tracks]
    end = max((track.stop for track in tracks), default=0)
    for t, frame in zip(range(end), seen, strict=False):
        for file, track, box, starts in zip(files, tracks, boxes, offsets, strict=True):
            if track.start <= t < track.stop:
                picture = crop(frame, Box(*box[t - track.start].tolist()), SIZE)
                quality = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
                blob = cv2.imencode(".jpg", picture[..., ::-1], quality)[1].tobytes()
                with file.open("ab") as stream:
                    starts.append(starts[-1] + stream.write(blob))
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
