"""Keypoints read from a face mesh: nine of the ten.

Each keypoint has an anchor (a mean of mesh points) and a neighbourhood of mesh points. Its coordinates are the
anchor's; its Jacobian is the least-squares linear map from the neighbourhood in the canonical face to the
neighbourhood in the picture, so that eyelids, lips and the turning head move the Jacobians. Both are linear in the
mesh points: the whole reading is one matrix.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from mssync.faces import CANONICAL_FILE, LEFT_LIDS, N_LANDMARKS, RIGHT_LIDS

READING_FILE = CANONICAL_FILE.with_name("face_reading.npy")  # `fit_reading` of the training clips
MAP_FILE = CANONICAL_FILE.with_name("mesh_map.npy")  # `fit_mesh_map`
RIDGE = 1e-6

# fmt: off
UPPER_LIP = (61, 185, 40, 39, 37, 0, 267, 269, 270, 409, 291, 78, 191, 80, 81, 82, 13, 312, 311, 310, 415, 308)
LOWER_LIP = (146, 91, 181, 84, 17, 314, 405, 321, 375, 95, 88, 178, 87, 14, 317, 402, 318, 324, 61, 291, 78, 308)
# fmt: on
NEAREST = 40  # mesh points in a neighbourhood that is not listed
SAME = 6  # decimals: what differs by less is as near

# name: (points whose mean is the anchor, neighbourhood or () for the NEAREST in the canonical face)
ANCHORS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "left eye": ((33, 133, 159, 145), LEFT_LIDS),
    "right eye": ((263, 362, 386, 374), RIGHT_LIDS),
    "nose": ((1, 4), ()),
    "left cheek": ((234, 93, 132), ()),
    "right cheek": ((454, 323, 361), ()),
    "forehead": ((10, 151), ()),
    "chin": ((152, 175), ()),
    "upper lip": ((0, 13), UPPER_LIP),
    "lower lip": ((14, 17), LOWER_LIP),
}
MESH_KEYPOINTS = len(ANCHORS)


@lru_cache(maxsize=1)
def canonical_face() -> np.ndarray:
    """The mean frontal mesh (478, 2), symmetric, in a crop's [-1, 1] coordinates."""
    return np.load(CANONICAL_FILE)


def neighbourhoods() -> list[np.ndarray]:
    """Mesh indices of each keypoint's neighbourhood.

    The face is symmetric, so points mirrored at its middle are equally near; of two that compete for the last place
    the higher index has it, as in the map that the shipped weights were trained with.
    """
    canonical = canonical_face()
    found = []
    for anchor, listed in ANCHORS.values():
        distance = np.linalg.norm(canonical - canonical[list(anchor)].mean(0), axis=-1)
        order = np.lexsort((-np.arange(N_LANDMARKS), distance.round(SAME)))
        found.append(np.array(listed) if listed else order[:NEAREST])
    return found


@lru_cache(maxsize=1)
def mesh_map() -> np.ndarray:
    """The reading as a tensor (9, 3, 478) float32: rows of a keypoint's [position; Jacobian^T] from the points."""
    return np.load(MAP_FILE)


def fit_mesh_map() -> np.ndarray:
    """What MAP_FILE holds, from the canonical face.

    Applied to points X (478, 2): row 0 gives the position p, rows 1 and 2 the columns of the Jacobian J that
    minimises sum |J r_i - h_i|^2 over its neighbourhood, r the centred canonical points, h the centred ones here:
    J^T = (R^T R)^-1 R^T H.
    """
    canonical = canonical_face().astype(np.float64)
    found = np.zeros((MESH_KEYPOINTS, 3, N_LANDMARKS))
    for k, ((anchor, _), near) in enumerate(zip(ANCHORS.values(), neighbourhoods(), strict=True)):
        found[k, 0, list(anchor)] = 1 / len(anchor)
        reference = canonical[near] - canonical[near].mean(0)
        # R is centred, so R^T H is R^T X: the mean of X falls out
        found[k, 1:, near] = np.linalg.solve(reference.T @ reference, reference.T).T
    return found.astype(np.float32)


def mesh_motion(landmarks: np.ndarray) -> np.ndarray:
    """Landmarks (..., 478, >=2) in [-1, 1] -> motion (..., 9, 6) of the keypoints on the face."""
    rows = np.einsum("krn,...ni->...kri", mesh_map(), landmarks[..., :2].astype(np.float32))
    jacobian = np.swapaxes(rows[..., 1:, :], -1, -2)
    return np.concatenate([rows[..., 0, :], jacobian.reshape(*jacobian.shape[:-2], 4)], -1)


@lru_cache(maxsize=1)
def face_reading() -> np.ndarray:
    """The way back, from keypoints to the mesh, as a matrix (55, 956): see `fit_reading`."""
    return np.load(READING_FILE)


def fit_reading(meshes: np.ndarray) -> np.ndarray:
    """The linear map (55, 956) float32 from [54 numbers of the nine keypoints, 1] to the points that fits best.

    meshes (N, 478, 2). The keypoints tell all but 0.3 pixels of 256 of what a mesh of a new face holds: its pose,
    proportions and expressions are few.
    """
    read = mesh_motion(meshes).reshape(len(meshes), -1).astype(np.float64)
    read = np.concatenate([read, np.ones((len(read), 1))], 1)
    square = read.T @ read / len(read) + RIDGE * np.eye(read.shape[1])
    return np.linalg.solve(square, read.T @ meshes.reshape(len(meshes), -1) / len(read)).astype(np.float32)


def fit_canonical(meshes: np.ndarray, mirror: np.ndarray, rounds: int = 3) -> np.ndarray:
    """Mean shape of meshes (N, 478, 2) under similarity (generalised Procrustes), made symmetric by `mirror`.

    mirror: (478,) index of each point's mirror point. Size and place are the mean ones of the meshes.
    """
    centred = meshes - meshes.mean(1, keepdims=True)
    size = np.linalg.norm(centred, axis=(1, 2), keepdims=True)
    shapes, mean = centred / size, (centred / size)[0]
    for _ in range(rounds):
        u, _, vt = np.linalg.svd(np.einsum("npi,pj->nij", shapes, mean))
        mean = np.einsum("npi,nij->npj", shapes, u @ vt).mean(0)
        mean = mean / np.linalg.norm(mean)
    mean = (mean + mean[mirror] * np.array([-1, 1])) / 2
    place = np.array([0.0, meshes[..., 1].mean()])  # on the vertical axis of the crop, as high as faces are in it
    return (mean * float(size.mean()) + place).astype(np.float32).reshape(N_LANDMARKS, 2)
