"""What a prepared folder holds, and reading it.

``index.csv`` lists the clips (`Entry`); they lie in shards ``SPLIT-000000.tar``, each as

=====================  ==========================================================================
``KEY.json``           identity, corpus, source, start (s), frames, style, stabilised, quality
``KEY.npz``            see below
``KEY.jpgs``           the 256 × 256 frames, JPEG, one after the other
``KEY.motion.npz``     only with ``preprocess --model``: see `mssync.data.sequences`
=====================  ==========================================================================

==========  =====================  ==============================================================
offsets     (T + 1,) int64         frame t is bytes offsets[t]:offsets[t + 1] of KEY.jpgs
landmarks   (T, 478, 3) float16    mesh points in the crop, [-1, 1], x right, y down, z away
waveform    (n,) int16             16 kHz mono
audio       (4T, 26) float32       features of the sound, four a frame (the settings say which kind)
boxes       (T, 3) float32         x0, y0, side of the crop in the source's pixels
==========  =====================  ==============================================================
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import numpy as np

from mssync.data import shards
from mssync.errors import InputError, written_whole
from mssync.pixels import decode_jpeg

SIZE = 256  # side of the prepared frames, in pixels
SPLITS = ("train", "val", "test")
IN_MEMORY = 1024  # clips whose arrays (landmarks, sound; about 4 kB a frame) a process remembers
INDEX = "index.csv"


@dataclass(frozen=True)
class Entry:
    """One line of index.csv. name: the clip's KEY; shard: the file that holds it."""

    name: str
    split: str
    identity: str
    corpus: str
    frames: int
    stabilised: bool
    source: str
    shard: str


class Clip:
    """One prepared clip. Arrays are read when first used; frames are decoded one at a time.

    It holds no file open and no data, so it can be sent to other processes.
    """

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder, self.entry = folder, entry

    def __len__(self) -> int:
        return self.entry.frames

    @property
    def shard(self) -> Path:
        return self.folder / self.entry.shard

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays of KEY.npz (see above); read-only, for they are shared."""
        return _arrays(self.shard, f"{self.entry.name}.npz")

    @property
    def landmarks(self) -> np.ndarray:
        """(T, 478, 3) float32 in the crop's [-1, 1] (z in the same unit)."""
        return self.arrays["landmarks"].astype(np.float32)

    def marks(self, t: int) -> np.ndarray:
        """(478, 2) float32: the landmarks of frame t in the picture's plane."""
        return self.arrays["landmarks"][t, :, :2].astype(np.float32)

    @property
    def waveform(self) -> np.ndarray:
        """(n,) float32, 16 kHz mono."""
        return self.arrays["waveform"].astype(np.float32) / 32767

    def frame(self, t: int) -> np.ndarray:
        """Frame t as (256, 256, 3) uint8 RGB."""
        start, stop = self.arrays["offsets"][t : t + 2]
        first, _ = shards.locate(self.shard, f"{self.entry.name}.jpgs")
        return decode_jpeg(shards.read(self.shard, first + int(start), int(stop - start)))


@lru_cache(maxsize=IN_MEMORY)
def _arrays(shard: Path, name: str) -> dict[str, np.ndarray]:
    arrays = shards.read_npz(shard, name)
    for array in arrays.values():
        array.flags.writeable = False
    return arrays


def read_clips(folder: str | Path, split: str) -> list[Clip]:
    """The clips of one split of a prepared folder.

    Raises InputError when the folder was not made by ``mssync preprocess`` or has no clip of that split.
    """
    folder = Path(folder)
    clips = [Clip(folder, entry) for entry in read_index(folder) if entry.split == split]
    if not clips:
        raise InputError(f"{folder}: no clips of the split {split!r} in {INDEX}")
    return clips


def read_index(folder: Path) -> list[Entry]:
    """All entries of index.csv. Raises InputError when there is none, or it is damaged."""
    index = folder / INDEX
    if not index.is_file():
        raise InputError(f"{folder}: no {INDEX}; make this folder with `mssync preprocess SOURCE -o {folder}`")
    with index.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    try:
        return [_entry(row) for row in rows]
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{index}: damaged, or of an older version; make this folder again") from error


def _entry(row: dict[str, str]) -> Entry:
    return Entry(
        row["name"], row["split"], row["identity"], row["corpus"],
        int(row["frames"]), row["stabilised"] == "True", row["source"], row["shard"],
    )  # fmt: skip


def write_index(folder: Path, entries: Iterable[Entry]) -> None:
    """Write index.csv, sorted by name."""
    with written_whole(folder / INDEX, ".csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Entry)])
        writer.writeheader()
        writer.writerows(asdict(e) for e in sorted(entries, key=lambda e: e.name))
