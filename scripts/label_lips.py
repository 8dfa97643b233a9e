"""Label speech with what lips would do: `python scripts/label_lips.py LABELS DATA`, after `scripts/label_speech.py`.

LABELS: what that script wrote, of the videos that DATA (`mssync preprocess`, offsets corrected) was prepared from and
of any other speech. Small readers (`mssync.training.lips`) learn from the clips of `train` what the teacher's features
say about the lips, each without a fifth of the people; then they read all recordings, whoever they have learned from
only those that have not. So hours of speech that nobody was filmed for tell the speech encoder, too, what matters to a
mouth. Adds `lips` (n // 320, 8) float16 to each NAME.npz: the columns of `shape`, each in units of its deviation over
`train`; lips 2 t is of video frame t. A minute of training a reader on two cores, and seconds an hour of speech.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track

from mssync.data.clips import read_clips
from mssync.faces import CHIN, INNER_LIPS, MOUTH_CORNERS
from mssync.metrics.frontal import frontalised
from mssync.metrics.speech import teacher
from mssync.speech import PER_VIDEO
from mssync.training.lips import Reader, fit_reader, heard

READERS = 5  # each of them learns from all people but a fifth
TRAININGS = 2  # of each, whose answers are averaged
OUTER_LIPS = (0, 17)  # mesh points: the upper lip's upper rim, the lower lip's lower rim
CLOSED = 0.02  # distances of the eye corners: differences of gaps far below it do not count


def main(labels: str, data: str) -> None:
    folder = Path(labels)
    clips = list(heard(teacher(folder), shape, data, "train"))
    identities = {Path(clip.entry.source).stem: clip.entry.identity for clip in read_clips(data, "train")}
    names = np.random.default_rng(0).permutation(sorted({clip.identity for clip in clips}))
    parts = {name: k % READERS for k, name in enumerate(names)}
    readers = [
        [
            fit_reader([clip for clip in clips if parts[clip.identity] != part], TRAININGS * part + k)
            for k in range(TRAININGS)
        ]
        for part in track(range(READERS), "readers")
    ]
    with (folder / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    read = {}
    for row in track(rows, "recordings"):
        with np.load(folder / f"{row['name']}.npz") as arrays:
            known = parts.get(identities.get(row["name"], row["speaker"]))
            asked = [r for part, pair in enumerate(readers) if known in (None, part) for r in pair]
            read[row["name"]] = _read(asked, arrays["labels"])
    spread = np.concatenate([read[row["name"]] for row in rows if row["split"] == "train"]).std(0)
    for name, lips in read.items():
        path, unfinished = folder / f"{name}.npz", folder / "unfinished.npz"
        with np.load(path) as arrays:
            np.savez(unfinished, **{**arrays, "lips": (lips / spread).astype(np.float16)})
        unfinished.replace(path)


def shape(landmarks: NDArray[np.float32]) -> NDArray:
    """Lips of faces (T, 478, 3) -> (T, 8): gap, its logarithm (which tells closed from nearly closed), width; how low
    chin, upper lip and lower lip are; how far the lips stand out, and how low the corners are, before the lips."""
    face = frontalised(landmarks)
    lips, ends = face[:, INNER_LIPS], face[:, MOUTH_CORNERS]  # upper and lower, left and right: (T, 2, 3)
    gap, width = (np.linalg.norm(pair[:, 0] - pair[:, 1], axis=-1) for pair in (lips, ends))
    corners, middle = ends.mean(1), lips.mean(1)
    columns = [gap, np.log(gap + CLOSED), width]
    columns += [face[:, point, 1] for point in (CHIN, *OUTER_LIPS)]
    columns += [(middle - corners)[:, 2], corners[:, 1] - lips[:, 0, 1]]
    return np.stack(columns, 1)


@torch.inference_mode()
def _read(readers: list[Reader], labels: NDArray[np.float16]) -> NDArray[np.float32]:
    """Lips (n, 8) that readers see in the teacher's labels (n, 96), two of which are a video frame."""
    count = len(labels)
    padded = torch.from_numpy(np.pad(labels, ((0, 2 * PER_VIDEO), (0, 0)), mode="edge")).float()
    lips = torch.zeros(count, readers[0].out.out_features)
    for phase in range(PER_VIDEO):
        frames = padded[phase:].unfold(0, PER_VIDEO, PER_VIDEO).transpose(1, 2).flatten(1)
        said = torch.stack([reader(frames[None])[0] for reader in readers]).mean(0)
        lips[phase::PER_VIDEO] = said[: len(lips[phase::PER_VIDEO])]
    return lips.numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
