"""A portrait taken apart: person and plate, and the points that carry it, at the size at which it is drawn."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.faces import EYE_CORNERS, N_SKIN, mirror_points
from mssync.pixels import filled
from mssync.reenact import to_bytes
from mssync.render.field import Hiding, affine, eased, enlarging, seen, thin_plate, view, view_solver
from mssync.render.organs import EYE, FACE, MOUTH, Organ, framed, inside, mirror_mesh, source_frame
from mssync.render.painter import Asked, rim
from mssync.render.plate import completed, extent, fill, grown, parted
from mssync.render.residual import CELLS as LOOK

# fmt: off
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)
# fmt: on
EARS = (234, 454, 127, 356)
EVERY = 5  # of these is a control point, and what mirrors it
RINGS = (1.25, 1.6, 2.1, 2.8)  # around the face, in its own size: hair, ears, hats
# Heights below the eyes in distances between them: what is above the first moves with the head, below the second with
# the body.
NECK = (0.95, 2.0)
BODY_ROWS, BODY_COLUMNS = (2.3, 3.5, 5.0), (-5, -3, -1.5, 0, 1.5, 3, 5)  # of points on the body, in the same unit
STIFFNESS = 2e-4  # of the field, in coordinates of [-1, 1]
HIDDEN = 50.0  # the same at points that a turn hides: they do not count
HIDES = 0.7  # distances of the eyes: how far apart points may be that hide each other
CELLS = 64  # of the field along the picture's longer side
BAND = 6  # rows of cells in which the person is moved at once
PAD = 0.2  # of the side: what lies around the drawn part and may move into it
CROWN = 0.1  # of the height: over so much a head that the picture's top cuts off is made to end
CUT_OFF = 0.5  # alpha at the picture's edge from which the person is cut off there
HELD_EVERY, HELD = 24, 0.15  # points that are held there along the longer side; how far they hold others, in sides
DOUBLED = 1100 * 1100  # pixels of a person up to which it is stored twice as fine, so that moving it blurs less
MARGIN = 6  # pixels around the person that are stored with it: more than doubling reaches
FADING = 0.15  # of half the box: the rim in which the residual ends, in a picture that is drawn whole
LANCZOS = 4  # lobes of the window by which that is done
CRISP = 0.08  # of the finer neighbours is taken off: what linear interpolation between them blurs, on the mean

FACE_SCALE = torch.tensor([float(FACE.size[1]), float(FACE.size[0])])
Inpaint = Callable[[Tensor, Tensor], Tensor]
Box = tuple[float, float, float]  # x, y, side in pixels


def control_points() -> list[int]:
    """Mesh points by which the face is warped: enough of them, but not the edges of what opens."""
    assert MOUTH.outer is not None
    edges = {*MOUTH.upper[1:-1], *MOUTH.lower[1:-1], *EYE.upper[1:-1], *EYE.lower[1:-1]}
    chosen = {*range(0, N_SKIN, EVERY), *OVAL, *MOUTH.outer[0], *MOUTH.outer[1]} - edges
    other = {int(mirror_points()[k]) for k in edges}
    return sorted((chosen | {int(mirror_points()[k]) for k in chosen}) - edges - other)


def around(face: Tensor) -> tuple[Tensor, Tensor]:
    """Points (n, 3) around a face (478, 3), and how far each moves with the head (n,): hair and ears, neck, body."""
    middle = face[list(EYE_CORNERS), :2].mean(0)
    right = face[EYE_CORNERS[1], :2] - face[EYE_CORNERS[0], :2]
    down = torch.stack([-right[1], right[0]])
    oval, depth = face[list(OVAL[::3])], face[list(EARS), 2].mean()
    centre, found = oval.mean(0), []
    for k, scale in enumerate(RINGS):
        ring = centre + (oval - centre) * scale
        ring[:, 2] = depth if k else (depth + oval[:, 2]) / 2
        found.append(ring)
    body = torch.stack([middle + right * x + down * y for y in BODY_ROWS for x in BODY_COLUMNS])
    points = torch.cat([*found, F.pad(body, (0, 1), value=float(depth))])
    height = (points[:, :2] - middle) @ down / right.square().sum()
    return points, 1 - eased(height, *NECK)


class Part(NamedTuple):
    """Rows and columns of frames; bands: rows and columns of it that have anything of the person."""

    rows: slice
    columns: slice
    bands: list[tuple[slice, slice]]


def shifted(part: slice, start: int) -> slice:
    """A slice, counted from `start` on."""
    return slice(part.start - start, part.stop - start)


class Scene:
    """A prepared portrait, with a `View` for every size that was asked for.

    picture (1, 3, H, W) in [0, 1]; matte (1, 1, H, W); mesh (478, 3) in the picture's pixels; box: the part that is
    drawn; face, face_mesh: the face as painters see it, and its mesh, see `face_window`.
    """

    def __init__(self, picture: Tensor, matte: Tensor, mesh: Tensor, box: Box, face: Tensor, face_mesh: Tensor) -> None:
        self.picture, self.matte, self.mesh, self.box = picture, matte, mesh, box
        self.face, self.face_mesh = face, face_mesh
        self._views: dict[int | None, View] = {}
        self._lock = Lock()

    def view(self, size: int | None) -> View:
        """Of the box at size × size, or of the whole picture as it is (None)."""
        with self._lock:
            if size not in self._views:
                self._views[size] = View(self, size)
            return self._views[size]


class View:
    """A scene at one size: its layers, its points, its organs, all in pixels of the frames."""

    def __init__(self, scene: Scene, size: int | None, inpaint: Inpaint = completed) -> None:
        if size is None:
            self.height, self.width = scene.picture.shape[-2:]
            self.origin, self.scale = (0.0, 0.0), 1.0
        else:
            self.height = self.width = size
            self.origin, self.scale = scene.box[:2], size / scene.box[2]
        self.pad, self.cell = 0 if size is None else round(PAD * size), max(self.height, self.width) / CELLS
        own, plate = layers(scene, self.origin, self.scale, self.height, self.width, self.pad, inpaint)
        self.person = self._person(own)
        high, wide = extent(grown((own != 0).any(1, keepdim=True).float(), MARGIN), 0)
        self.fine = (high.stop - high.start) * (wide.stop - wide.start) <= DOUBLED
        self.own = doubled(own[..., high, wide]) if self.fine else own[..., high, wide].contiguous()
        self.own_corner = torch.tensor([wide.start, high.start]) - (self.pad + 0.5)
        self.to_own = 2 / torch.tensor([wide.stop - wide.start, high.stop - high.start])
        inner = (..., slice(self.pad, self.pad + self.height), slice(self.pad, self.pad + self.width))
        self.plate = plate[inner].contiguous()
        self.rest = to_bytes(own[inner][:, :3] + (1 - own[inner][:, 3:]) * self.plate)[0]  # (H, W, 3) uint8
        self.mesh = torch.cat([self.placed(scene.mesh[:, :2]), scene.mesh[:, 2:] * self.scale], 1)[None]
        self.solver = view_solver(self.mesh)
        points, self.follows, self.free = self._held(scene, *around(self.mesh[0]))
        self.around, self.chosen = points[None], control_points()
        warping = torch.cat([self.mesh[0, self.chosen], points])
        left, right = self.mesh[0, list(EYE_CORNERS)]
        self.hiding = Hiding(warping, HIDES * float((right - left).norm()))
        rows, columns = (math.ceil(side / self.cell) for side in (self.height, self.width))
        self.cells = pixel_grid(rows, columns, self.cell)
        sides = ((rows, self.height), (columns, self.width))
        self.enlarging = [enlarging(cells, round(cells * self.cell))[:side] for cells, side in sides]
        self.x, self.y = torch.arange(float(self.width)), torch.arange(float(self.height))[:, None]
        still = torch.stack(torch.broadcast_tensors(self.x, self.y))
        self.still = self.in_own(still[None])  # (1, 2, H, W)
        kinds = ((MOUTH, False), (EYE, False), (EYE, True))
        self.organs = [OrganInView(kind, mirrored, self, scene) for kind, mirrored in kinds]
        self.look = Look(scene, self)

    def placed(self, points: Tensor) -> Tensor:
        """Points (..., 2) in the picture's pixels -> in the frames'."""
        return (points + 0.5 - torch.tensor(self.origin)) * self.scale - 0.5

    def field(self, mesh: Tensor, head: Tensor, body: Tensor | None) -> Tensor:
        """Where cells of new frames come from, minus where they are: (B, 2, rows, columns).

        mesh (B, 478, 2); head (B, 4, 2): its `field.view`; body (B, 3, 2): an affine map [x, y, 1] @ body, None: still.
        """
        still = self.around[..., :2].expand(len(mesh), -1, -1)
        source = torch.cat([self.mesh[:, self.chosen, :2].expand(len(mesh), -1, -1), still], 1)
        below = still if body is None else still @ body[:, :2] + body[:, 2:]
        target = below + self.follows[:, None] * (seen(self.around, head) - below)
        target = still + self.free * (target - still)
        target = torch.cat([mesh[:, self.chosen], target], 1)
        unit = max(self.height, self.width) / 2
        stiffness = STIFFNESS + HIDDEN * self.hiding(head)
        field = thin_plate(target / unit, source - target, self.cells.flatten(0, 1) / unit, stiffness)
        return field.unflatten(1, self.cells.shape[:2]).permute(0, 3, 1, 2)

    def _held(self, scene: Scene, points: Tensor, follows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Points around the face and how far they follow it, with more of them where the picture's sides or top cut the
        person off; and how far they may move, in x and y (n, 2).

        Nothing is known of what is beyond, so what is cut off may slide along the edge but not leave it.
        """
        height, width = scene.matte.shape[-2:]
        corner, far = self.placed(torch.zeros(2)), self.placed(torch.tensor([width - 1.0, height - 1.0]))
        reach = HELD * float((far - corner).amin())
        inside = points[:, :2].clamp(corner, far)  # what lies beyond is held as the edge is
        free, more = torch.ones(len(points), 2), []
        counts = [math.ceil(side * HELD_EVERY / max(height, width)) for side in (height, width)]
        down, across = (
            (torch.arange(n) + 0.5) * (side / n) - 0.5 for n, side in zip(counts, (height, width), strict=True)
        )
        edges = ((0, F.pad(down[:, None], (1, 0))), (0, F.pad(down[:, None], (1, 0), value=width - 1.0)),
                 (1, F.pad(across[:, None], (0, 1))))  # fmt: skip
        for axis, edge in edges:
            cut = edge[scene.matte[0, 0, edge[:, 1].round().long(), edge[:, 0].round().long()] > CUT_OFF]
            if len(cut):
                away = torch.cdist(inside, self.placed(cut)).amin(1) * (inside == points[:, :2]).all(1)
                free[:, axis] = torch.minimum(free[:, axis], eased(away / reach))
                more.append((self.placed(cut), torch.ones(len(cut), 2) - torch.eye(2)[axis]))
        depth = float(points[:, 2].mean())
        added = torch.cat([F.pad(places, (0, 1), value=depth) for places, _ in more]) if more else points[:0]
        nearest = torch.cdist(added[:, :2], points[:, :2]).argmin(1)
        points, free = torch.cat([points, added]), torch.cat([free, *(axes for _, axes in more)])
        return points, torch.cat([follows, follows[nearest]]), free

    def _person(self, own: Tensor) -> Tensor:
        """Which cells, and others as large around the view, have anything of the person's layer: (1, 1, r, c)."""
        rows, columns = (math.ceil(side / self.cell) for side in own.shape[2:])
        shown = F.adaptive_max_pool2d((own != 0).any(1, keepdim=True).float(), (rows, columns))
        return F.max_pool2d(shown, 3, 1, 1)

    def changed(self, field: Tensor) -> Part:
        """What of frames may differ from the picture under a field (B, 2, rows, columns)."""
        cells = self.cells.permute(2, 0, 1)[None]
        around = torch.tensor([self.width, self.height]) + 2 * self.pad
        places = (torch.cat([cells, cells + field]).permute(0, 2, 3, 1) + self.pad + 0.5) * (2 / around) - 1
        person = self.person.expand(len(places), -1, -1, -1)
        there = F.grid_sample(person, places, padding_mode="border", align_corners=False).amax((0, 1)) > 0
        rows, columns = self._reach(there.any(1), self.height), self._reach(there.any(0), self.width)
        bands = []
        for first in range(0, len(there), BAND):
            band = there[first : first + BAND]
            high, wide = self._reach(band.any(1), self.height, first), self._reach(band.any(0), self.width)
            if high.stop > high.start:
                bands.append((shifted(high, rows.start), shifted(wide, columns.start)))
        return Part(rows, columns, bands)

    def _reach(self, cells: Tensor, side: int, before: int = 0) -> slice:
        """From the first pixel to the last one of cells (n,) that are true, the first of them cell number `before`."""
        at = cells.nonzero().flatten().tolist()
        if not at:
            return slice(0, 0)
        first, last = before + at[0], before + at[-1] + 1
        return slice(math.floor(first * self.cell), min(math.ceil(last * self.cell), side))

    def in_own(self, places: Tensor) -> Tensor:
        """Places (B, 2, h, w) in pixels -> in the [-1, 1] of the person's layer."""
        return (places - self.own_corner[:, None, None]) * self.to_own[:, None, None] - 1

    def enlarged(self, maps: Tensor, rows: slice, columns: slice) -> Tensor:
        """Maps of cells (B, c, r, c) -> of a part's pixels (B, c, h, w)."""
        tall, wide = self.enlarging
        return tall[rows] @ (maps @ wide[columns].T)

    def warped(self, places: Tensor, bands: list[tuple[slice, slice]]) -> Tensor:
        """The person's pixels at places (B, 2, h, w), `in_own`: premultiplied RGBA (B, 4, h, w), 0 outside of bands."""
        own, found = self.own.expand(len(places), -1, -1, -1), places.new_zeros(len(places), 4, *places.shape[2:])
        mode = "bilinear" if self.fine else "bicubic"
        for rows, columns in bands:
            at = places[..., rows, columns].permute(0, 2, 3, 1)
            found[..., rows, columns] = F.grid_sample(own, at, mode=mode, padding_mode="border", align_corners=False)
        return found


class Look:
    """What the residual network sees of a view: the part that is drawn in CELLS × CELLS cells, warped by its field."""

    def __init__(self, scene: Scene, at: View) -> None:
        x0, y0, side = scene.box
        self.pad = pad = round(PAD * LOOK)
        own, _ = layers(scene, (x0, y0), LOOK / side, LOOK, LOOK, pad, fill)
        corner = at.placed(torch.tensor([x0, y0]) - 0.5)  # of the box, in the view
        self.cell = side * at.scale / LOOK
        self.cells = pixel_grid(LOOK, LOOK, self.cell) + (corner + 0.5)
        face = inked(scene.mesh[list(OVAL), :2], (x0, y0, side), LOOK, pad)
        self.layers = torch.cat([own, face], 1)
        self.rest = own[:, 3:, pad : pad + LOOK, pad : pad + LOOK]
        self.still = pixel_grid(LOOK, LOOK)
        self.frame = source_frame(FACE, at.mesh)
        self.whole = at.origin != tuple(scene.box[:2]) or max(at.height, at.width) != round(side * at.scale)
        if self.whole:
            extent = torch.tensor([at.cells.shape[1], at.cells.shape[0]]) * at.cell  # of the view's cells, in pixels
            self.places = (self.cells + 0.5) * (2 / extent) - 1  # of the box's cells among the view's, and these there
            self.there = (at.cells - corner) * (2 / (side * at.scale)) - 1
            from_edge = 1 - pixel_grid(LOOK, LOOK, 2 / LOOK).add(1 / LOOK - 1).abs().amax(-1)
            self.edge = eased(from_edge, 0.0, FADING)

    def given(self, field: Tensor, head: Tensor) -> Tensor:
        """(B, 18, 64, 64) for a field of the view (B, 2, rows, columns) and the head's view (B, 4, 2)."""
        count, size = len(field), self.layers.shape[-1]
        if self.whole:
            places = self.places.expand(count, -1, -1, -1)
            field = F.grid_sample(field, places, padding_mode="border", align_corners=False)
        offset = field / self.cell
        at = (self.still + offset.permute(0, 2, 3, 1) + (self.pad + 0.5)) * (2 / size) - 1
        warped = F.grid_sample(self.layers.expand(count, -1, -1, -1), at, padding_mode="border", align_corners=False)
        window = framed(self.frame, head)
        uv = inside(window, self.cells.flatten(0, 1).expand(count, -1, -1)).clamp(-4, 4)
        uv = uv.unflatten(1, (LOOK, LOOK)).permute(0, 3, 1, 2)
        turned = head[:, :3] - torch.eye(3, 2)
        shift = (window[:, 2] - self.frame[:, 2, :2]) / self.cell
        told = torch.cat([turned.flatten(1) * 4, shift / 8], 1)[..., None, None].expand(-1, -1, LOOK, LOOK)
        return torch.cat([warped, self.rest.expand(count, -1, -1, -1), offset / 4, uv, told], 1)

    def carried(self, change: Tensor) -> Tensor:
        """What the network tells (B, 5, 64, 64), for the view's cells, offsets in its pixels: (B, 5, rows, columns)."""
        change = torch.cat([change[:, :2] * self.cell, change[:, 2:]], 1)
        if not self.whole:
            return change
        there = self.there.expand(len(change), -1, -1, -1)
        return F.grid_sample(change * self.edge, there, padding_mode="zeros", align_corners=False)


class OrganInView:
    """One organ of a view: its window in the source, and in the picture of the face that the painter sees.

    The eye on the right is mirrored: its meshes and windows are those of mirrored pictures.
    """

    def __init__(self, kind: Organ, mirrored: bool, at: View, scene: Scene) -> None:
        self.kind, self.mirrored, self.last = kind, mirrored, at.width - 1.0
        mesh, face, face_mesh = self.turned(at.mesh), scene.face, scene.face_mesh[None]
        if mirrored:
            face, face_mesh = face.flip(3), mirror_mesh(face_mesh, FACE.size[1] - 1.0)
        self.mesh, self.frame, self.solver = mesh[..., :2], source_frame(kind, mesh), view_solver(mesh)
        self.asked = Asked(kind, face, source_frame(kind, face_mesh)[..., :2], face_mesh[..., :2], FACE_SCALE)
        self.rim = rim(kind)
        origin = self.turned_window(self.frame[..., :2])[0]
        self.origin = torch.cat([origin[:2], origin[2:] - at.own_corner]) * at.to_own
        self.origin[2] -= 1  # (3, 2): from (u, v) to the place in the person's layer

    def turned(self, mesh: Tensor) -> Tensor:
        """Meshes (B, 478, 2 or 3) as this organ takes them."""
        return mirror_mesh(mesh, self.last) if self.mirrored else mesh

    def turned_window(self, window: Tensor) -> Tensor:
        """Windows (B, 3, 2) of mirrored pictures as they are in pictures."""
        if not self.mirrored:
            return window
        return torch.stack([torch.tensor([0.0, 0.0, self.last]) - window[..., 0], window[..., 1]], -1)

    def window(self, mesh: Tensor) -> Tensor:
        """(B, 3, 2): where the window is in frames with meshes (B, 478, 2), `turned`."""
        return framed(self.frame, view(self.solver, mesh))

    def shown(self, mesh: Tensor, window: Tensor) -> Tensor:
        """How far the organ is seen in frames with meshes (B, 478, 2), `turned`: (B,), 0 where a turn hides it.

        Told by the distance of its corners, at the head's scale.
        """
        corners = [self.kind.upper[0], self.kind.upper[-1]]
        wide, source = ((points[:, corners[1]] - points[:, corners[0]]).norm(dim=-1) for points in (mesh, self.mesh))
        scale = (torch.linalg.det(window[:, :2]) / torch.linalg.det(self.frame[:, :2, :2])).abs().sqrt()
        return eased(wide / (source * scale.clamp_min(1e-3)), *self.kind.narrow)

    def reach(self, window: Tensor, rows: slice, columns: slice) -> tuple[slice, slice]:
        """Rows and columns, of those of a frame, that a window (3, 2) covers."""
        ratio = self.kind.size[0] / self.kind.size[1]
        corners = torch.tensor([[-1, -ratio], [1, -ratio], [-1, ratio], [1, ratio]])
        there = corners @ window[:2] + window[2]
        low, high = there.amin(0).floor().long().tolist(), there.amax(0).ceil().long().tolist()
        parts = ((rows, low[1], high[1]), (columns, low[0], high[0]))
        found = [slice(max(start, part.start), min(stop + 1, part.stop)) for part, start, stop in parts]
        return found[0], found[1]

    def spread(self, maps: Tensor, window: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (c, h, w) of the window (3, 2) at pixels x (n,), y (m, 1) -> (c, m, n), and their (u, v) (2, m, n)."""
        inverse = torch.linalg.inv(window[:2])
        uv = affine(torch.cat([inverse, -window[2:] @ inverse]), x, y)
        at = uv * torch.tensor([1.0, self.kind.size[1] / self.kind.size[0]])[:, None, None]
        at = at.permute(1, 2, 0)[None]
        return F.grid_sample(maps[None], at, padding_mode="zeros", align_corners=False)[0], uv


def layers(
    scene: Scene, origin: tuple[float, ...], scale: float, height: int, width: int, pad: int, inpaint: Inpaint
) -> tuple[Tensor, Tensor]:
    """A part of a picture, `pad` pixels around: person (1, 4, h, w), premultiplied RGBA, and plate (1, 3, h, w)."""
    # Outside of the picture what is at its border goes on straight; a person's colours are mirrored there.
    parts = ((scene.picture, "reflection"), (scene.picture, "border"), (scene.matte, "border"))
    cut = (_cut(layer, origin, scale, height, width, pad, outside).clamp(0, 1) for layer, outside in parts)
    mirrored, straight, matte = cut
    rows = torch.arange(height + 2 * pad) - pad + origin[1] * scale
    matte = matte * (1 + rows / (CROWN * height)).clamp(0, 1)[:, None]
    return parted(torch.lerp(straight, mirrored, matte), matte, inpaint)


def inked(outline: Tensor, box: Box, size: int, pad: int) -> Tensor:
    """The inside of an outline (n, 2), a little grown, at size × size with `pad` pixels around: (1, 1, h, w)."""
    fine, side = 4, size + 2 * pad
    points = (outline.numpy() + 0.5 - np.array(box[:2], np.float32)) * np.float32(size / box[2]) + pad
    mask = torch.from_numpy(filled(np.rint(points * fine), side * fine, side * fine))[None, None].float()
    grown = F.max_pool2d(mask, 2 * fine + 1, 1, fine)
    return F.avg_pool2d(grown, (2 * fine + 1), 1, fine)[..., fine // 2 :: fine, fine // 2 :: fine]


def pixel_grid(rows: int, columns: int, step: float = 1.0) -> Tensor:
    """(rows, columns, 2): centres of cells of `step` pixels, where a pixel's own centre is a whole number."""
    x, y = ((torch.arange(n) + 0.5) * step - 0.5 for n in (columns, rows))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def doubled(x: Tensor) -> Tensor:
    """Maps (1, c, h, w) at twice the resolution, by a windowed sinc: (1, c, 2 h, 2 w)."""
    taps = torch.arange(1 - LANCZOS, LANCZOS).float()
    away = taps - torch.tensor([[[-0.25], [0.25]]]) - torch.tensor([0.0, -0.5, 0.5])[:, None, None]
    three = torch.sinc(away) * torch.sinc(away / LANCZOS) * (away.abs() < LANCZOS)
    kernel = (1 + 2 * CRISP) * three[0] - CRISP * (three[1] + three[2])  # of the two finer pixels
    kernel = kernel / kernel.sum(1, keepdim=True)
    large = x.new_empty(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    for channel in range(x.shape[1]):  # one by one, for the memory that it takes
        tall = _interleaved(x[:, channel : channel + 1], kernel, 2)
        large[:, channel : channel + 1] = _interleaved(tall, kernel, 3)
    return large


def _interleaved(x: Tensor, kernel: Tensor, dim: int) -> Tensor:
    """Maps (1, c, h, w) under two kernels (2, n) along a dimension, in turn."""
    reach = [0, 0, 0, 0]
    reach[6 - 2 * dim : 8 - 2 * dim] = [LANCZOS - 1] * 2
    wide, size = F.pad(x, reach, mode="replicate"), x.shape[dim]
    found = [sum(weight * wide.narrow(dim, k, size) for k, weight in enumerate(one.tolist())) for one in kernel]
    return torch.stack(found, dim + 1).flatten(dim, dim + 1)


def _cut(
    layer: Tensor, origin: tuple[float, ...], scale: float, height: int, width: int, pad: int, outside: str
) -> Tensor:
    """A part of a picture with `pad` pixels around, at a scale; outside: as grid_sample's padding_mode."""
    full, shrunk = layer.shape[-2:], (1.0, 1.0)
    if scale < 0.75:  # area averaging first
        small = [max(1, round(side * scale)) for side in full]
        shrunk = (small[1] / full[1], small[0] / full[0])
        layer = F.interpolate(layer, size=small, mode="bicubic", antialias=True)
    elif scale == 1.0 and origin == (0.0, 0.0) and not pad:
        return layer
    x = ((torch.arange(-pad, width + pad) + 0.5) / scale + origin[0]) * shrunk[0]
    y = ((torch.arange(-pad, height + pad) + 0.5) / scale + origin[1]) * shrunk[1]
    at = torch.stack(torch.meshgrid(x * (2 / layer.shape[-1]) - 1, y * (2 / layer.shape[-2]) - 1, indexing="xy"), -1)
    return F.grid_sample(layer, at[None], mode="bicubic", padding_mode=outside, align_corners=False)
