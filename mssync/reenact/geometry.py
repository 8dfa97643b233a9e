"""What the reenactors share, exact geometry; and the compact one's coordinates and warping."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

T = TypeVar("T")

FARTHEST = 3.0  # coordinates are sampled no farther away: the border is repeated there anyway
MIN_DETERMINANT = 0.05  # a flatter driving Jacobian is not inverted further


def exact_geometry(function: Callable[..., T]) -> Callable[..., T]:
    """Run in float32 whatever autocast says: in bfloat16 a coordinate near 1 is half a pixel coarse."""

    @wraps(function)
    def exact(*tensors: Any) -> T:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*(x.float() if isinstance(x, Tensor) else x for x in tensors))

    return exact


def coordinate_grid(size: int, like: Tensor) -> Tensor:
    """Pixel centres of a size × size picture, (size, size, 2) as (x, y) in (-1, 1)."""
    at = (torch.arange(size, device=like.device, dtype=torch.float32) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)


def split(motion: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 10, 6) -> coordinates (..., 10, 2) and Jacobians (..., 10, 2, 2)."""
    return motion[..., :2], motion[..., 2:].unflatten(-1, (2, 2))


def inverse(jacobian: Tensor) -> Tensor:
    """Inverse of (..., 2, 2), finite for any input: the determinant is kept MIN_DETERMINANT away from zero."""
    (a, b), (c, d) = jacobian[..., 0, :].unbind(-1), jacobian[..., 1, :].unbind(-1)
    determinant = a * d - b * c
    safe = torch.where(determinant < 0, -1.0, 1.0) * determinant.abs().clamp_min(MIN_DETERMINANT)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / safe[..., None, None]


def warp(image: Tensor, offset: Tensor, view: Tensor | None = None) -> Tensor:
    """Sample (B, C, s, s) at identity + offset; offset (B, h, h, 2) is resized to s. Zero offset: the identity.

    view: (B, 3) of x, y, scale where the offset is given for a square window of the picture alone (see
    `windowed`); the window is drawn, at the picture's resolution.
    """
    size = image.shape[-1] if view is None else round(image.shape[-1] * float(view[0, 2]))
    if offset.shape[1] != size:
        offset = F.interpolate(
            offset.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
    grid = coordinate_grid(size, image)
    if view is not None:
        grid = grid * view[:, None, None, 2:] + view[:, None, None, :2]
    # Free of nan, on which the backward pass of grid_sample crashes (PyTorch 2.13, CPU), and of far away places.
    at = (grid + offset).nan_to_num(0.0).clamp(-FARTHEST, FARTHEST)
    image = image.expand(offset.shape[0], -1, -1, -1).to(at.dtype)
    return F.grid_sample(image, at, padding_mode="border", align_corners=False)


def windowed(x: Tensor, view: Tensor) -> Tensor:
    """Cut windows out of maps (B, C, s, s): view (B, 3) holds their centres (x, y) in [-1, 1] and size / s, one size.

    Corners are rounded to the pixels of x.
    """
    size = x.shape[-1]
    side = round(size * float(view[0, 2]))
    corner = ((view[:, :2] + 1) / 2 * size - side / 2).round().long().clamp(0, size - side)
    return torch.stack([m[:, b : b + side, a : a + side] for m, (a, b) in zip(x, corner.tolist(), strict=True)])
