"""The face's surface behind a motion: where its mesh is, what it drags along, and how far mouth and eyes are open.

Nine keypoints are read linearly from the face mesh, and that reading can be undone (`mesh.fit_reading`). So the six
numbers of a keypoint need not stand for one affine motion alone: together they tell where every point of the mesh
goes, lids and lips included.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn

from mssync.faces import CANONICAL_FILE
from mssync.reenact.geometry import coordinate_grid, exact_geometry
from mssync.reenact.mesh import MESH_KEYPOINTS, OPENINGS, canonical_face, face_reading

# The mesh's motion is spread to pixels by Gaussians: (deviation in [-1, 1] coordinates, weight, every so many points).
# The wide ones count only where the narrow ones do not reach: they carry on the motion of the face's rim.
SPREADS = ((0.03, 1.0, 1), (0.12, 1e-2, 3), (0.5, 1e-5, 9))
DEGREE = 3  # of the polynomials that stand for the edges of lips and lids
SOFTNESS = 1.5 / 128  # of the edges of what is open: 1.5 pixels of 256
MAPS = 2  # mouth, eyes
EDGES_FILE = CANONICAL_FILE.with_name("opening_edges.npz")  # `fit_edges`, a matrix for each of OPENINGS


class Surface(nn.Module):
    """Motion (B, 10, 6) -> mesh (B, 478, 2) in [-1, 1], to 0.4 pixels of 256 on faces that were never trained on."""

    reading: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("reading", torch.from_numpy(face_reading().astype(np.float32)), persistent=False)

    def forward(self, motion: Tensor) -> Tensor:
        return _read(self.reading, motion[:, :MESH_KEYPOINTS])


@exact_geometry
def _read(reading: Tensor, motion: Tensor) -> Tensor:
    return (motion.flatten(1) @ reading[:-1] + reading[-1]).unflatten(1, (-1, 2))


@exact_geometry
def spread(points: Tensor, values: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Values (B, N, 2) at points (B, N, 2) -> maps (B, size, size, 2), and how near the points are (B, 1, size, size).

    Weighted means: sum_n w_n(z) v_n / sum_n w_n(z), w the Gaussians of SPREADS around the points.
    """
    axis = coordinate_grid(size, points)[0, :, 0]
    total: Tensor | float = 0.0
    near = None
    for deviation, weight, stride in SPREADS:
        at, what = points[:, ::stride], values[:, ::stride]
        bell = torch.exp(-0.5 * ((axis - at[..., None]) / deviation).square())  # (B, N, 2, size)
        what = torch.cat([what, torch.ones_like(what[..., :1])], -1).transpose(1, 2)  # (B, 3, N)
        rows = what[..., None] * bell[:, None, :, 1]  # (B, 3, N, size)
        part = weight * rows.transpose(2, 3) @ bell[:, None, :, 0]  # (B, 3, size, size)
        near = 1 - torch.exp(-part[:, 2:]) if near is None else near
        total = total + part
    assert isinstance(total, Tensor)
    assert near is not None
    tiny = torch.finfo(total.dtype).tiny
    return (total[:, :2] / (total[:, 2:] + tiny)).permute(0, 2, 3, 1), near


@exact_geometry
def openings(mesh: Tensor, size: int) -> Tensor:
    """Where mouth and eyes are open, maps (B, 2, size, size) in [0, 1] of a mesh (B, 478, 2).

    The edges of lips and lids are polynomials over the line from corner to corner; what lies between is open.
    """
    maps = [_opening(mesh, *edges, fit, size) for edges, fit in zip(OPENINGS.values(), _edges(), strict=True)]
    return torch.cat([maps[0], torch.maximum(maps[1], maps[2])], 1)


def _opening(mesh: Tensor, upper: tuple[int, ...], lower: tuple[int, ...], fit: np.ndarray, size: int) -> Tensor:
    """One map (B, 1, size, size). Along: (x, y) / half width; across: the same, turned right, so downwards."""
    left, right = mesh[:, upper[0]], mesh[:, upper[-1]]
    centre, half = (left + right) / 2, (right - left) / 2
    square = half.square().sum(-1).clamp_min(1e-4)
    across = torch.stack([-half[:, 1], half[:, 0]], -1) / square[:, None]
    along = half / square[:, None]
    solve = torch.from_numpy(fit).to(mesh)
    # coefficients (B, DEGREE + 1) of the two edges
    top, bottom = (
        torch.einsum("bni,bi->bn", mesh[:, list(edge)] - centre[:, None], across) @ solve.T for edge in (upper, lower)
    )
    away = coordinate_grid(size, mesh) - centre[:, None, None]
    u, v = (torch.einsum("bhwi,bi->bhw", away, axis) for axis in (along, across))
    sharp = square.sqrt()[:, None, None] / SOFTNESS
    inside = torch.sigmoid((v - _polynomial(top, u)) * sharp) * torch.sigmoid((_polynomial(bottom, u) - v) * sharp)
    return (inside * torch.sigmoid((1 - u.abs()) * sharp))[:, None]


def _polynomial(coefficients: Tensor, u: Tensor) -> Tensor:
    value = torch.zeros_like(u)
    for c in coefficients.flip(1).unbind(1):  # Horner
        value = value * u.clamp(-1, 1) + c[:, None, None]
    return value


@lru_cache(maxsize=1)
def _edges() -> list[np.ndarray]:
    with np.load(EDGES_FILE) as fits:
        return [fits[name] for name in OPENINGS]


def fit_edges() -> dict[str, np.ndarray]:
    """For each opening the least-squares fit (DEGREE + 1, points): heights of an edge's points to coefficients.

    Where the points lie along the line is taken from the canonical face.
    """
    fits = {}
    for name, (upper, _) in OPENINGS.items():
        x = canonical_face()[list(upper), 0]
        u = (x - (x[0] + x[-1]) / 2) / ((x[-1] - x[0]) / 2)
        fits[name] = np.linalg.pinv(np.vander(u, DEGREE + 1, increasing=True)).astype(np.float32)
    return fits
