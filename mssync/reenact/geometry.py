"""Geometry of keypoints, exact whatever the precision of drawing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

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
