"""Videos to a prepared folder: tracks of one person each, cropped, with landmarks and sound (see clips.py).

Every source file (`Job`) is worked on by itself and leaves a *part*: ``parts/SHARD/KEY.tar``, the samples of its
tracks, and then ``KEY.json``, the record of what was kept and dropped. When all parts of a shard are there they are
joined to ``SHARD.tar``, ``parts/SHARD.json`` is written, and the parts go. When all shards are there ``report.csv``,
``report.json`` and, last of all, ``index.csv`` are written. Everything is written under another name first and what is
in a shard depends on the jobs and settings alone: a run may be killed at any point and started again.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

from mssync.data import shards, workers
from mssync.data.clips import INDEX, SPLITS, Clip, Entry, write_index
from mssync.data.parts import UNREADABLE, Row, Settings, Task, dropped, process, record_of, write_json, write_part
from mssync.data.readers import Job, read_jobs
from mssync.errors import InputError, written_whole
from mssync.motion import space_name
from mssync.video import FPS

FORMAT = 1  # of the prepared folder
PARTS, SETTINGS, REPORT, TOTALS = "parts", "settings.json", "report.csv", "report.json"


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
    Ray cluster to work on instead (see `workers.cluster`); its machines must see the same folders.

    Raises InputError for sources that cannot be used and for a folder that was made of others or with other settings.
    """
    settings, out = settings or Settings(), Path(os.path.abspath(out))
    settings.check()
    jobs, moved = read_jobs(sources, settings.layout, settings.val, settings.test)
    described = _describe(settings, jobs)
    _check_folder(out, described)
    if (out / INDEX).is_file():
        shutil.rmtree(out / PARTS, ignore_errors=True)
        return json.loads((out / TOTALS).read_text(encoding="utf-8"))
    with workers.cluster(ray, processes) as connected:
        _start_folder(out, described)
        if moved:
            names = ", ".join(moved[:3]) + (" …" if len(moved) > 3 else "")
            warnings.warn(f"{len(moved)} identities were in several splits and are in one now: {names}", stacklevel=1)
        with _locked(out):
            try:
                _work(_planned(jobs, settings.per_shard), settings, out, processes, connected)
            except (KeyboardInterrupt, SystemExit):  # the latter of SIGTERM
                warnings.warn(f"{out} is not complete; the same command goes on where this one stopped", stacklevel=1)
                raise
            return _finish(out, settings, len(jobs), moved)


def _start_folder(out: Path, described: dict[str, Any]) -> None:
    try:
        (out / PARTS).mkdir(parents=True, exist_ok=True)
        if not (out / SETTINGS).is_file():
            write_json(out / SETTINGS, described)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror}") from error


def _describe(settings: Settings, jobs: list[Job]) -> dict[str, Any]:
    """What must be the same for a run to go on in a folder."""
    digest, motion = hashlib.sha256(), None
    for job in jobs:
        digest.update(json.dumps(asdict(job), default=str, sort_keys=True).encode())
    if settings.model is not None:
        from mssync.animate import load

        motion = load(settings.model).reenactor.space
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
        before = json.loads((out / SETTINGS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{out / SETTINGS} is damaged; remove the folder") from error
    # through JSON, as what was read went
    now = json.loads(json.dumps(described))
    before["motion"] = before.get("motion") and space_name(before["motion"])
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
    with (out / PARTS / "lock").open("w", encoding="utf-8") as file:
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


def _work(planned: dict[str, list[Job]], settings: Settings, out: Path, processes: int | None, ray: Any) -> None:
    """Do what is not done yet and write the shards, each as soon as its last job is done."""
    parts = out / PARTS
    left = {shard: jobs for shard, jobs in planned.items() if not (parts / f"{shard}.json").is_file()}
    waiting: dict[str, int] = {}
    tasks: list[Task] = []
    for shard, jobs in left.items():
        (parts / shard).mkdir(exist_ok=True)
        new = [Task(job, shard) for job in jobs if not record_of(parts / shard, job).is_file()]
        waiting[shard] = len(new)
        tasks += new
    for shard, count in waiting.items():
        if count == 0:
            _pack(out, shard, left[shard])
    task = partial(process, settings=settings, parts=parts)
    if not tasks:
        return
    if ray is not None:
        done = workers.on_ray(task, tasks, ray, processes)
    else:
        done = workers.in_processes(task, tasks, min(processes or os.cpu_count() or 1, len(tasks)))
    for (job, shard), died in _progress(done, len(tasks)):
        if died is not None:
            write_part(parts / shard, job, [], [dropped(job, UNREADABLE, died)])
        waiting[shard] -= 1
        if waiting[shard] == 0:
            _pack(out, shard, left[shard])


def _progress(done: Iterable[Any], total: int) -> Iterable[Any]:
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    return track(done, "preparing", total, console=console) if console.is_terminal else done


def _pack(out: Path, shard: str, jobs: list[Job]) -> None:
    """Join the parts of a shard; its record tells that it is done, then the parts are not needed any more."""
    folder = out / PARTS / shard
    shards.join((folder / f"{job.key}.tar" for job in jobs), out / f"{shard}.tar")
    records = [json.loads(record_of(folder, job).read_text(encoding="utf-8")) for job in jobs]
    together = {key: [item for record in records for item in record[key]] for key in ("entries", "rows")}
    write_json(out / PARTS / f"{shard}.json", together)
    shutil.rmtree(folder)


def _finish(out: Path, settings: Settings, sources: int, moved: list[str]) -> dict[str, Any]:
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((out / PARTS).glob("*.json"))]
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
    write_json(out / TOTALS, totals)
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
