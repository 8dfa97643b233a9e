"""Geometry of the warp: thin-plate splines, and the view of a head that turns.

Points are (..., n, 2) as (x, y), y down; a field tells for places of the new picture where their pixels lie in the
source, as an offset in the same unit.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Points that speech hardly moves: eye corners, nose, forehead, and the sides of the head, which give it depth.
# fmt: off
RIGID = (
    33, 133, 362, 263, 168, 6, 197, 195, 5, 4, 1, 2, 98, 327, 8, 9, 151, 10,
    127, 356, 234, 454, 162, 389, 21, 251,
)
# fmt: on
NEAR_ZERO = 1e-9


def kernel(squared: Tensor) -> Tensor:
    """U = r² log r² of squared distances: the thin plate's Green's function (Bookstein 1989), times 2."""
    return squared * torch.log(squared.clamp_min(NEAR_ZERO))


def squared_distances(one: Tensor, two: Tensor) -> Tensor:
    """(..., n, 2), (..., m, 2) -> (..., n, m)."""
    cross = one @ two.transpose(-1, -2)
    return (one.square().sum(-1)[..., None] + two.square().sum(-1)[..., None, :] - 2 * cross).clamp_min(0)


def thin_plate(at: Tensor, values: Tensor, where: Tensor, stiffness: float | Tensor) -> Tensor:
    """Smoothing thin-plate spline through values (B, n, c) at points (B, n, 2), evaluated at `where` (B or 1, m, 2).

    stiffness: of the plate, a number or (n,) or (B, n): larger ones follow the values less. Returns (B, m, c).
    """
    batch, count = at.shape[:2]
    centre = at.mean(1, keepdim=True)
    exact = (at - centre).double()
    ones = torch.ones_like(exact[..., :1])
    affine = torch.cat([ones, exact], -1)
    bending = kernel(squared_distances(exact, exact))
    stiff = torch.as_tensor(stiffness, dtype=exact.dtype, device=at.device).expand(batch, count)
    top = torch.cat([bending + torch.diag_embed(stiff), affine], -1)
    bottom = torch.cat([affine.transpose(1, 2), exact.new_zeros(batch, 3, 3)], -1)
    wanted = torch.cat([values.double(), exact.new_zeros(batch, 3, values.shape[-1])], 1)
    weights = torch.linalg.solve(torch.cat([top, bottom], 1), wanted).to(at.dtype)
    places = (where - centre).expand(batch, -1, -1)
    spline = kernel(squared_distances(places, at - centre)) @ weights[:, :count]
    return spline + weights[:, count : count + 1] + places @ weights[:, count + 1 :]


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
