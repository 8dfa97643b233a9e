"""Faces as landmarks: the mesh and its points, the fixed crop, measures on landmarks, paste-back.

Landmarks are the 478 points of MediaPipe's face mesh, which `mssync.face` finds. In pictures they are (478, 3) float32
pixels (x right, y down, z in the same unit, growing away from the camera); in prepared clips they are normalised to
the crop, [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from mssync.pixels import Places, resampled, shrunk

N_LANDMARKS = 478
N_SKIN = 468  # of them are on the face; the others are the irises'
CROP_SCALE = 1.9  # side of the crop in heights of the face: a face of VoxCeleb's proportions
MIN_CROP_SCALE = 1.35  # a crop is never tighter than this around everything the face reaches
# Mesh indices, "left" and "right" as seen in the picture.
EYE_CORNERS = (33, 263)
LEFT_EYE_LIDS, RIGHT_EYE_LIDS = (159, 145), (386, 374)
LEFT_EYE_WIDTH, RIGHT_EYE_WIDTH = (33, 133), (362, 263)
INNER_LIPS, MOUTH_CORNERS = (13, 14), (61, 291)
LEFT_LIDS = (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7)  # from the outer corner
RIGHT_LIDS = (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249)
LIPS = (  # the outer line, then the inner one
    61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185,
    78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191,
)  # fmt: skip
FOREHEAD, SUBNASALE, CHIN = 10, 2, 152

CANONICAL_FILE = Path(__file__).parent / "assets" / "canonical_face.npy"  # a symmetric mean face (478, 2)
MIRROR_FILE = CANONICAL_FILE.with_name("mirror_points.npy")  # `find_mirror_points`


@dataclass(frozen=True)
class Box:
    """A square in pixels: top-left corner and side. It may reach outside the picture."""

    x0: float
    y0: float
    side: float


@dataclass(frozen=True)
class Face:
    """One detected face: ``landmarks`` (478, 3) in pixels."""

    landmarks: np.ndarray

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Bounds (x0, y0, x1, y1) of the landmarks, in pixels."""
        low, high = self.landmarks[:, :2].min(0), self.landmarks[:, :2].max(0)
        return float(low[0]), float(low[1]), float(high[0]), float(high[1])

    @property
    def area(self) -> float:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)


def crop_box(faces: list[Face], width: int, height: int) -> Box:
    """The one fixed crop of a picture or a clip (VoxCeleb as prepared for FOMM: the head moves inside the frame).

    faces: the speaker's face in every frame (one face for a still). The square is CROP_SCALE median face
    heights wide, holds everything that the face reaches, and is moved or shrunk to stay inside the
    width × height picture as long as that leaves MIN_CROP_SCALE around the face.
    """
    boxes = np.array([face.box for face in faces])
    x0, y0 = boxes[:, :2].min(0)
    x1, y1 = boxes[:, 2:].max(0)
    face_height = float(np.median(boxes[:, 3] - boxes[:, 1]))
    reach = max(x1 - x0, y1 - y0)
    least = MIN_CROP_SCALE * reach
    side = max(CROP_SCALE * face_height, least)
    side = max(min(side, width, height), least)
    left, top = (x0 + x1 - side) / 2, (y0 + y1 - side) / 2 - 0.04 * side  # room for the hair
    return Box(_inside(left, side, width), _inside(top, side, height), float(side))


def grown(box: Box, times: float, width: int, height: int) -> Box:
    """A square so many times as large around a box, no larger than its picture and within it as far as it can be."""
    side = max(box.side, min(times * box.side, max(width, height)))
    more = (side - box.side) / 2
    return Box(_inside(box.x0 - more, side, width), _inside(box.y0 - more, side, height), side)


def _inside(start: float, length: float, limit: float) -> float:
    return float(np.clip(start, 0, limit - length)) if length <= limit else (limit - length) / 2


def crop(image: np.ndarray, box: Box, size: int) -> np.ndarray:
    """Cut a box out and resize it: (H, W, 3) uint8 -> (size, size, 3) uint8. Outside, the border is repeated."""
    height, width = image.shape[:2]
    x0, y0 = int(np.floor(box.x0)), int(np.floor(box.y0))
    x1, y1 = int(np.ceil(box.x0 + box.side)), int(np.ceil(box.y0 + box.side))
    part = image[max(y0, 0) : max(y1, 1), max(x0, 0) : max(x1, 1)]
    pads = ((max(-y0, 0), max(y1 - height, 0)), (max(-x0, 0), max(x1 - width, 0)), (0, 0))
    if np.any(pads):
        part = np.pad(part, pads, mode="edge")
    # Pixel centres: box coordinate u of the output's pixel i is (i + 1/2) * side / size.
    scale = box.side / size
    if scale > 1.5:  # area averaging first, or a large picture would alias
        shrink = max(1.0, part.shape[0] / max(1, round(part.shape[0] / scale)))
        small = (max(1, round(part.shape[1] / shrink)), max(1, round(part.shape[0] / shrink)))
        fx, fy = small[0] / part.shape[1], small[1] / part.shape[0]
        part = shrunk(part, *small)
    else:
        fx = fy = 1.0
    across = Places(((box.x0 - x0) + 0.5 * scale) * fx - 0.5, scale * fx, size)
    down = Places(((box.y0 - y0) + 0.5 * scale) * fy - 0.5, scale * fy, size)
    return resampled(part, across, down)


def in_crop(landmarks: np.ndarray, box: Box) -> np.ndarray:
    """Landmarks (..., 478, 3) in a picture's pixels -> in the crop's [-1, 1] (z in the same unit)."""
    origin, centre = np.array([box.x0, box.y0, 0], np.float32), np.array([1, 1, 0], np.float32)
    return ((landmarks - origin) * (2 / box.side) - centre).astype(np.float32)


def paste(image: np.ndarray, box: Box, patch: np.ndarray, edge: float = 0.08) -> np.ndarray:
    """Put an animated crop back into the full picture, with a soft edge.

    image: (H, W, 3) uint8; patch: (s, s, 3) uint8, the picture inside `box`; edge: width of the blend in
    sides of the box. Edges that lie on the picture's border are not blended. Returns a new (H, W, 3) uint8.
    """
    height, width = image.shape[:2]
    x0, y0 = max(round(box.x0), 0), max(round(box.y0), 0)
    x1, y1 = min(round(box.x0 + box.side), width), min(round(box.y0 + box.side), height)
    scale = patch.shape[0] / box.side
    across = Places((x0 + 0.5 - box.x0) * scale - 0.5, scale, x1 - x0)
    down = Places((y0 + 0.5 - box.y0) * scale - 0.5, scale, y1 - y0)
    part = resampled(patch, across, down, cubic=scale <= 1)
    ramp = max(edge * box.side, 1.0)
    alpha_x = _ramp(x0, x1, width, ramp)
    alpha_y = _ramp(y0, y1, height, ramp)
    alpha = np.minimum(alpha_y[:, None], alpha_x[None, :])[..., None].astype(np.float32)
    out = image.copy()
    out[y0:y1, x0:x1] = np.rint(alpha * part + (1 - alpha) * image[y0:y1, x0:x1]).astype(np.uint8)
    return out


def _ramp(start: int, stop: int, limit: int, width: float) -> np.ndarray:
    """0 at the two ends rising to 1 over `width` pixels (smooth step); stays 1 at an end on the border."""
    at = np.arange(start, stop) + 0.5
    left = np.ones_like(at) if start <= 0 else np.clip((at - start) / width, 0, 1)
    right = np.ones_like(at) if stop >= limit else np.clip((stop - at) / width, 0, 1)
    t = np.minimum(left, right)
    return t * t * (3 - 2 * t)


@lru_cache(maxsize=1)
def mirror_points() -> np.ndarray:
    """(478,) index of every mesh point's mirror point."""
    return np.load(MIRROR_FILE)


def find_mirror_points() -> np.ndarray:
    """What MIRROR_FILE holds: the point nearest to where the symmetric mean face mirrors each to."""
    face = np.load(CANONICAL_FILE)
    distance = np.linalg.norm((face * [-1, 1])[:, None] - face, axis=-1)
    return distance.argmin(1)


def mirrored_landmarks(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (..., 478, 2 or 3) in a crop's [-1, 1] as the mesh finds them in the mirrored crop: x negated, the
    points of the left half in the place of those of the right."""
    flipped = landmarks[..., mirror_points(), :].copy()
    flipped[..., 0] *= -1
    return flipped


# Measures. All take landmarks (..., 478, 3) in any unit in which x, y and z agree, and are free of scale.


def _distance(landmarks: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    return np.linalg.norm(landmarks[..., pair[0], :] - landmarks[..., pair[1], :], axis=-1)


def eye_distance(landmarks: np.ndarray) -> np.ndarray:
    """Between the outer corners of the eyes, in the picture."""
    return _distance(landmarks[..., :2], EYE_CORNERS)


def mouth_opening(landmarks: np.ndarray) -> np.ndarray:
    """Gap between the inner lips, in distances of the outer eye corners: 0 closed, about 0.5 wide open."""
    return _distance(landmarks, INNER_LIPS) / _distance(landmarks, EYE_CORNERS)


def eye_opening(landmarks: np.ndarray) -> np.ndarray:
    """Mean gap of the eyelids in widths of the eye: about 0.3 open, below 0.15 closed."""
    left = _distance(landmarks, LEFT_EYE_LIDS) / _distance(landmarks, LEFT_EYE_WIDTH)
    right = _distance(landmarks, RIGHT_EYE_LIDS) / _distance(landmarks, RIGHT_EYE_WIDTH)
    return (left + right) / 2


def head_pose(landmarks: np.ndarray) -> np.ndarray:
    """Yaw, pitch and roll (..., 3) in degrees, from the eye corners, the forehead and the base of the nose.

    Yaw grows as the face turns to the picture's right, pitch as it looks down, roll as it tilts clockwise
    in the picture; pitch has an anatomical offset of a few degrees.
    """
    across = landmarks[..., EYE_CORNERS[1], :] - landmarks[..., EYE_CORNERS[0], :]
    down = landmarks[..., SUBNASALE, :] - landmarks[..., FOREHEAD, :]
    yaw = np.arctan2(across[..., 2], np.linalg.norm(across[..., :2], axis=-1))
    pitch = np.arctan2(down[..., 2], np.linalg.norm(down[..., :2], axis=-1))
    roll = np.arctan2(across[..., 1], across[..., 0])
    return np.degrees(np.stack([yaw, pitch, roll], -1))
