"""A portrait taken apart: person and plate, and the points that carry it, at the size at which it is drawn."""

from __future__ import annotations

import math
from threading import Lock

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.faces import EYE_CORNERS, N_SKIN, mirror_points
from mssync.render.field import Hiding, eased, seen, thin_plate, view, view_solver
from mssync.render.organs import EYE, FACE, MOUTH, Organ, framed, inside, mirror_mesh, placed, source_frame
from mssync.render.painter import rim
from mssync.render.plate import parted

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
SMOOTH = 2  # times as many of it, by cubic interpolation; from there on by linear one
PAD = 0.2  # of the side: what lies around the drawn part and may move into it
CROWN = 0.1  # of the height: over so much a head that the picture's top cuts off is made to end
DOUBLED = 800 * 800  # pixels of a frame up to which the person is stored twice as fine, so that moving it blurs less
LANCZOS = 4  # lobes of the window by which that is done

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

    def __init__(self, scene: Scene, size: int | None) -> None:
        if size is None:
            self.height, self.width = scene.picture.shape[-2:]
            self.origin, self.scale = (0.0, 0.0), 1.0
        else:
            self.height = self.width = size
            self.origin, self.scale = scene.box[:2], size / scene.box[2]
        self.pad = 0 if size is None else round(PAD * size)
        self._part(scene)
        self.mesh = torch.cat([self.placed(scene.mesh[:, :2]), scene.mesh[:, 2:] * self.scale], 1)[None]
        self.solver = view_solver(self.mesh)
        points, self.follows = around(self.mesh[0])
        self.around, self.chosen = points[None], control_points()
        warping = torch.cat([self.mesh[0, self.chosen], points])
        left, right = self.mesh[0, list(EYE_CORNERS)]
        self.hiding = Hiding(warping, HIDES * float((right - left).norm()))
        self.cell = max(self.height, self.width) / CELLS
        rows, columns = (math.ceil(side / self.cell) for side in (self.height, self.width))
        self.cells = pixel_grid(rows, columns, self.cell)
        self.pixels = pixel_grid(self.height, self.width)
        kinds = ((MOUTH, False), (EYE, False), (EYE, True))
        self.organs = [OrganInView(kind, mirrored, self, scene) for kind, mirrored in kinds]

    def _part(self, scene: Scene) -> None:
        # Outside of the picture what is at its border goes on straight; a person's colours are mirrored there.
        parts = ((scene.picture, "reflection"), (scene.picture, "border"), (scene.matte, "border"))
        place = (self.origin, self.scale, self.height, self.width, self.pad)
        mirrored, straight, matte = (_cut(layer, *place, outside).clamp(0, 1) for layer, outside in parts)
        rows = torch.arange(self.height + 2 * self.pad) - self.pad + self.origin[1] * self.scale
        matte = matte * (1 + rows / (CROWN * self.height)).clamp(0, 1)[:, None]
        own, plate = parted(torch.lerp(straight, mirrored, matte), matte)
        self.own = doubled(own) if self.height * self.width <= DOUBLED else own
        inner = [slice(self.pad, self.pad + side) for side in (self.height, self.width)]
        self.plate = plate[..., inner[0], inner[1]].contiguous()

    def placed(self, points: Tensor) -> Tensor:
        """Points (..., 2) in the picture's pixels -> in the frames'."""
        return (points + 0.5 - torch.tensor(self.origin)) * self.scale - 0.5

    def offsets(self, mesh: Tensor, head: Tensor, body: Tensor | None) -> Tensor:
        """Where the pixels of new frames come from, (B, H, W, 2), minus where they are.

        mesh (B, 478, 2); head (B, 4, 2): its `field.view`; body (B, 3, 2): an affine map [x, y, 1] @ body, None: still.
        """
        still = self.around[..., :2].expand(len(mesh), -1, -1)
        source = torch.cat([self.mesh[:, self.chosen, :2].expand(len(mesh), -1, -1), still], 1)
        below = still if body is None else still @ body[:, :2] + body[:, 2:]
        target = below + self.follows[:, None] * (seen(self.around, head) - below)
        target = torch.cat([mesh[:, self.chosen], target], 1)
        unit = max(self.height, self.width) / 2
        stiffness = STIFFNESS + HIDDEN * self.hiding(head)
        field = thin_plate(target / unit, source - target, self.cells.flatten(0, 1) / unit, stiffness)
        field = field.unflatten(1, self.cells.shape[:2]).permute(0, 3, 1, 2)
        field = F.interpolate(field, scale_factor=float(SMOOTH), mode="bicubic")
        size = [round(side * self.cell / SMOOTH) for side in field.shape[2:]]
        field = F.interpolate(field, size=size, mode="bilinear")
        return field[..., : self.height, : self.width].permute(0, 2, 3, 1)

    def warped(self, offset: Tensor) -> Tensor:
        """The person's pixels under offsets (B, H, W, 2): premultiplied RGBA (B, 4, H, W)."""
        height, width = self.height + 2 * self.pad, self.width + 2 * self.pad
        at = (self.pixels + offset + (self.pad + 0.5)) * torch.tensor([2 / width, 2 / height]) - 1
        own = self.own.expand(len(offset), -1, -1, -1)
        return F.grid_sample(own, at, mode="bicubic", padding_mode="border", align_corners=False)


class OrganInView:
    """One organ of a view: its window in the source, and in the picture of the face that the painter sees.

    The eye on the right is mirrored: its meshes and places are those of mirrored pictures.
    """

    def __init__(self, kind: Organ, mirrored: bool, at: View, scene: Scene) -> None:
        self.kind, self.mirrored, self.last = kind, mirrored, at.width - 1.0
        mesh, self.face, face_mesh = self.turned(at.mesh), scene.face, scene.face_mesh[None]
        if mirrored:
            self.face, face_mesh = self.face.flip(3), mirror_mesh(face_mesh, FACE.size[1] - 1.0)
        self.mesh, self.frame, self.solver = mesh[..., :2], source_frame(kind, mesh), view_solver(mesh)
        self.face_frame, self.face_mesh = source_frame(kind, face_mesh)[..., :2], face_mesh[..., :2]
        self.rim = rim(kind)

    def turned(self, mesh: Tensor) -> Tensor:
        """Meshes (B, 478, 2 or 3) as this organ takes them."""
        return mirror_mesh(mesh, self.last) if self.mirrored else mesh

    def turned_places(self, places: Tensor) -> Tensor:
        """The same of places (..., 2), there and back."""
        return torch.stack([self.last - places[..., 0], places[..., 1]], -1) if self.mirrored else places

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

    def reach(self, window: Tensor, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of a frame that a window (1, 3, 2) covers."""
        ratio = self.kind.size[0] / self.kind.size[1]
        corners = torch.tensor([[-1, -ratio], [1, -ratio], [-1, ratio], [1, ratio]])
        there = self.turned_places(placed(window, corners[None])[0])
        (left, top), (right, bottom) = there.amin(0).floor().long().tolist(), there.amax(0).ceil().long().tolist()
        return slice(max(top, 0), min(max(bottom + 1, 0), height)), slice(max(left, 0), min(max(right + 1, 0), width))

    def spread(self, maps: Tensor, window: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (1, c, h, w) of the window at pixels (m, n, 2) of a frame -> (c, m, n), and their (u, v) (m, n, 2)."""
        flat = self.turned_places(pixels).flatten(0, 1)[None]
        uv = inside(window, flat).unflatten(1, pixels.shape[:2])
        at = uv * torch.tensor([1.0, self.kind.size[1] / self.kind.size[0]])
        return F.grid_sample(maps, at, padding_mode="zeros", align_corners=False)[0], uv[0]

    def origin(self, uv: Tensor) -> Tensor:
        """Places (m, n, 2) of the source at (u, v) (m, n, 2)."""
        there = placed(self.frame[..., :2], uv.flatten(0, 1)[None])[0].unflatten(0, uv.shape[:2])
        return self.turned_places(there)


def pixel_grid(rows: int, columns: int, step: float = 1.0) -> Tensor:
    """(rows, columns, 2): centres of cells of `step` pixels, where a pixel's own centre is a whole number."""
    x, y = ((torch.arange(n) + 0.5) * step - 0.5 for n in (columns, rows))
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)


def doubled(x: Tensor) -> Tensor:
    """Maps (1, c, h, w) at twice the resolution, by a windowed sinc: (1, c, 2 h, 2 w)."""
    taps = torch.arange(1 - LANCZOS, LANCZOS).float()
    away = taps - torch.tensor([[-0.25], [0.25]])  # the centres of the two finer pixels
    kernel = torch.sinc(away) * torch.sinc(away / LANCZOS)
    kernel = kernel / kernel.sum(1, keepdim=True)
    for dim in (2, 3):
        shape, reach = [1, 1, 1, 1], [0, 0, 0, 0]
        shape[dim], reach[6 - 2 * dim : 8 - 2 * dim] = -1, [LANCZOS - 1] * 2
        wide = F.pad(x, reach, mode="replicate").flatten(0, 1)[:, None]
        found = [F.conv2d(wide, one.view(shape)).squeeze(1)[None] for one in kernel]
        x = torch.stack(found, dim + 1).flatten(dim, dim + 1)
    return x


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
