"""Reenactment: an image to motion (10 keypoints with Jacobians), and motion back to pictures.

Models share an interface: the layered renderer (`mssync.render`) draws at any size, its keypoints are those of
``detector``; ``fomm`` is the first-order motion model exactly, for the public checkpoints, and draws squares of 256
pixels.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mssync.faces import Box

N_KEYPOINTS = 10
N_VALUES = 6  # x, y, then the Jacobian row by row
SIZE = 256  # pictures are SIZE × SIZE, float in [0, 1]


def to_tensor(images: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    images = np.require(images, requirements=["C", "W"])  # as torch wants them: a copy where they are read only
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255


def to_bytes(pictures: Tensor) -> Tensor:
    """Float (B, 3, H, W) in [0, 1] -> uint8 (B, H, W, 3)."""
    return (pictures * 255).round_().clamp_(0, 255).byte().permute(0, 2, 3, 1)


class Reenactor(Protocol):
    """What the rest of the package knows of a reenactment model."""

    space: str
    """The name of the motion space that its keypoints live in: see `mssync.motion`."""

    precision: str
    """In which numbers it draws: "float32" or "bfloat16"."""

    needs_landmarks: bool
    """Whether `keypoints` reads the face mesh, so that handing it over saves searching for it again."""

    rigid: tuple[int, ...]
    """Indices of the keypoints that move with the skull (all of them where the model does not tell)."""

    def keypoints(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(B, 3, 256, 256) in [0, 1] -> motion (B, 10, 6), coordinates in [-1, 1].

        landmarks: (B, 478, 3) of the face mesh in [-1, 1], where they are known already: a model that uses them
        then need not search for them, others ignore them.
        """
        ...

    def prepare(self, source: Tensor, motion: Tensor | None = None) -> Any:
        """Everything that depends on the source picture (1, 3, 256, 256) alone; motion: its keypoints if known."""
        ...

    def render(self, state: Any, motion: Tensor) -> Tensor:
        """Frames (B, 3, 256, 256) in [0, 1] of the prepared source under motion (B, 10, 6)."""
        ...


class SizedReenactor(Reenactor, Protocol):
    """A reenactor that draws pictures in their own size."""

    any_size: bool

    def prepare_picture(self, picture: np.ndarray, box: Box, landmarks: np.ndarray, motion: Tensor) -> Any:
        """Everything that depends on the portrait alone.

        picture (H, W, 3) uint8; box: the part of it that is animated; landmarks (478, 3) in its pixels; motion
        (1, 10, 6): the keypoints of the box.
        """
        ...

    def ready(self, prepared: Any, size: int | None) -> None:
        """Compute now, on all cores, what the first frame of this size would wait for."""
        ...

    def draw(self, prepared: Any, motion: Tensor, size: int | None, mesh: Tensor | None = None) -> Tensor:
        """Frames (B, h, w, 3) uint8 under motion (B, 10, 6): the box at size × size, or (None) the whole picture.

        mesh: (B, 478, 2) in the box's [-1, 1], where it is known; else it is read from the motion.
        """
        ...
