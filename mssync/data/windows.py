"""Faces of stored frames (`mssync.data.frames`), upright and of one size, in memory: what the painters see."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from mssync.data.frames import Shown, read_frames
from mssync.faces import eye_opening, head_pose, mouth_opening
from mssync.render.organs import face_window


class Windows:
    """The frames of one split, (N, 288, 256, 3) uint8, their meshes (N, 478, 3) in their pixels, and whose they are.

    people: a list of clips, each a range of frame numbers, for each person; pixels (N,): how many of the source's one
    of theirs is wide, so that what is enlarged has less than 1; mouths, eyes, yaw (N,): see `mssync.faces`.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        cache = Path(folder) / "windows" / split
        cache.parent.mkdir(exist_ok=True)
        if not cache.with_suffix(".npz").exists():
            _make(read_frames(folder, split), cache)
        self.images = np.load(cache.with_suffix(".npy"), mmap_mode="r")
        with np.load(cache.with_suffix(".npz")) as file:
            self.meshes, starts, who = file["meshes"], file["starts"], file["who"]
            self.pixels = file["pixels"]
        self.people: dict[str, list[range]] = defaultdict(list)
        for name, a, b in zip(who, starts, starts[1:], strict=False):
            self.people[str(name)].append(range(a, b))
        self.mouths, self.eyes = mouth_opening(self.meshes), eye_opening(self.meshes)
        self.yaw = head_pose(self.meshes)[:, 0]

    def __len__(self) -> int:
        return len(self.images)


def _make(clips: list[Shown], cache: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(_faces, clips))
    images = np.concatenate([images for images, _, _ in parts])
    np.save(cache.with_suffix(".npy"), images)
    starts = np.cumsum([0, *(len(images) for images, _, _ in parts)])
    who = np.array([clip.identity for clip in clips])
    meshes, pixels = (np.concatenate([part[k] for part in parts]) for k in (1, 2))
    np.savez(cache.with_suffix(".npz"), meshes=meshes, pixels=pixels, starts=starts, who=who)


def _faces(clip: Shown) -> tuple[np.ndarray, ...]:
    found = [face_window(clip.frame(t), clip.landmarks[t]) for t in range(len(clip))]
    images, meshes, pixels = zip(*found, strict=True)
    return np.stack(images), np.stack(meshes), np.array(pixels, np.float32)
