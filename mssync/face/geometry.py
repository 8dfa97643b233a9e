"""Views: upright squares around faces, in which networks see them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.faces import EYE_CORNERS

ROOM = 1.4  # side of a view in the larger side of the upright bounds of a face's mesh
ALIAS = 1.5  # pixels of a picture in one of a view, from which on the picture is shrunk first


@dataclass(frozen=True)
class Views:
    """Squares in B pictures: centre (B, 2) and side (B,) in pixels; roll (B,) in rad, clockwise in the picture.

    Pixel centres are at whole numbers.
    """

    centre: Tensor
    side: Tensor
    roll: Tensor

    def matrix(self) -> Tensor:
        """(B, 2, 2): from a view's [-1, 1] to pixels around its centre."""
        cos, sin = self.roll.cos(), self.roll.sin()
        turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
        return turn * (self.side / 2)[:, None, None]

    def to_picture(self, points: Tensor) -> Tensor:
        """Points (B, n, 2 or 3) in the views' [-1, 1] -> pixels; the third dimension, if any, in the same unit."""
        flat = points[..., :2] @ self.matrix().transpose(1, 2) + self.centre[:, None]
        return torch.cat([flat, points[..., 2:] * (self.side / 2)[:, None, None]], -1)

    def from_picture(self, points: Tensor) -> Tensor:
        """The inverse of `to_picture`."""
        flat = torch.linalg.solve(self.matrix(), (points[..., :2] - self.centre[:, None]).transpose(1, 2))
        return torch.cat([flat.transpose(1, 2), points[..., 2:] / (self.side / 2)[:, None, None]], -1)


def views_of(landmarks: Tensor) -> Views:
    """The views of faces whose meshes (B, 478, 2 or 3) are known: upright along the eyes, ROOM around the mesh."""
    left, right = (landmarks[:, corner, :2] for corner in EYE_CORNERS)
    across = right - left
    roll = torch.atan2(across[:, 1], across[:, 0])
    upright = Views(left, torch.full_like(roll, 2.0), roll)
    seen = upright.from_picture(landmarks[..., :2])
    low, high = seen.amin(1), seen.amax(1)
    centre = upright.to_picture(((low + high) / 2)[:, None])[:, 0]
    return Views(centre, ROOM * (high - low).amax(1), roll)


def cut(pictures: Tensor, views: Views, size: int) -> Tensor:
    """What views show of pictures (B, 3, H, W): (B, 3, size, size); beyond a picture its border goes on."""
    height, width = pictures.shape[-2:]
    finest = float(views.side.min()) / size
    if finest > ALIAS:
        small = (max(1, round(height / finest)), max(1, round(width / finest)))
        pictures = F.interpolate(pictures, small, mode="bilinear", antialias=True, align_corners=False)
    scale = torch.tensor([2 / width, 2 / height])
    offset = (views.centre + 0.5) * scale - 1
    theta = torch.cat([views.matrix() * scale[:, None], offset[..., None]], -1)
    grid = F.affine_grid(theta, [len(pictures), 3, size, size], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False, padding_mode="border")
