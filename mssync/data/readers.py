"""Layouts of corpora: which videos there are, who speaks in them, and what they are for.

============  =====================================================================================================
manifest      a .csv file with the column ``file`` and, where known, ``split``, ``identity``, ``corpus``,
              ``stabilised``
hdtf          the lists of the HDTF repository (``RD_annotion_time.txt``, ``…_crop_wh.txt``, ``…_resolution.txt``)
              beside the downloaded videos ``NAME.mp4``, or beside the clips ``NAME_0.mp4`` cut out of them
lrs2          ``mvlrs_v1/main|pretrain/ID/NUMBER.mp4`` with ``train.txt``, ``val.txt``, ``test.txt``, ``pretrain.txt``
voxceleb2     ``dev|test/mp4/ID/VIDEO/NUMBER.mp4``
folder        any videos, each of a person of its own
============  =====================================================================================================
"""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mssync.errors import InputError

VIDEOS = {".mp4", ".mov", ".webm", ".mkv", ".avi", ".m4v"}
STABILISED = ("ViCo",)  # corpora whose clips follow the face: lips are real, head motion is not
RANK = ("test", "val", "train")  # an identity that is in several splits goes to the first of them
LONGEST_KEY = 80  # tar headers hold 100 bytes of a name


@dataclass(frozen=True)
class Job:
    """A video, or a part of one, to look for tracks in.

    key: its name in the prepared folder, unique, [A-Za-z0-9_-]. split: None to be drawn. start, stop: seconds.
    region: x, y, width, height in pixels of a picture `region_height` pixels high (0: of the video's own height);
    what is outside is not looked at.
    """

    path: Path
    key: str
    split: str | None
    identity: str
    corpus: str
    stabilised: bool = False
    start: float = 0.0
    stop: float | None = None
    region: tuple[int, int, int, int] | None = None
    region_height: int = 0


def read_jobs(
    sources: Iterable[str | Path], layout: str | None, val: float, test: float
) -> tuple[list[Job], list[str]]:
    """The jobs of all sources, sorted by key, every one with a split; and the identities that had to be moved.

    layout: None to tell by what lies in the source. val, test: shares of the identities that no layout puts anywhere;
    which ones is a function of their names alone. No identity is in two splits: where the layout has it otherwise,
    all its videos go to test rather than val, and to val rather than train.

    Raises InputError when there is nothing to read.
    """
    jobs = [job for source in sources for job in _read(Path(source), layout)]
    given: dict[str, set[str]] = {job.identity: set() for job in jobs}
    for job in jobs:
        given[job.identity].update([job.split] if job.split else [])
    moved = sorted(name for name, splits in given.items() if len(splits) > 1)
    split = {
        name: next((s for s in RANK if s in splits), None) or drawn_split(name, val, test)
        for name, splits in given.items()
    }
    jobs = [replace(job, split=split[job.identity]) for job in jobs]
    return sorted(_unique(jobs), key=lambda job: job.key), moved


def drawn_split(identity: str, val: float, test: float) -> str:
    """The split of an identity: a function of its name and of the shares."""
    at = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return "test" if at < test else "val" if at < test + val else "train"


def _read(source: Path, layout: str | None) -> list[Job]:
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
    if not source.exists():
        raise InputError(f"{source} does not exist; give a folder of videos or a manifest.csv")
    source = Path(os.path.abspath(source))  # workers may be elsewhere
    if layout is None and source.is_file() and source.suffix.lower() in VIDEOS:
        return [_alone(source, source.parent)]
    name = layout or next((name for name, (fits, _) in LAYOUTS.items() if fits(source)), None)
    if name is None:
        raise InputError(f"{source} is no folder, no manifest.csv and no video")
    fits, reader = LAYOUTS[name]
    if not fits(source):
        raise InputError(f"{source} is not of the layout {name} (see docs/training.md)")
    jobs = list(reader(source))
    if not jobs:
        raise InputError(f"{source}: no videos in this folder")
    return jobs


def _alone(path: Path, root: Path) -> Job:
    """A video below `root` of which nothing more is known."""
    key = "_".join(path.relative_to(root).with_suffix("").parts)
    return Job(path, key, None, key, root.name, root.name in STABILISED)


def _unique(jobs: list[Job]) -> list[Job]:
    """Jobs with keys that can be file names in a tar, no two alike (also where a file system ignores case)."""
    keys = [re.sub(r"[^A-Za-z0-9_-]+", "-", job.key) for job in jobs]
    counts = Counter(key.lower() for key in keys)
    return [
        replace(job, key=key if counts[key.lower()] == 1 and len(key) <= LONGEST_KEY else _marked(key, job))
        for job, key in zip(jobs, keys, strict=True)
    ]


def _marked(key: str, job: Job) -> str:
    mark = hashlib.sha256(f"{job.path}\n{job.start}\n{job.stop}".encode()).hexdigest()[:12]
    return f"{key[: LONGEST_KEY - 13]}-{mark}"


def _videos(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is called like a video, also what turns out to be none."""
    for parent, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted([*files, *folders]):
            if Path(name).suffix.lower() in VIDEOS and not name.startswith("."):  # ._x.mp4: what macOS leaves
                yield Path(parent) / name


# A plain folder, a manifest


def _is_folder(source: Path) -> bool:
    return source.is_dir()


def _read_folder(source: Path) -> Iterator[Job]:
    for path in _videos(source):
        yield _alone(path, source)


def _manifest(source: Path) -> Path:
    return source / "manifest.csv" if source.is_dir() else source


def _is_manifest(source: Path) -> bool:
    return _manifest(source).is_file() and _manifest(source).suffix.lower() == ".csv"


def _read_manifest(source: Path) -> Iterator[Job]:
    manifest = _manifest(source)
    try:
        with manifest.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{manifest}: cannot be read as a table ({error})") from error
    if not rows or "file" not in rows[0]:
        raise InputError(f"{manifest}: no rows, or no column file")
    stems = Counter(Path(row["file"] or "").stem for row in rows)
    for number, row in enumerate(rows, 2):
        path, split = Path(row["file"] or ""), row.get("split") or None
        if not path.name:
            raise InputError(f"{manifest}: line {number} names no file")
        if split not in (None, *RANK):
            raise InputError(f"{manifest}: line {number} has the split {split!r}, not train, val or test")
        # the same file name in several folders: two clips
        key = path.stem if stems[path.stem] == 1 else "_".join(path.with_suffix("").parts)
        corpus = row.get("corpus") or manifest.parent.name
        follows = (row.get("stabilised") or "").lower() in ("1", "true", "yes") or corpus in STABILISED
        yield Job(manifest.parent / path, key, split, row.get("identity") or key, corpus, follows)


# HDTF


def _hdtf_lists(source: Path) -> list[Path]:
    """The lists of times, in the folder itself or in the repository's folder of lists."""
    if not source.is_dir():
        return []
    return sorted([*source.glob("*_annotion_time.txt"), *source.glob("HDTF_dataset/*_annotion_time.txt")])


def _is_hdtf(source: Path) -> bool:
    return bool(_hdtf_lists(source))


def _read_hdtf(source: Path) -> Iterator[Job]:
    """Every listed interval of which there is a video: the downloaded one, or the clip that was cut out of it.

    The people are told apart by the names of the videos without their numbers (BobCasey0, BobCasey1), except where
    these name a broadcast (Radio11). A downloaded video is seen through the list's crop, if it has one; the crop is
    scaled where the video is not as high as the list of resolutions says.
    """
    videos = {path.stem: path for path in _videos(source)}
    for list_of_times in _hdtf_lists(source):
        subset = list_of_times.name.removesuffix("_annotion_time.txt")
        crops = _columns(list_of_times.with_name(f"{subset}_crop_wh.txt"))
        heights = _columns(list_of_times.with_name(f"{subset}_resolution.txt"))
        for name, times in _columns(list_of_times).items():
            identity = name if name.startswith("Radio") else re.sub(r"\d+$", "", name)
            for number, interval in enumerate(times):
                key = f"{subset}_{name}_{number}"
                cut = (f"{name}_{number}", key, f"{subset}_{name}_{number:03d}")
                path = next((videos[stem] for stem in cut if stem in videos), None)
                if path is not None:
                    yield Job(path, key, None, identity, "HDTF")
                    continue
                path = videos.get(name) or videos.get(f"{subset}_{name}")
                if path is not None:
                    start, stop = _interval(list_of_times, interval)
                    region, height = _crop(crops.get(f"{name}_{number}")), _number(heights.get(name))
                    yield Job(path, key, None, identity, "HDTF", False, start, stop, region, height)


def _columns(path: Path) -> dict[str, list[str]]:
    """Lines "NAME.mp4 VALUE VALUE …" of a list; {} where there is no such list."""
    if not path.is_file():
        return {}
    lines = (line.split() for line in path.read_text(encoding="utf-8-sig", errors="replace").splitlines())
    return {words[0].removesuffix(".mp4"): words[1:] for words in lines if words}


def _interval(path: Path, words: str) -> tuple[float, float]:
    """Seconds of "00:30-01:35" or "01:00:30-01:01:35"."""
    try:
        start, stop = (
            sum(float(part) * 60**power for power, part in enumerate(reversed(time.split(":"))))
            for time in words.split("-")
        )
    except ValueError:
        raise InputError(f"{path}: {words!r} is no interval such as 00:30-01:35") from None
    return start, stop


def _crop(words: list[str] | None) -> tuple[int, int, int, int] | None:
    """x, y, width, height of the list's "x width y height"; None where it has none, or a broken one."""
    if words is None or len(words) != 4 or not all(word.isdigit() for word in words):
        return None
    x, width, y, height = map(int, words)
    return x, y, width, height


def _number(words: list[str] | None) -> int:
    return int(words[0]) if words and words[0].isdigit() else 0


# LRS2


def _lrs2_root(source: Path) -> Path:
    return source / "mvlrs_v1" if (source / "mvlrs_v1").is_dir() else source


def _is_lrs2(source: Path) -> bool:
    root = _lrs2_root(source)
    return (root / "main").is_dir() and bool(_lrs2_list(root, "train"))


def _lrs2_list(root: Path, name: str) -> Path | None:
    return next((p for p in (root / f"{name}.txt", root.parent / f"{name}.txt") if p.is_file()), None)


def _read_lrs2(source: Path) -> Iterator[Job]:
    """The listed videos; pretrain.txt belongs to the training split. An identity is a recording's folder."""
    root = _lrs2_root(source)
    for name, split in (("pretrain", "train"), ("train", "train"), ("val", "val"), ("test", "test")):
        listed = _lrs2_list(root, name)
        if listed is None:
            continue
        folder = root / ("pretrain" if name == "pretrain" else "main")
        for line in listed.read_text(encoding="utf-8-sig").splitlines():
            words = line.split()  # ID/NUMBER, in the test list also whether there are several takes
            if words:
                recording, _, number = words[0].removesuffix(".mp4").partition("/")
                key = f"{folder.name}_{recording}_{number}"
                yield Job(folder / recording / f"{number}.mp4", key, split, recording, "LRS2")


# VoxCeleb2


def _is_voxceleb2(source: Path) -> bool:
    """Whether the first video below the folder is ID/VIDEO/NUMBER.mp4, as VoxCeleb names people."""
    return source.is_dir() and any(_vox_identity(path) for path in _first(_videos(source)))


def _first(paths: Iterator[Path]) -> list[Path]:
    return [path for path in [next(paths, None)] if path is not None]


def _vox_identity(path: Path) -> str | None:
    name = path.parts[-3] if len(path.parts) > 2 else ""
    return name if re.fullmatch(r"id\d{5}", name) and path.stem.isdigit() else None


def _read_voxceleb2(source: Path) -> Iterator[Job]:
    """ID/VIDEO/NUMBER.mp4 anywhere below; `test` is the test split, of `dev` a share may be drawn for val.

    The corpus' own clips follow the face.
    """
    for path in _videos(source):
        identity = _vox_identity(path)
        if identity is not None:
            above = [part for part in path.parts[:-3] if part in ("dev", "test")]
            split = "test" if above and above[-1] == "test" else None
            yield Job(path, "_".join(path.with_suffix("").parts[-3:]), split, identity, "VoxCeleb2", True)


# In the order in which a source is asked whether it is one.
LAYOUTS: dict[str, tuple[Callable[[Path], bool], Callable[[Path], Iterator[Job]]]] = {
    "manifest": (_is_manifest, _read_manifest),
    "hdtf": (_is_hdtf, _read_hdtf),
    "lrs2": (_is_lrs2, _read_lrs2),
    "voxceleb2": (_is_voxceleb2, _read_voxceleb2),
    "folder": (_is_folder, _read_folder),
}
