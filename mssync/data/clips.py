"""Reading prepared clips (see prepare.py for what a prepared folder holds)."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mssync.data.prepare import Entry
from mssync.errors import InputError


class Clip:
    """One prepared clip. Arrays are read when first used; frames are decoded one at a time."""

    def __init__(self, folder: Path, entry: Entry) -> None:
        self.folder, self.entry = folder, entry
        self._arrays: dict[str, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.entry.frames

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            with np.load(self.folder / f"{self.entry.name}.npz") as data:
                self._arrays = dict(data)
        return self._arrays

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
        import cv2

        start, stop = self.arrays["offsets"][t : t + 2]
        with (self.folder / f"{self.entry.name}.jpgs").open("rb") as file:
            file.seek(int(start))
            blob = file.read(int(stop - start))
        return np.ascontiguousarray(cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])


def read_clips(folder: str | Path, split: str) -> list[Clip]:
    """The clips of one split of a prepared folder.

    Raises InputError when the folder was not made by ``mssync preprocess`` or has no clip of that split.
    """
    folder = Path(folder)
    index = folder / "index.csv"
    if not index.is_file():
        raise InputError(f"{folder}: no index.csv; make this folder with `mssync preprocess SOURCE -o {folder}`")
    with index.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    if not rows:
        raise InputError(f"{folder}: no clips of the split {split!r} in index.csv")
    try:
        return [Clip(folder, _entry(row)) for row in rows]
    except (KeyError, ValueError) as error:
        raise InputError(f"{index}: damaged ({error}); remove it and run `mssync preprocess` again") from error


def _entry(row: dict[str, str]) -> Entry:
    return Entry(
        row["name"], row["split"], row["identity"], row["corpus"],
        int(row["frames"]), row["stabilised"] == "True", row["source"],
    )  # fmt: skip
