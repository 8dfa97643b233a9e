"""Geometry of the warp: thin-plate splines, and the view of a head that turns.

Points are (..., n, 2) as (x, y), y down; a field tells for places of the new picture where their pixels lie in the
source, as an offset in the same unit.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Points that speech hardly moves: eye corners, nose, forehead, and the sides of the head, which give it depth.
# fmt: off
RIGID = (
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 8, 9, 151, 10,
    127, 356, 234, 454, 162, 389, 21, 251,
)
# fmt: on
NEAR_ZERO = 1e-9
TRIES, RESIDUAL = 3, 1e-6  # of solving, and what may be left, in the unit of the values
AT_ONCE = 1024  # places at which a spline is evaluated in one go: what that takes stays in the processor's cache
MEETING = (0.3, 0.6)  # shares of their distance at which two points' deeper one stops to count, and counts in full


def eased(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """0 up to `low`, 1 from `high` on, a smooth step between."""
    x = ((x - low) / (high - low)).clamp(0, 1)
    return x * x * (3 - 2 * x)


def bent(one: Tensor, two: Tensor) -> Tensor:
    """U = r² log r² of the distances r of points (B, n, 2) and (B, m, 2): (B, n, m). Twice Bookstein's (1989)."""
    left = torch.cat([-2 * one, one.square().sum(-1, keepdim=True), torch.ones_like(one[..., :1])], -1)
    right = torch.cat([two, torch.ones_like(two[..., :1]), two.square().sum(-1, keepdim=True)], -1)
    squared = (left @ right.transpose(1, 2)).clamp_min_(NEAR_ZERO)
    return squared.log().mul_(squared)


@torch.no_grad()
def thin_plate(at: Tensor, values: Tensor, where: Tensor, stiffness: float | Tensor) -> Tensor:
    """Smoothing thin-plate spline through values (B, n, c) at points (B, n, 2), evaluated at `where` (m, 2).

    stiffness: of the plate, a number or (n,) or (B, n): larger ones follow the values less. Returns (B, m, c).
    """
    batch, count = at.shape[:2]
    exact = at.double()
    affine = torch.cat([torch.ones_like(exact[..., :1]), exact], -1)
    stiff = torch.as_tensor(stiffness, dtype=exact.dtype, device=at.device).expand(batch, count)
    top = torch.cat([bent(exact, exact) + torch.diag_embed(stiff), affine], -1)
    bottom = torch.cat([affine.transpose(1, 2), exact.new_zeros(batch, 3, 3)], -1)
    wanted = torch.cat([values.double(), exact.new_zeros(batch, 3, values.shape[-1])], 1)
    weights = torch.stack([solved(*pair) for pair in zip(torch.cat([top, bottom], 1), wanted, strict=True)]).to(
        at.dtype
    )
    spline, plane = weights[:, :count], weights[:, count:]
    found = [
        bent(part.expand(1, -1, -1), at[b : b + 1]) @ spline[b : b + 1] + plane[b, :1] + part @ plane[b, 1:]
        for b in range(batch)
        for part in where.split(AT_ONCE)
    ]
    return torch.cat(found, 1).view(batch, len(where), -1)


def solved(matrix: Tensor, wanted: Tensor) -> Tensor:
    """x of matrix @ x = wanted, (n, n) and (n, c) float64, looked at.

    One by one: of some ten thousand batches, MKL's LU gave one back with pivots of 0 while its threads were busy.
    Raises RuntimeError where TRIES do not find it.
    """
    for turn in range(TRIES):
        try:
            found = torch.linalg.solve(matrix, wanted)
        except RuntimeError:
            if turn == TRIES - 1:
                raise
            continue
        if (matrix @ found - wanted).abs().max() < RESIDUAL:
            return found
    raise RuntimeError("the equations of a spline cannot be solved")


@lru_cache(maxsize=32)
def enlarging(cells: int, pixels: int) -> Tensor:
    """(pixels, cells): what a column of cells is multiplied with, so that it becomes one of pixels; cubic."""
    rows = torch.eye(cells)[:, None, None]
    return F.interpolate(rows, size=(1, pixels), mode="bicubic", antialias=True)[:, 0, 0].T


def affine(matrix: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """[x, y, 1] @ matrix (3, 2) for coordinates that broadcast to (h, w) -> (2, h, w)."""
    return torch.stack([x * m[0] + y * m[1] + m[2] for m in matrix.T])


def view_solver(source: Tensor) -> Tensor:
    """What turns the RIGID points of a new picture into its view of the head: (B, 4, n) of a source (B, 478, 3)."""
    rigid = source[:, list(RIGID)]
    lifted = torch.cat([rigid, torch.ones_like(rigid[..., :1])], -1)
    return torch.linalg.pinv(lifted)


def view(solver: Tensor, mesh: Tensor) -> Tensor:
    """The affine view (B, 4, 2) in which a head is seen: a point (x, y, z) of the source is at [x, y, z, 1] @ view.

    solver: `view_solver` of the source (B or 1, 4, n); mesh (B, 478, 2). Least squares on the RIGID points.
    """
    return solver @ mesh[:, list(RIGID)]


def seen(points: Tensor, head: Tensor) -> Tensor:
    """Points (B or 1, n, 3) of the source's head in a `view` (B, 4, 2) -> (B, n, 2)."""
    return points @ head[:, :3] + head[:, 3:]


class Hiding:
    """Which of some points of a head a turn brings behind others: they must not pull at the warp.

    points: (n, 3) as the source shows them. Where a view draws near points together, or past each other, the deeper
    one of them is hidden.
    """

    def __init__(self, points: Tensor, reach: float) -> None:
        """reach: how far apart points may be that hide each other, in the unit of the points."""
        self.points = points
        self.between = points[:, None] - points
        square = self.between[..., :2].square().sum(-1)
        self.near = (square < reach**2) & (square > NEAR_ZERO)
        self.along = torch.where(
            self.near[..., None], self.between[..., :2] / square[..., None].clamp_min(NEAR_ZERO), 0.0
        )

    def __call__(self, head: Tensor) -> Tensor:
        """Views (B, 4, 2) -> (B, n): 0 for a point that is seen, 1 for one that is hidden."""
        linear = head[:, :3]
        camera = torch.linalg.cross(linear[..., 0], linear[..., 1])
        scale = camera.norm(dim=1).sqrt()
        deeper = torch.einsum("ijk,bk->bij", self.between, camera) > 0
        # along a pair of points: 1 where a view keeps their distance, 0 where they meet, less where they pass
        kept = torch.einsum("ijk,bkl,ijl->bij", self.between, linear, self.along) / scale[:, None, None]
        low, high = MEETING
        close = ((high - kept) / (high - low)).clamp(0, 1) * (self.near & deeper)
        return eased(close.amax(2))
