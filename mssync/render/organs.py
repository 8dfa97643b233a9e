"""Mouth and eyes: windows that are fixed to the skull, what is open in them, and the warp inside.

A window is a rectangle of the source's head, carried along by the head's view. Its coordinates are (u, v), u from -1
to 1 along the line of the eyes, v across it in the same unit: what is fixed to the skull, as the upper teeth are, stays
where it is in every frame. Of the eye on the right everything is mirrored, so that one network paints both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mssync.faces import mirror_points
from mssync.metrics.frontal import mean_face
from mssync.pixels import shrunk, warped
from mssync.render.field import enlarging, seen, thin_plate

# fmt: off
EYE_RINGS = (
    130, 247, 30, 29, 27, 28, 56, 190, 243, 112, 26, 22, 23, 24, 110, 25,
    226, 113, 225, 224, 223, 222, 221, 189, 244, 233, 232, 231, 230, 229, 228, 31,
    70, 63, 105, 66, 107, 46, 53, 52, 65, 55, 168, 6, 193, 122, 143, 116, 117, 118, 119, 100, 47,
)
AROUND_MOUTH = (
    2, 98, 327, 164, 167, 393, 165, 391, 92, 322, 186, 410, 57, 287, 43, 273, 106, 335, 182, 406, 83, 313, 18,
    205, 425, 187, 411, 212, 432, 216, 436, 206, 426, 200, 199, 175, 152, 148, 377, 176, 400, 149, 378,
)
# fmt: on
CHIN_POINTS = (152, 148, 377, 175, 199)  # of the jaw
STIFFNESS = 1e-3  # of the warp inside a window, in its coordinates
EDGE = 1.5  # pixels of the window over which an edge goes from 0 to 1


@dataclass(frozen=True)
class Organ:
    """An opening of the face.

    upper, lower: points of the opening's edges, from the left corner to the right one; outer: the same of the lips'
    outline, or none; near: further points by which the skin around is warped; centre, depth: of the window in the mean
    face (x, y, z in distances of the outer eye corners); width: half of it in the same unit; size: height and width in
    pixels; iris: centre and rim, or none; narrow: widths, in those of the source, at which a turn has hidden the
    opening, and at which it is still seen in full.
    """

    upper: tuple[int, ...]
    lower: tuple[int, ...]
    outer: tuple[tuple[int, ...], tuple[int, ...]] | None
    near: tuple[int, ...]
    centre: tuple[float, float]
    depth_points: tuple[int, ...]
    width: float
    size: tuple[int, int]
    iris: tuple[int, ...] = ()
    narrow: tuple[float, float] = (0.2, 0.3)

    @property
    def points(self) -> list[int]:
        outer = self.outer or ((), ())
        return sorted({*self.upper, *self.lower, *outer[0], *outer[1], *self.near})


# fmt: off
MOUTH = Organ(
    upper=(78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308),
    lower=(78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308),
    outer=((61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291), (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291)),
    near=AROUND_MOUTH, centre=(0.0, 0.88), depth_points=(2, 164, 61, 291), width=0.5333, size=(96, 128),
)
EYE = Organ(
    upper=(33, 246, 161, 160, 159, 158, 157, 173, 133),
    lower=(33, 7, 163, 144, 145, 153, 154, 155, 133),
    outer=None, near=EYE_RINGS, centre=(-0.354, -0.01), depth_points=(33, 133), width=0.2667, size=(48, 64),
    iris=(468, 469, 470, 471, 472), narrow=(0.5, 0.75),
)
FACE = Organ((), (), None, (), centre=(0.0, 0.65), depth_points=(1,), width=1.0667, size=(288, 256))
# fmt: on


@lru_cache(maxsize=8)
def grid(size: tuple[int, int]) -> Tensor:
    """Pixel centres of a window (height, width) -> (height, width, 2) as (u, v)."""
    height, width = size
    u = (torch.arange(width) * 2 + 1) / width - 1
    v = ((torch.arange(height) * 2 + 1) / height - 1) * (height / width)
    return torch.stack(torch.meshgrid(u, v, indexing="xy"), -1)


def mirror_mesh(mesh: Tensor, width: float = 0.0) -> Tensor:
    """Mesh (..., 478, 2 or 3) of the mirrored picture: x -> width - x, points changed sides."""
    flipped = mesh[..., torch.from_numpy(mirror_points()), :]
    return torch.cat([width - flipped[..., :1], flipped[..., 1:]], -1)


def source_frame(organ: Organ, source: Tensor) -> Tensor:
    """The window in the source (B, 478, 3) -> (B, 3, 3): place = [u, v, 1] @ it, each row (x, y, z)."""
    template = torch.from_numpy(mean_face()).to(source)
    rigid = [33, 133, 362, 263, 168, 6, 197, 195, 2, 98, 327, 8, 9, 151]
    a, b = template[rigid, :2], source[:, rigid, :2]
    a0, b0 = a.mean(0), b.mean(1, keepdim=True)
    a, b = a - a0, b - b0
    total = a.square().sum()
    cos = (a * b).sum((1, 2)) / total
    sin = (a[:, 0] * b[..., 1] - a[:, 1] * b[..., 0]).sum(1) / total
    rotation = torch.stack([torch.stack([cos, sin], -1), torch.stack([-sin, cos], -1)], 1)  # row vectors: p @ rotation
    origin = b0[:, 0] + (torch.tensor(organ.centre).to(source) - a0) @ rotation
    depth = source[:, list(organ.depth_points), 2].mean(1)
    axes = torch.cat([rotation * organ.width, torch.zeros_like(rotation[..., :1])], -1)
    return torch.cat([axes, torch.cat([origin, depth[:, None]], -1)[:, None]], 1)


def framed(frame: Tensor, head: Tensor) -> Tensor:
    """The window of a source frame (B or 1, 3, 3) in a view (B, 4, 2) -> (B, 3, 2): place = [u, v, 1] @ it."""
    axes = frame[:, :2] @ head[:, :3]
    return torch.cat([axes, seen(frame[:, 2:], head)], 1)


def inside(frame: Tensor, points: Tensor) -> Tensor:
    """Points (B, n, 2) of the picture -> (u, v) of a window (B, 3, 2)."""
    return (points - frame[:, 2:]) @ torch.linalg.inv(frame[:, :2])


def placed(frame: Tensor, places: Tensor) -> Tensor:
    """(u, v) (B or 1, n, 2) -> points of the picture."""
    return places @ frame[:, :2] + frame[:, 2:]


def between(upper: Tensor, lower: Tensor, at: Tensor, soft: float) -> Tensor:
    """How far places (h, w, 2) lie between two edges (B, k, 2) from the left corner to the right -> (B, h, w)."""
    sharp = 4 / soft
    u, v = at[:1, :, 0], at[..., 1]
    top, bottom = height_of(upper, u), height_of(lower, u)
    left, right = upper[:, 0, 0, None, None], upper[:, -1, 0, None, None]
    across = torch.sigmoid((v - top) * sharp) * torch.sigmoid((bottom - v) * sharp)
    return across * torch.sigmoid((u - left) * sharp) * torch.sigmoid((right - u) * sharp)


def height_of(edge: Tensor, u: Tensor) -> Tensor:
    """v of a polyline (B, k, 2) at u (h, w) -> (B, h, w); beyond its ends it goes on level."""
    start = edge[:, :-1, 0]
    width = (edge[:, 1:, 0] - start).clamp_min(1e-3)
    slope = (edge[:, 1:, 1] - edge[:, :-1, 1]) / width
    along = (u - start[..., None, None]).clamp_min(0).minimum(width[..., None, None])  # (B, k - 1, h, w)
    return edge[:, 0, 1, None, None] + (along * slope[..., None, None]).sum(1)


def gap_in(organ: Organ, points: Tensor) -> Tensor:
    """What is open in the window, (B, 1, h, w) in [0, 1]; points (B, 478, 2) as (u, v)."""
    at, soft = grid(organ.size).to(points), 2 * EDGE / organ.size[1]
    return between(points[:, list(organ.upper)], points[:, list(organ.lower)], at, soft)[:, None]


def opened(organ: Organ, points: Tensor) -> Tensor:
    """What is open in the window, and what is lip, (B, 1 or 2, h, w) in [0, 1]; points (B, 478, 2) as (u, v)."""
    gap = gap_in(organ, points)
    if organ.outer is None:
        return gap
    at, soft = grid(organ.size).to(points), 2 * EDGE / organ.size[1]
    whole = between(points[:, list(organ.outer[0])], points[:, list(organ.outer[1])], at, soft)[:, None]
    return torch.cat([gap, (whole - gap).clamp_min(0)], 1)


def iris_disc(organ: Organ, points: Tensor) -> Tensor:
    """Where the iris is, were there no lids, (B, 1, h, w); points (B, 478, 2) as (u, v)."""
    at = grid(organ.size).to(points)
    rim = points[:, list(organ.iris)]
    centre = rim[:, 0]
    radius = (rim[:, 1:] - rim[:, :1]).norm(dim=-1).mean(1)
    away = (at - centre[:, None, None]).norm(dim=-1)
    return torch.sigmoid((radius[:, None, None] - away) * (4 * organ.size[1] / (2 * EDGE)))[:, None]


def local_field(organ: Organ, source: Tensor, target: Tensor, where: Tensor, step: int = 4) -> Tensor:
    """Where a window's pixels come from, as (u, v) offsets (B, h, w, 2); source, target (B, 478, 2) as (u, v).

    Two splines, one that does not know the lower edge of the opening and one that does not know the upper one, meet on
    the line between the edges: so lips and lids may close on each other without tearing or smearing.
    where: (h, w, 2), computed on every `step`th pixel.
    """
    height, width = organ.size
    rows, columns = height // step, width // step
    coarse = grid((rows, columns)).to(target).flatten(0, 1)
    tall, wide = (enlarging(few, many).to(target) for few, many in ((rows, height), (columns, width)))
    corners = {organ.upper[0], organ.upper[-1]}
    fields = []
    for hidden in (organ.lower, organ.upper):
        used = [p for p in organ.points if p not in hidden or p in corners]
        moved = source[:, used] - target[:, used]
        field = thin_plate(target[:, used], moved, coarse, STIFFNESS)
        fields.append(tall @ field.unflatten(1, (rows, columns)).permute(0, 3, 1, 2) @ wide.T)
    top, bottom = (height_of(target[:, list(edge)], where[:1, :, 0]) for edge in (organ.upper, organ.lower))
    below = torch.sigmoid((where[..., 1] - (top + bottom) / 2) * (4 * width / 2))[:, None]
    return torch.lerp(fields[0], fields[1], below).permute(0, 2, 3, 1)


def face_window(image: np.ndarray, landmarks: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The face of a picture (H, W, 3), with landmarks (478, 3), upright in (288, 256, 3); they in its pixels; and how
    many pixels of the picture one of these is wide."""
    height, width = FACE.size
    small, reduced = image, np.ones(2)
    frame = source_frame(FACE, torch.from_numpy(landmarks)[None])[0].numpy()
    pixel = np.linalg.norm(frame[0, :2]) * 2 / width  # of the window, in pixels of the picture
    if pixel > 1.5:
        small = shrunk(image, round(image.shape[1] / pixel), round(image.shape[0] / pixel))
        reduced = np.array([small.shape[1] / image.shape[1], small.shape[0] / image.shape[0]])
    corners = grid(FACE.size)[[0, 0, -1], [0, -1, 0]][None]
    there = placed(torch.from_numpy(frame[None, :, :2]), corners)[0].numpy()
    there = (there + 0.5) * reduced - 0.5
    matrix = np.stack([(there[1] - there[0]) / (width - 1), (there[2] - there[0]) / (height - 1), there[0]], 1)
    out = warped(small, matrix, width, height, cubic=True)
    uv = (landmarks[:, :2] - frame[2, :2]) @ np.linalg.inv(frame[:2, :2])
    points = uv * (width / 2) + np.array([width, height]) / 2 - 0.5
    return out, np.concatenate([points, landmarks[:, 2:] / pixel], 1).astype(np.float32), float(pixel)
