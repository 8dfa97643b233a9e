"""The layered renderer: a portrait under a mesh, at any size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mssync.face.analyser import FaceMesh, largest_face
from mssync.faces import Box
from mssync.motion import UNNAMED
from mssync.reenact import SIZE, to_bytes, to_tensor
from mssync.reenact.detector import BODY, RIGID, KeypointDetector, find_landmarks
from mssync.reenact.geometry import inverse, split
from mssync.reenact.surface import Surface
from mssync.render.field import affine, view
from mssync.render.matte import MatteNet
from mssync.render.organs import MOUTH, face_window
from mssync.render.painter import Painter
from mssync.render.residual import Residual
from mssync.render.scene import OrganInView, Part, Scene, View, shifted
from mssync.weights import fold_batch_norms

STRIP = 32  # rows of a frame that are put together at once


class LayeredRenderer(nn.Module):
    """Plate, field and painters behind the Reenactor interface.

    motion_space: the name of what its detector reads (`mssync.motion`); body_width: of the detector;
    mouth_widths, eye_widths, matte_widths, residual_widths: channels of the networks; without the last there is none.
    """

    rigid = RIGID
    needs_landmarks = True
    any_size = True

    def __init__(
        self,
        mouth_widths: tuple[int, ...],
        eye_widths: tuple[int, ...],
        matte_widths: tuple[int, ...],
        residual_widths: tuple[int, ...] = (),
        body_width: int = 16,
        motion_space: str = UNNAMED,
    ) -> None:
        super().__init__()
        self.sizes = {
            "mouth_widths": tuple(mouth_widths), "eye_widths": tuple(eye_widths),
            "matte_widths": tuple(matte_widths), "residual_widths": tuple(residual_widths), "body_width": body_width,
        }  # fmt: skip
        self.space = motion_space
        self.precision = "float32"  # of painting: see for_rendering
        self.detector, self.surface = KeypointDetector(body_width), Surface()
        self.matte = MatteNet(matte_widths)
        self.mouth, self.eye = Painter("mouth", mouth_widths), Painter("eye", eye_widths)
        self.residual = Residual(residual_widths) if residual_widths else None

    @property
    def config(self) -> dict[str, Any]:
        """The arguments that rebuild it."""
        return {**self.sizes, "motion_space": self.space}

    def for_rendering(self, precision: str = "float32") -> LayeredRenderer:
        """Make painting fast, in place: batch norms folded into convolutions. Not for training."""
        for part in filter(None, (self.mouth, self.eye, self.matte, self.residual)):
            for module in part.modules():
                if isinstance(module, nn.Sequential):
                    fold_batch_norms(module)
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        for part in filter(None, (self.mouth, self.eye, self.residual)):
            part.to(torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self.precision = precision
        return self

    def keypoints(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> motion (B, 10, 6); landmarks (B, 478, >=2) in [-1, 1], searched unless given."""
        return self.detector(image, find_landmarks(image) if landmarks is None else landmarks)

    # Any size

    def prepare_picture(self, picture: np.ndarray, box: Box, landmarks: np.ndarray, motion: Tensor) -> Prepared:
        """What depends on the portrait alone.

        picture (H, W, 3) uint8; box: the part of it that is animated; landmarks (478, 3) in its pixels; motion
        (1, 10, 6): the keypoints of the box.
        """
        points, image = torch.from_numpy(landmarks), to_tensor(picture[None])
        part = (box.x0, box.y0, box.side)
        face, face_mesh, _ = face_window(picture, landmarks)
        matte = self.matte.alpha(image, points, part)
        scene = Scene(image, matte, points, part, to_tensor(face[None]), torch.from_numpy(face_mesh))
        return Prepared(scene, motion, self.surface(motion))

    @torch.inference_mode()
    def ready(self, prepared: Prepared, size: int | None) -> None:
        """Compute now, on all cores, what the first frame of this size would wait for."""
        prepared.scene.view(size)

    def draw(self, prepared: Prepared, motion: Tensor, size: int | None, mesh: Tensor | None = None) -> Tensor:
        """Frames (B, h, w, 3) uint8 under motion (B, 10, 6): the box at size × size, or (None) the whole picture.

        mesh: (B, 478, 2) in the box's [-1, 1], where it is known; else it is read from the motion.
        """
        x0, y0, side = prepared.scene.box
        if mesh is None:
            points = prepared.scene.mesh[:, :2] + (self.surface(motion) - prepared.rest) * (side / 2)
        else:
            points = (mesh + 1) * (side / 2) + torch.tensor([x0, y0])
        body = body_map(prepared.motion, motion, x0, y0, side)
        return self.draw_mesh(prepared.scene, points, size, body)

    def draw_mesh(self, scene: Scene, mesh: Tensor, size: int | None, body: Tensor | None = None) -> Tensor:
        """The same under meshes (B, 478, 2) in pixels of the picture.

        body: (B, 3, 2), an affine map [x, y, 1] @ body of these pixels, by which the body moves; None: it is still.
        """
        at = scene.view(size)
        mesh = at.placed(mesh)
        if body is not None:
            body = in_view(body, at)
        person, light, rows, columns = self._person(at, mesh, body)
        frames = at.rest.expand(len(mesh), -1, -1, -1).clone()
        for start in range(rows.start, rows.stop, STRIP):  # what is computed stays in the processor's cache
            strip = slice(start, min(start + STRIP, rows.stop))
            piece = person[:, :, shifted(strip, rows.start)]
            if light is not None:
                piece[:, :3] *= at.enlarged(light, strip, columns)
            behind = torch.sub(1, piece[:, 3:]).clamp_(0, 1) * at.plate[..., strip, columns]
            frames[:, strip, columns] = to_bytes(behind.add_(piece[:, :3]))
        return frames

    def _person(self, at: View, mesh: Tensor, body: Tensor | None) -> tuple[Tensor, Tensor | None, slice, slice]:
        """The person in frames, premultiplied RGBA (B, 4, h, w), and the gains of its colours, of cells (B, 3, r, c);
        rows and columns of what may differ from the picture, and so is drawn."""
        head = view(at.solver, mesh)
        field, light = at.field(mesh, head, body), None
        if self.residual is not None:
            change = at.look.carried(self.residual(at.look.given(field, head)))
            field, light = field + change[:, :2], change[:, 2:].exp()
        rows, columns, bands = part = at.changed(field)
        places = at.enlarged(field * at.to_own[:, None, None], rows, columns).add_(at.still[..., rows, columns])
        painted = [piece for organ in at.organs for piece in self._organ(organ, at, mesh, places, part)]
        person = at.warped(places, bands)
        for b, *where, piece in painted:
            person[b, :3, where[0], where[1]] += piece
        return person, light, rows, columns

    def _organ(
        self, organ: OrganInView, at: View, mesh: Tensor, places: Tensor, part: Part
    ) -> list[tuple[int, slice, slice, Tensor]]:
        """What is added to frames' `part` (number, rows, columns, colours); the warp under the window is set in
        `places`."""
        target = organ.turned(mesh)
        window = organ.window(target)
        given = organ.asked.prompt(window, target)
        painted = (self.mouth if organ.kind is MOUTH else self.eye)(given)
        shown = organ.shown(target, window)[:, None, None, None]
        maps = torch.cat([shown * (painted - given.warped), given.field.permute(0, 3, 1, 2), shown * organ.rim], 1)
        found = []
        for b, here in enumerate(organ.turned_window(window)):
            rows, columns = organ.reach(here, part.rows, part.columns)
            if rows.start >= rows.stop or columns.start >= columns.stop:
                continue
            new, uv = organ.spread(maps[b], here, at.x[columns], at.y[rows])
            rows, columns = shifted(rows, part.rows.start), shifted(columns, part.columns.start)
            places[b, :, rows, columns].lerp_(affine(organ.origin, *(uv + new[3:5])), new[5])
            found.append((b, rows, columns, new[:3]))
        return found

    # As the other reenactors: pictures of 256 × 256

    def prepare(self, source: Tensor, motion: Tensor | None = None) -> Prepared:
        """source: (1, 3, 256, 256) in [0, 1], a face; motion: its keypoints if known. Looks for its mesh.

        Raises InputError where no face is found.
        """
        picture = to_bytes(source)[0].cpu().numpy()
        landmarks = largest_face(FaceMesh(), picture, "the source").landmarks
        motion = self.keypoints(source) if motion is None else motion
        return self.prepare_picture(picture, Box(0, 0, picture.shape[0]), landmarks, motion)

    def render(self, state: Prepared, motion: Tensor) -> Tensor:
        """Frames (B, 3, 256, 256) in [0, 1]."""
        return self.draw(state, motion, SIZE).permute(0, 3, 1, 2).float() / 255


class Prepared:
    """A scene, and the motion (1, 10, 6) and surface (1, 478, 2) in [-1, 1] of its portrait at rest."""

    def __init__(self, scene: Scene, motion: Tensor, rest: Tensor) -> None:
        self.scene, self.motion, self.rest = scene, motion, rest


def body_map(rest: Tensor, motion: Tensor, x0: float, y0: float, side: float) -> Tensor:
    """The body's affine map (B, 3, 2) in the picture's pixels, from the keypoint that follows neck and shoulders.

    z -> p_D + J_D J_S^-1 (z - p_S) in the box's [-1, 1].
    """
    (p_s, j_s), (p_d, j_d) = split(rest[:, BODY]), split(motion[:, BODY])
    linear = j_d @ inverse(j_s)
    unit, centre = side / 2, torch.tensor([x0 + side / 2 - 0.5, y0 + side / 2 - 0.5])
    anchor = p_s * unit + centre
    moved = p_d * unit + centre - (linear @ anchor[..., None])[..., 0]
    return torch.cat([linear.transpose(1, 2), moved[:, None]], 1)


def in_view(body: Tensor, at: View) -> Tensor:
    """An affine map of the picture's pixels as one of the frames'."""
    origin = torch.tensor(at.origin)
    middle = (0.5 / at.scale - 0.5) + origin  # of the frame's pixel 0, in the picture
    shift = (middle @ body[:, :2] + body[:, 2] - middle) * at.scale
    return torch.cat([body[:, :2], shift[:, None]], 1)
