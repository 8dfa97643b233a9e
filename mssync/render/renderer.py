"""The layered renderer: a portrait under a mesh, at any size."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.data.windows import face_window
from mssync.metrics.frontal import mean_face
from mssync.precision import drawing_precision
from mssync.render.field import seen, thin_plate, view, view_solver
from mssync.render.organs import (
    EYE,
    FACE,
    MOUTH,
    Organ,
    framed,
    inside,
    mirror_mesh,
    placed,
    source_frame,
)
from mssync.render.painter import Painter, prompt, rim
from mssync.render.plate import parted

# fmt: off
OVAL = (
    10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377, 152, 148, 176, 149, 150,
    136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109,
)
# fmt: on
EARS = (234, 454, 127, 356)
RINGS = (1.25, 1.6, 2.1, 2.8)  # around the face, in its own size: hair, ears, hats
NECK = (0.95, 2.0)  # height in distances of the eyes below them: what is above moves with the head, below with the body
STIFFNESS = 2e-4  # of the field, in coordinates of [-1, 1]
CELLS = 64  # of the field along the picture's longer side
PAD = 0.2  # of the side: what lies around the drawn part and may move into it
MOUTH_EDGES = {*MOUTH.upper, *MOUTH.lower} - {78, 308}
EYE_EDGES = {*EYE.upper, *EYE.lower} - {33, 133}


def control_points() -> list[int]:
    """Mesh points by which the face is warped: enough of them, without the edges of what opens."""
    eyes = {int(k) for k in EYE_EDGES} | {int(k) for k in _mirror(EYE_EDGES)}
    iris = set(range(468, 478))
    every = set(range(0, 468, 3)) | set(OVAL) | set(MOUTH.outer[0]) | set(MOUTH.outer[1])
    return sorted(every - MOUTH_EDGES - eyes - iris)


def _mirror(points: set[int]) -> list[int]:
    from mssync.faces import mirror_points

    return [int(mirror_points()[k]) for k in points]


@dataclass
class Scene:
    """A portrait taken apart. picture (1, 3, H, W) in [0, 1]; matte (1, 1, H, W); mesh (1, 478, 3) in its pixels;
    box: x, y, side of the part that is drawn, or None for the whole; face, face_mesh: see `windows.face_window`."""

    picture: Tensor
    matte: Tensor
    mesh: Tensor
    box: tuple[float, float, float] | None
    face: Tensor
    face_mesh: Tensor
    rest: Any = None
    views: dict[int | None, View] = field(default_factory=dict)

    def view(self, size: int | None) -> View:
        if size not in self.views:
            self.views[size] = View(self, size)
        return self.views[size]


class View:
    """A scene at the size at which it is drawn: layers and points in output pixels."""

    def __init__(self, scene: Scene, size: int | None) -> None:
        height, width = scene.picture.shape[-2:]
        if size is None:
            self.height, self.width, scale, x0, y0 = height, width, 1.0, 0.0, 0.0
        else:
            assert scene.box is not None
            x0, y0, side = scene.box
            self.height = self.width = size
            scale = size / side
        self.pad = round(PAD * max(self.height, self.width))
        layers = torch.cat([scene.picture, scene.matte], 1)
        canvas = _cut(layers, x0, y0, scale, self.height, self.width, self.pad)
        own, plate = parted(canvas[:, :3].clamp(0, 1), canvas[:, 3:].clamp(0, 1))
        self.own = own
        p = self.pad
        self.plate = plate[..., p : p + self.height, p : p + self.width].contiguous()
        shift = torch.tensor([x0, y0, 0.0])
        # pixel centres: (x + 1/2) scales
        self.to_view = lambda points: (points + 0.5 - shift[: points.shape[-1]]) * scale - 0.5
        mesh = scene.mesh.clone()
        mesh[..., :2] = self.to_view(mesh[..., :2])
        mesh[..., 2] = mesh[..., 2] * scale
        self.scale, self.mesh = scale, mesh
        self.solver = view_solver(mesh)
        self.unit = max(self.height, self.width) / 2
        self.chosen = control_points()
        self.extra, self.follows = _extra_points(mesh)
        x = (torch.arange(-(-self.width * CELLS // max(self.width, self.height))) + 0.5) * (max(self.width, self.height) / CELLS) - 0.5
        y = (torch.arange(-(-self.height * CELLS // max(self.width, self.height))) + 0.5) * (max(self.width, self.height) / CELLS) - 0.5
        self.cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
        at_x, at_y = torch.arange(self.width).float(), torch.arange(self.height).float()
        self.pixels = torch.stack(torch.meshgrid(at_x, at_y, indexing="xy"), -1)
        self.organs = [OrganInView(kind, mirrored, self, scene) for kind, mirrored in ((MOUTH, False), (EYE, False), (EYE, True))]

    def flow(self, mesh: Tensor, head: Tensor, body: Tensor | None) -> Tensor:
        """Where the pixels of new frames come from, offsets (B, H, W, 2); mesh (B, 478, 2)."""
        carried = seen(self.extra, head)
        still = self.extra[..., :2].expand_as(carried)
        if body is not None:
            still = still @ body[:, :2] + body[:, 2:]
        carried = still + self.follows[:, None] * (carried - still)
        here = torch.cat([mesh[:, self.chosen], carried], 1)
        there = torch.cat([self.mesh[:, self.chosen, :2].expand(len(mesh), -1, -1), self.extra[..., :2].expand_as(carried)], 1)
        unit = self.unit
        offset = thin_plate(here / unit, there - here, self.cells.flatten(0, 1)[None] / unit, STIFFNESS)
        offset = offset.unflatten(1, self.cells.shape[:2]).permute(0, 3, 1, 2)
        cell = max(self.width, self.height) / CELLS
        whole = (round(offset.shape[2] * cell), round(offset.shape[3] * cell))
        offset = F.interpolate(offset, size=whole, mode="bicubic", align_corners=False)
        return offset[..., : self.height, : self.width].permute(0, 2, 3, 1)


class OrganInView:
    """One organ of a view: its window in the source, and in the picture of the face that the painter sees."""

    def __init__(self, kind: Organ, mirrored: bool, scene_view: View, scene: Scene) -> None:
        self.kind, self.mirrored = kind, mirrored
        mesh, face_mesh, self.face = scene_view.mesh, scene.face_mesh, scene.face
        self.width = scene_view.width
        if mirrored:
            mesh = mirror_mesh(mesh, self.width - 1.0)
            face_mesh = mirror_mesh(face_mesh, FACE.size[1] - 1.0)
            self.face = self.face.flip(3)
        self.frame, self.solver = source_frame(kind, mesh), view_solver(mesh)
        self.face_frame, self.face_mesh = source_frame(kind, face_mesh)[..., :2], face_mesh[..., :2]
        self.rim = rim(kind)

    def window(self, mesh: Tensor) -> Tensor:
        """(B, 3, 2): where the window is in frames with these meshes, mirrored where the organ is."""
        return framed(self.frame, view(self.solver, mesh))

    def target(self, mesh: Tensor) -> Tensor:
        return mirror_mesh(mesh, self.width - 1.0) if self.mirrored else mesh


def _cut(layers: Tensor, x0: float, y0: float, scale: float, height: int, width: int, pad: int) -> Tensor:
    """A part of a picture with `pad` pixels around, at a scale; outside, the border is repeated."""
    full_h, full_w = layers.shape[-2:]
    if scale < 0.75:  # area averaging first
        small = (max(1, round(full_h * scale)), max(1, round(full_w * scale)))
        shrunk_y, shrunk_x = small[0] / full_h, small[1] / full_w
        layers = F.interpolate(layers, size=small, mode="bicubic", antialias=True, align_corners=False)
    else:
        shrunk_x = shrunk_y = 1.0
    x = ((torch.arange(-pad, width + pad) + 0.5) / scale + x0) * shrunk_x
    y = ((torch.arange(-pad, height + pad) + 0.5) / scale + y0) * shrunk_y
    at = torch.stack(torch.meshgrid(x * (2 / layers.shape[-1]) - 1, y * (2 / layers.shape[-2]) - 1, indexing="xy"), -1)
    return F.grid_sample(layers, at[None], mode="bicubic", padding_mode="border", align_corners=False)


def _extra_points(mesh: Tensor) -> tuple[Tensor, Tensor]:
    """Points around the face (1, n, 3), and how far each moves with the head (n,): hair and ears, neck, body."""
    face = mesh[0]
    eyes = face[263, :2] - face[33, :2]
    unit = float(eyes.norm())
    right = eyes / unit
    down = torch.stack([-right[1], right[0]])
    middle = (face[263, :2] + face[33, :2]) / 2
    oval = face[list(OVAL[::2])]
    centre = oval.mean(0)
    depth = face[list(EARS), 2].mean()
    points, heights = [], []
    for k, scale in enumerate(RINGS):
        ring = centre + (oval - centre) * scale
        ring[:, 2] = depth if k else (depth + oval[:, 2]) / 2
        points.append(ring)
    rows = [(x * 1.0, y) for y in (2.3, 3.2, 4.2, 5.2) for x in range(-5, 6)]
    body = torch.stack([torch.cat([middle + right * (x * unit) + down * (y * unit), depth[None]]) for x, y in rows])
    every = torch.cat([*points, body])
    heights = (every[:, :2] - middle) @ down / unit
    low, high = NECK
    fall = ((heights - low) / (high - low)).clamp(0, 1)
    follows = 1 - fall * fall * (3 - 2 * fall)
    return every[None], follows


class LayeredRenderer(nn.Module):
    """Plate, field, painters."""

    def __init__(self, mouth: Painter, eye: Painter) -> None:
        super().__init__()
        self.mouth, self.eye = mouth, eye
        self.precision = "float32"

    def prepare(self, picture: np.ndarray, landmarks: np.ndarray, matte: np.ndarray, box: tuple[float, float, float] | None) -> Scene:
        """picture (H, W, 3) uint8; landmarks (478, 3) in its pixels; matte (H, W) in [0, 1]."""
        face, face_mesh, _ = face_window(picture, landmarks)
        return Scene(
            torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255,
            torch.from_numpy(matte)[None, None].float(),
            torch.from_numpy(landmarks)[None],
            box,
            torch.from_numpy(face).permute(2, 0, 1)[None].float() / 255,
            torch.from_numpy(face_mesh)[None],
        )

    def draw(self, scene: Scene, mesh: Tensor, size: int | None, body: Tensor | None = None) -> Tensor:
        """Frames (B, 3, h, w) in [0, 1]; mesh (B, 478, 2) in pixels of the picture."""
        at = scene.view(size)
        mesh = at.to_view(mesh)
        head = view(at.solver, mesh)
        offset = at.flow(mesh, head, body)
        added = []
        for organ in at.organs:
            added += self._organ(organ, at, mesh, offset)
        height, width = at.own.shape[-2:]
        coordinates = (at.pixels + offset + (at.pad + 0.5)) * torch.tensor([2 / width, 2 / height]) - 1
        own = F.grid_sample(at.own.expand(len(mesh), -1, -1, -1), coordinates, mode="bicubic", padding_mode="border", align_corners=False)
        frames = own[:, :3] + (1 - own[:, 3:]).clamp(0, 1) * at.plate
        for b, (top, left), piece in added:
            frames[b, :, top : top + piece.shape[1], left : left + piece.shape[2]] += piece
        return frames.clamp(0, 1)

    def _organ(self, organ: OrganInView, at: View, mesh: Tensor, offset: Tensor) -> list:
        kind = organ.kind
        target = organ.target(mesh)
        window = organ.window(target)
        scale = torch.tensor([float(FACE.size[1]), float(FACE.size[0])])
        batch = len(mesh)
        given = prompt(kind, organ.face, organ.face_frame, organ.face_mesh.expand(1, -1, -1), window, target, scale)
        with drawing_precision(mesh, self.precision):
            painted = (self.mouth if kind is MOUTH else self.eye)(given)
        change = torch.cat([painted - given.channels[:, :3], given.field.permute(0, 3, 1, 2)], 1)
        ratio = kind.size[0] / kind.size[1]
        corners = torch.tensor([[-1, -ratio], [1, -ratio], [-1, ratio], [1, ratio]])
        added = []
        for b in range(batch):
            there = placed(window[b : b + 1], corners[None])[0]
            if organ.mirrored:
                there = torch.stack([at.width - 1.0 - there[:, 0], there[:, 1]], -1)
            low, high = there.amin(0).floor().long().tolist(), there.amax(0).ceil().long().tolist()
            left, top = max(low[0], 0), max(low[1], 0)
            right, bottom = min(high[0] + 1, at.width), min(high[1] + 1, at.height)
            if right <= left or bottom <= top:
                continue
            pixels = at.pixels[top:bottom, left:right]
            points = torch.stack([at.width - 1.0 - pixels[..., 0], pixels[..., 1]], -1) if organ.mirrored else pixels
            uv = inside(window[b : b + 1], points.flatten(0, 1)[None]).unflatten(1, pixels.shape[:2])
            look = torch.cat([change[b : b + 1], organ.rim], 1)
            found = F.grid_sample(look, uv * torch.tensor([1.0, 1 / ratio]), mode="bilinear", padding_mode="zeros", align_corners=False)[0]
            place = placed(organ.frame[..., :2], (uv + found[3:5].permute(1, 2, 0)).flatten(1, 2))[0].unflatten(0, pixels.shape[:2])
            if organ.mirrored:
                place = torch.stack([at.width - 1.0 - place[..., 0], place[..., 1]], -1)
            part = offset[b, top:bottom, left:right]
            part += found[5][..., None] * (place - pixels - part)
            added.append((b, (top, left), found[:3]))
        return added
