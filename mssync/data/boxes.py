"""Stored frames (`mssync.data.frames`) as the renderer sees them: the box that is animated, with mesh and keypoints."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mssync.data.frames import Shown, read_frames
from mssync.faces import Face, crop, crop_box, in_crop
from mssync.reenact import SIZE as KEYPOINT_SIZE
from mssync.reenact import to_tensor

SIZE = 192  # pixels


class Boxes:
    """The frames of one split, (N, 192, 192, 3) uint8, their meshes (N, 478, 3) in their pixels and motion (N, 10, 6).

    clips: a range of frame numbers for each. Kept in FOLDER/boxes.
    """

    def __init__(self, folder: str | Path, split: str, renderer: Any) -> None:
        """renderer: reads the motion."""
        cache = Path(folder) / "boxes" / split
        cache.parent.mkdir(exist_ok=True)
        if not cache.with_suffix(".npz").exists():
            _make(read_frames(folder, split), cache, renderer)
        self.images = np.load(cache.with_suffix(".npy"), mmap_mode="r")
        with np.load(cache.with_suffix(".npz")) as file:
            self.meshes, self.motion, starts = file["meshes"], file["motion"], file["starts"]
        self.clips = [range(a, b) for a, b in pairwise(starts)]


def _make(clips: list[Shown], cache: Path, renderer: Any) -> None:
    clips = [clip for clip in clips if len(clip) > 1]
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda clip: _boxed(clip, renderer), clips))
    images, meshes, motion = (np.concatenate([part[k] for part in parts]) for k in range(3))
    np.save(cache.with_suffix(".npy"), images)
    starts = np.cumsum([0, *map(len, clips)])
    np.savez(cache.with_suffix(".npz"), meshes=meshes, motion=motion, starts=starts)


@torch.inference_mode()
def _boxed(clip: Shown, renderer: Any) -> tuple[np.ndarray, ...]:
    height, width = clip.frame(0).shape[:2]
    box = crop_box([Face(points) for points in clip.landmarks], width, height)
    images, motion = [], []
    for t, points in enumerate(clip.landmarks):
        frame = clip.frame(t)
        images.append(crop(frame, box, SIZE))
        small = to_tensor(crop(frame, box, KEYPOINT_SIZE)[None])
        motion.append(renderer.keypoints(small, torch.from_numpy(in_crop(points, box))[None])[0].numpy())
    scale = SIZE / box.side
    shift = np.array([box.x0, box.y0, 0]) * scale - np.array([1, 1, 0]) * (scale - 1) / 2  # of pixel centres
    return np.stack(images), (clip.landmarks * scale - shift).astype(np.float32), np.stack(motion)
