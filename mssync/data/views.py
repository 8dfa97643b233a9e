"""Stored frames (`mssync.data.frames`) as networks that find faces see them: squares around faces, room to turn."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mssync.data.frames import Shown, read_frames
from mssync.face.geometry import ROOM, Views, cut

SIZE = 320  # pixels
AROUND = 2.4  # side of a square in the larger side of a mesh's bounds


class Squares:
    """The frames of one split, images (N, 320, 320, 3) uint8, and meshes (N, 478, 3) float32 in their pixels.

    identities: (N,) whose they are; wide: whether whole frames are shown. Kept in FOLDER/squares.
    """

    def __init__(self, folder: str | Path, split: str, wide: bool = False) -> None:
        cache = Path(folder) / "squares" / (f"{split}_wide" if wide else split)
        cache.parent.mkdir(exist_ok=True)
        if not cache.with_suffix(".npz").exists():
            _make(read_frames(folder, split), cache, wide)
        self.images = np.load(cache.with_suffix(".npy"), mmap_mode="r")
        with np.load(cache.with_suffix(".npz")) as file:
            self.meshes, self.identities = torch.from_numpy(file["meshes"]), file["identities"]

    def __len__(self) -> int:
        return len(self.images)

    def pictures(self, numbers: np.ndarray) -> Tensor:
        """Images (B, 3, 320, 320) in [0, 1]."""
        return torch.from_numpy(np.stack([self.images[n] for n in numbers])).permute(0, 3, 1, 2).float() / 255


def _make(clips: list[Shown], cache: Path, wide: bool) -> None:
    bounds = np.cumsum([0, *map(len, clips)])
    images = np.lib.format.open_memmap(cache.with_suffix(".npy"), "w+", np.uint8, (int(bounds[-1]), SIZE, SIZE, 3))
    meshes = np.empty((len(images), 478, 3), np.float32)
    for clip, (first, stop) in zip(clips, pairwise(bounds.tolist()), strict=True):
        images[first:stop], meshes[first:stop] = _squares(clip, wide)
    images.flush()
    identities = np.repeat([clip.identity for clip in clips], np.diff(bounds))
    np.savez(cache.with_suffix(".npz"), meshes=meshes, identities=identities)


def _squares(clip: Shown, wide: bool) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for t, mesh in enumerate(torch.from_numpy(clip.landmarks)):
        low, high = mesh[:, :2].amin(0), mesh[:, :2].amax(0)
        side = AROUND * (high - low).max()
        if wide:
            side = side.clamp_min(max(clip.frame(t).shape[:2]))
        view = Views(((low + high) / 2)[None], side[None], torch.zeros(1))
        picture = torch.from_numpy(clip.frame(t)).permute(2, 0, 1)[None].float()
        image = cut(picture, view, SIZE)[0].permute(1, 2, 0).round().byte()
        points = (view.from_picture(mesh[None])[0] + torch.tensor([1.0, 1.0, 0.0])) * (SIZE / 2)
        found.append((image.numpy(), (points - torch.tensor([0.5, 0.5, 0.0])).numpy()))
    images, meshes = zip(*found, strict=True)
    return np.stack(images), np.stack(meshes)


assert AROUND > ROOM  # a view may turn and grow within its square
