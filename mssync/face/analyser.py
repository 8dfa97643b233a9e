"""Faces of pictures and along videos: detector and mesh together.

A detection tells a view of a face well enough for the mesh network, whose mesh tells a better view, and so a better
mesh. Along a video each frame's view is that of the mesh before it: nothing is smoothed, so nothing is late.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.errors import InputError
from mssync.face.detector import SIZE as PICTURE
from mssync.face.detector import SURE, Detection, FinderNet, apart, decoded, views
from mssync.face.geometry import Views, cut, views_of
from mssync.face.mesh import SIZE, MeshNet
from mssync.faces import Box, Face, crop

FACE = 0.97  # probability that the view of a detection shows a face, from which on its mesh counts
HELD = 0.5  # the same of a view of the face that is followed
MAX_FACES = 5
# A picture that shows no face as a whole is searched in overlapping tiles.
TILE_PARTS = (2, 4)  # tiles are the longest side over this, one size after the other until a face is found
MIN_TILE = 256  # pixels: a face found only in smaller tiles has too few to work with
TILE_SURE = 0.7  # higher than for the whole picture: every tile is a chance to take texture for a face
OTHERS_SURE = 0.7  # likewise of every face beside the surest one: a fold of a shirt may look like one, and larger
LOOKS = 2  # at each face of a picture: the view of a mesh is better than that of a detection
RGB = NDArray[np.uint8]


class FaceNets(nn.Module):
    """Detector and mesh network in one file."""

    def __init__(self) -> None:
        super().__init__()
        self.finder, self.mesh = FinderNet(), MeshNet()

    @torch.inference_mode()
    def detections(self, image: RGB, sure: float = SURE) -> list[Detection]:
        """Faces that show in a picture (H, W, 3) as a whole, the surest first, in its pixels."""
        height, width = image.shape[:2]
        scale = PICTURE / max(height, width)
        size = [max(1, round(height * scale)), max(1, round(width * scale))]
        padded = F.pad(_sized(image, size), (0, PICTURE - size[1], 0, PICTURE - size[0]))
        found = decoded(self.finder(padded * 2 - 1), sure)[0]
        across, down = width / size[1], height / size[0]
        return [
            Detection((f.x + 0.5) * across - 0.5, (f.y + 0.5) * down - 0.5, f.side / scale, f.roll, f.probability)
            for f in found
        ]

    @torch.inference_mode()
    def meshes(self, image: RGB, seen: Views, looks: int = 1) -> tuple[Tensor, Tensor]:
        """Meshes (n, 478, 3) in pixels of what views show of a picture (H, W, 3), and how likely each is a face, (n,).

        looks: how often; each but the first at the view of the mesh before.
        """
        pictures = torch.cat([_cut(image, one) for one in _each(seen)])
        points, score = self.mesh(pictures * 2 - 1)
        found = seen.to_picture(points)
        return self.meshes(image, views_of(found), looks - 1) if looks > 1 else (found, torch.sigmoid(score))

    def faces(self, image: RGB, found: list[Detection]) -> list[NDArray[np.float32]]:
        """Meshes (478, 3) of the detections that are faces, in their order."""
        if not found:
            return []
        meshes, sure = self.meshes(image, views(found), LOOKS)
        return [mesh.numpy() for mesh, chance in zip(meshes, sure, strict=True) if chance > FACE]


class FaceMesh:
    """Dense landmarks of the faces in pictures (``mesh(image)``) or along a video (``mesh.track(frames)``).

    Any number of threads may use one.
    """

    @property
    def nets(self) -> FaceNets:
        return shipped()

    def load(self) -> None:
        """Read what the first picture would otherwise wait for."""
        shipped()

    def __call__(self, image: RGB) -> list[Face]:
        """Faces of one picture, the largest first.

        image: (H, W, 3) uint8 RGB. Where no face shows in the picture as a whole it is looked at in overlapping tiles.
        """
        faces = self._in_whole(image)
        for parts in TILE_PARTS:
            side = max(image.shape[:2]) // parts
            if faces or side < MIN_TILE:
                break
            found = [
                replace(hit, x=hit.x + x0, y=hit.y + y0)
                for x0, y0 in _tiles(image, side)
                for hit in self.nets.detections(image[y0 : y0 + side, x0 : x0 + side], TILE_SURE)
            ]
            faces = self._meshed(image, found)
        return faces

    def _in_whole(self, image: RGB) -> list[Face]:
        return self._meshed(image, self.nets.detections(image))

    def _meshed(self, image: RGB, found: list[Detection]) -> list[Face]:
        """Faces of detections, each once, the largest first."""
        return _distinct([Face(mesh) for mesh in self.nets.faces(image, _apart(found)[:MAX_FACES])])

    def detect(self, image: RGB) -> list[Box]:
        """Squares twice as large as the faces that show in a picture (H, W, 3) as a whole, the surest first."""
        found = _apart(self.nets.detections(image))[:MAX_FACES]
        return [Box(face.x - face.side, face.y - face.side, 2 * face.side) for face in found]

    def confidence(self, image: RGB) -> float:
        """How sure the detector is of the surest face that shows in a picture (H, W, 3) as a whole: 0.5 to 1, or 0."""
        return max((face.probability for face in self.nets.detections(image)), default=0.0)

    def follower(self) -> Follower:
        return Follower(self.nets)

    def track(self, frames: Iterable[RGB]) -> Iterator[Face | None]:
        """One face (or None) a frame of a video of one speaker; streams.

        frames: (H, W, 3) uint8 RGB pictures of one size. Follows the face that it found first; where that is lost, one
        is looked for in the whole frame, as in a still, but not in tiles: a long video without a face would take too
        long.
        """
        follower = self.follower()
        for frame in frames:
            mesh = follower(frame)
            if mesh is None and (faces := self._in_whole(frame)):
                mesh = faces[0].landmarks
                follower.take(mesh)
            yield None if mesh is None else Face(mesh)


class Follower:
    """Follows one face of several along a video. What it finds depends on the frames since `start` alone."""

    def __init__(self, nets: FaceNets) -> None:
        self.nets = nets
        self._window: Box | None = None
        self._last: Tensor | None = None  # (1, 478, 3)

    def start(self, window: Box) -> None:
        """Forget the face; look for one in `window` from the next frame on."""
        self._window, self._last = window, None

    def take(self, mesh: NDArray[np.float32]) -> None:
        """Follow the face of a mesh (478, 3)."""
        self._last = torch.from_numpy(mesh)[None]

    def __call__(self, image: RGB) -> NDArray[np.float32] | None:
        """The face's landmarks (478, 3) in pixels of a frame (H, W, 3) uint8 RGB; None where it is not found."""
        if self._last is None:
            return self._looked_for(image)
        meshes, sure = self.nets.meshes(image, views_of(self._last))
        if sure[0] < HELD:
            self._last = None
            return self._looked_for(image)
        self._last = meshes
        self._window = None
        return meshes[0].numpy()

    def _looked_for(self, image: RGB) -> NDArray[np.float32] | None:
        if self._window is None:
            return None
        side = round(self._window.side)
        part = crop(image, self._window, side)
        shift = np.array([self._window.x0, self._window.y0, 0], np.float32)
        found = self.nets.faces(part, self.nets.detections(part)[:1])
        if not found:
            return None
        self.take(found[0] + shift)
        return found[0] + shift


def largest_face(mesh: FaceMesh, image: np.ndarray, name: str) -> Face:
    """The largest face of a picture; warns when there are several.

    Raises InputError (naming `name`) when there is none.
    """
    faces = mesh(image)
    if not faces:
        raise InputError(f"{name}: no face found; use a picture that shows one face, roughly from the front")
    if len(faces) > 1:
        warnings.warn(f"{name}: {len(faces)} faces found; the largest one is used", stacklevel=2)
    return faces[0]


@lru_cache(maxsize=1)
def shipped() -> FaceNets:
    """The networks that the package ships, batch norms folded into the convolutions before them."""
    from mssync.weights import fold_batch_norms, load_model

    nets = cast(FaceNets, load_model("faces", kinds=("faces",))[0])
    for module in [m for m in nets.modules() if isinstance(m, nn.Sequential)]:
        fold_batch_norms(module)
    return nets.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _apart(found: list[Detection]) -> list[Detection]:
    """Detections, the surest first, and others that are sure enough. Each face once: tiles overlap."""
    kept: list[Detection] = []
    for face in sorted(found, key=lambda hit: -hit.probability):
        if kept and (face.probability < OTHERS_SURE or not all(apart(face, other) for other in kept)):
            continue
        kept.append(face)
    return kept


def _tiles(image: np.ndarray, side: int) -> Iterator[tuple[int, int]]:
    """Corners (x0, y0) of square tiles that cover a picture (H, W, 3), overlapping by half or more.

    So a face up to half a tile wide lies whole in one of them.
    """
    starts = []
    for length in image.shape[:2]:
        last = max(length - side, 0)
        starts.append(np.linspace(0, last, 1 + -(-2 * last // side)).astype(int).tolist())
    for y0 in starts[0]:
        for x0 in starts[1]:
            yield x0, y0


def _distinct(faces: list[Face]) -> list[Face]:
    """Drop meshes that landed on the same face (two detections of one face overlap); the largest first."""
    kept: list[Face] = []
    for face in sorted(faces, key=lambda f: -f.area):
        centre = face.landmarks[:, :2].mean(0)
        boxes = [other.box for other in kept]
        if not any(x0 < centre[0] < x1 and y0 < centre[1] < y1 for x0, y0, x1, y1 in boxes):
            kept.append(face)
    return kept


def _sized(image: RGB, size: list[int]) -> Tensor:
    """A picture (H, W, 3) at a size (h, w), (1, 3, h, w) in [0, 1]."""
    planes = torch.tensor(image).permute(2, 0, 1)[None]
    if list(image.shape[:2]) != size:
        planes = F.interpolate(planes, size, mode="bilinear", antialias=True, align_corners=False)
    return planes.float() / 255


def _cut(image: RGB, view: Views) -> Tensor:
    """What one view shows of a picture (H, W, 3), (1, 3, 192, 192) in [0, 1]; of which only that part is looked at."""
    corners = view.to_picture(torch.tensor([[[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]]))[0]
    size = torch.tensor(image.shape[1::-1])
    margin = 2 + float(view.side[0]) / SIZE
    low = (corners.amin(0) - margin).floor().long().clamp(torch.zeros(2, dtype=torch.long), size - 1)
    high = (corners.amax(0) + margin).ceil().long().clamp(low + 1, size)
    part = image[low[1] : high[1], low[0] : high[0]]
    # Shrunk here, as whole numbers, which takes a fraction of the time that it takes as others.
    shrink = max(1.0, float(view.side[0]) / SIZE)
    height, width = (max(1, round(length / shrink)) for length in part.shape[:2])
    ratio = torch.tensor([width / part.shape[1], height / part.shape[0]])
    centre = (view.centre - low + 0.5) * ratio - 0.5
    return cut(_sized(part, [height, width]), Views(centre, view.side * ratio.mean(), view.roll), SIZE)


def _each(seen: Views) -> Iterator[Views]:
    for k in range(len(seen.side)):
        yield Views(seen.centre[k : k + 1], seen.side[k : k + 1], seen.roll[k : k + 1])
