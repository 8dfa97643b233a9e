"""Faces of stored frames (`mssync.data.frames`), upright and of one size, in memory: what the painters see."""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from mssync.data.frames import Shown, read_frames
from mssync.faces import eye_opening, head_pose, mouth_opening
from mssync.render.organs import FACE, grid, placed, source_frame


class Windows:
    """The frames of one split, (N, 288, 256, 3) uint8, their meshes (N, 478, 3) in their pixels, and whose they are.

    people: a list of clips, each a range of frame numbers, for each person; pixels (N,): how many of the source's one of
    theirs is wide, so that what is enlarged has less than 1; mouths, eyes, yaw (N,): see `mssync.faces`.
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


def face_window(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The face of a picture (H, W, 3), with landmarks (478, 3), upright in (288, 256, 3); they in its pixels; and how
    many pixels of the picture one of these is wide."""
    import cv2

    height, width = FACE.size
    frame = source_frame(FACE, torch.from_numpy(landmarks)[None])[0].numpy()
    pixel = np.linalg.norm(frame[0, :2]) * 2 / width  # of the window, in pixels of the picture
    if pixel > 1.5:
        small = cv2.resize(image, None, fx=1 / pixel, fy=1 / pixel, interpolation=cv2.INTER_AREA)
        shrunk = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
    else:
        small, shrunk = image, np.ones(2)
    corners = grid(FACE.size)[[0, 0, -1], [0, -1, 0]][None]
    there = placed(torch.from_numpy(frame[None, :, :2]), corners)[0].numpy()
    there = (there + 0.5) * shrunk - 0.5
    here = np.array([[0, 0], [width - 1, 0], [0, height - 1]])
    matrix = cv2.getAffineTransform(there.astype(np.float32), here.astype(np.float32))
    out = cv2.warpAffine(small, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    uv = (landmarks[:, :2] - frame[2, :2]) @ np.linalg.inv(frame[:2, :2])
    points = uv * (width / 2) + np.array([width, height]) / 2 - 0.5
    return out, np.concatenate([points, landmarks[:, 2:] / pixel], 1).astype(np.float32), float(pixel)
