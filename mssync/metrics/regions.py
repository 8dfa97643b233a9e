"""Which part of a portrait's frame is what: face, mouth, eyes, hair, and skin that can be compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

import numpy as np

from mssync.faces import CHIN, LEFT_LIDS, N_LANDMARKS, N_SKIN, RIGHT_LIDS, mirror_points
from mssync.pixels import filled, hull
from mssync.reenact.mesh import LOWER_LIP, UPPER_LIP, canonical_face

REGIONS = ("whole", "face", "mouth", "eyes", "hair")
GROWN_MOUTH, GROWN_EYES, GROWN_BROWS = 1.3, 1.4, 1.3  # in sizes of lips, lids and brows
GROWN_FACE = 1.05  # within which there is no hair: the mesh's rim is not exact
SURE = 0.9  # alpha of hair, whose edges are mixed with what is behind
FACING = 0.3  # cosine of the angle between the view and a point's normal, above which the point is seen
LEFT_BROW = (70, 63, 105, 66, 107, 55, 65, 52, 53, 46)

Matte = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Picture (H, W, 3) uint8 and landmarks (478, 3) in its pixels -> alpha (H, W) in [0, 1] of the person."""


def default_matte() -> Matte:
    """That of the shipped renderer: the same for all models that are compared."""
    import torch

    from mssync.weights import load_model

    renderer: Any = load_model("reenactor", kinds=("layered",))[0]

    def found(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
        image = torch.from_numpy(picture).permute(2, 0, 1)[None].float() / 255
        box = (0.0, 0.0, float(max(picture.shape[:2])))
        return renderer.matte.alpha(image, torch.from_numpy(points).float(), box)[0, 0].numpy()

    return found


def masks(points: np.ndarray, alpha: np.ndarray) -> dict[str, np.ndarray]:
    """REGIONS and "skin", which is the face without mouth, eyes and brows: masks (s, s) bool of a frame.

    points: landmarks (478, 3) in its pixels; alpha: (s, s), of the person.
    """
    size, flat = len(alpha), points[:, :2]
    face = _hull(flat, size)
    mouth = _hull(flat[list({*UPPER_LIP, *LOWER_LIP})], size, GROWN_MOUTH)
    eyes = _both(flat, (LEFT_LIDS, RIGHT_LIDS), size, GROWN_EYES)
    brows = _both(flat, (LEFT_BROW, mirror_points()[list(LEFT_BROW)]), size, GROWN_BROWS)
    above = np.arange(size)[:, None] < flat[CHIN, 1]
    hair = (alpha > SURE) & ~_hull(flat, size, GROWN_FACE) & above
    found = {"whole": np.ones_like(face), "face": face, "mouth": mouth, "eyes": eyes, "hair": hair}
    return found | {"skin": face & ~mouth & ~eyes & ~brows}


def _both(points: np.ndarray, sides: Iterable[Iterable[int]], size: int, grown: float) -> np.ndarray:
    left, right = (_hull(points[list(side)], size, grown) for side in sides)
    return left | right


def _hull(points: np.ndarray, size: int, grown: float = 1.0) -> np.ndarray:
    """Mask (size, size) of the hull of points (n, 2), grown around their middle."""
    middle = points.mean(0)
    return filled(hull(np.rint((points - middle) * grown + middle)), size, size)


@lru_cache(maxsize=1)
def triangles() -> np.ndarray:
    """Triangles (n, 3) between the mesh's points, all turned the same way in a face that is seen from the front."""
    from scipy.spatial import Delaunay

    face = canonical_face()[:N_SKIN]
    found = Delaunay(face).simplices
    one, two = (face[found[:, k]] - face[found[:, 0]] for k in (1, 2))
    backward = one[:, 0] * two[:, 1] < one[:, 1] * two[:, 0]
    found[backward] = found[backward][:, ::-1]
    return found


def facing(points: np.ndarray) -> np.ndarray:
    """Which points of a mesh (478, 3) are turned to the camera: (478,) bool, the irises' are not."""
    corners = points[triangles()].astype(np.float64)
    of_triangles = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])  # longer for larger ones
    normals = np.zeros((N_LANDMARKS, 3))
    for corner in range(3):
        np.add.at(normals, triangles()[:, corner], of_triangles)
    lengths = np.linalg.norm(normals, axis=1)
    return normals[:, 2] > FACING * np.maximum(lengths, np.finfo(float).tiny)


def seen_skin(points: np.ndarray, skin: np.ndarray) -> np.ndarray:
    """Which points of a mesh (478, 3) show skin (s, s): (478,) bool."""
    x, y = pixels(points, len(skin))
    inside = ((points[:, :2] >= 0) & (points[:, :2] < len(skin))).all(1)
    return facing(points) & inside & skin[y, x]


def pixels(points: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and rows, (n,) each, of the pixels in which points (n, 2 or 3) lie; the nearest of those outside."""
    x, y = np.clip(np.floor(points[:, :2]).astype(int), 0, size - 1).T
    return x, y
