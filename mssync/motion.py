"""Motion: what a face does, as numbers. Smoothing, control of head and expression, transfer, files.

A motion is a float32 array (T, 10, 6) at 25 frames a second: ten keypoints, each
``[x, y, j00, j01, j10, j11]``, coordinates in [-1, 1] (x right, y down) and the 2×2 Jacobian around the
keypoint, row by row. One frame of it, (10, 6), is called a pose.

Motion belongs to a *space*, that of the keypoint detector which reads it. A space has a name, given once, when its
detector is trained or a public checkpoint is converted, and stored in every file that holds motion or was
trained on it. Files fit when the names are the same. Motion of the space `face-1` is no keypoints but (T, 50): see
`mssync.face1`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mssync.errors import InputError, PathLike, input_file, written_whole
from mssync.video import FPS

KEYPOINTS, VALUES = 10, 6  # numbers of one frame; 10 × 6 = the 60 of the paper's section 3
FACE, FACE_NUMBERS = "face-1", 50  # the space that is no keypoints, and the numbers of one frame
MIN_SPREAD = 0.1  # rigid keypoints count as spread in a direction from this share of their largest spread on
MIN_AREA_RATIO = 0.1  # no head shrinks to less than this between frames: such a fit is noise
MAX_FILE = 1 << 30  # bytes that a motion file may unpack to: two days of motion
UNNAMED = "unnamed"  # the space of a reenactor that no training or conversion has named
# Models and prepared folders of version 0.1 name spaces by a digest of the detector's weights.
EARLIER_NAMES = {"b65da1a07cdabc5f": "compact-1", "compact": "compact-1"}  # the latter in motion files
KERNEL_RADIUS = 3.0  # a Gaussian kernel reaches this many standard deviations


def points(motion: np.ndarray) -> np.ndarray:
    """Coordinates (…, 10, 2) of a motion or pose (…, 10, 6)."""
    return motion[..., :2]


def jacobians(motion: np.ndarray) -> np.ndarray:
    """Jacobians (…, 10, 2, 2) of a motion or pose (…, 10, 6)."""
    return motion[..., 2:].reshape(*motion.shape[:-1], 2, 2)


def join(coordinates: np.ndarray, jacobian: np.ndarray) -> np.ndarray:
    """The motion (…, 10, 6), float32, of coordinates (…, 10, 2) and Jacobians (…, 10, 2, 2)."""
    flat = jacobian.reshape(*jacobian.shape[:-2], 4)
    return np.concatenate([coordinates, flat], -1).astype(np.float32)


# Smoothing


def smooth(motion: np.ndarray, taps: int = 3) -> np.ndarray:
    """Centred moving average over `taps` frames (odd); beyond the ends the outermost frames are repeated.

    Three taps is what the authors' public code does to keypoints before training.
    """
    if taps < 1 or taps % 2 == 0:
        raise InputError(f"taps = {taps}: a centred average needs an odd number of frames")
    return _filter(motion, np.full(taps, 1 / taps))


def gaussian(motion: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian smoothing over time, `sigma` in frames; 0 returns the motion as it is. Ends as in `smooth`."""
    if sigma == 0:
        return motion
    radius = max(1, int(np.ceil(KERNEL_RADIUS * sigma)))
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return _filter(motion, kernel / kernel.sum())


def _filter(motion: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    radius, frames = len(kernel) // 2, len(motion)
    padded = np.pad(motion, [(radius, radius)] + [(0, 0)] * (motion.ndim - 1), mode="edge")
    out = np.zeros(motion.shape, np.float64)
    for offset, weight in enumerate(kernel):
        out += weight * padded[offset : offset + frames]
    return out.astype(np.float32)


# Head and expression


def fit_head(reference: np.ndarray, motion: np.ndarray, rigid: Sequence[int]) -> np.ndarray:
    """The head's motion: per frame the affine map of the reference's rigid keypoints onto the frame's.

    reference: (10, 6) pose; motion: (T, 10, 6); rigid: indices of the keypoints that move with the skull.
    Returns (T, 2, 3) float64, least squares. In a direction in which the reference's rigid keypoints hardly
    spread (MIN_SPREAD) nothing can be fitted and the map stays the identity; so it does, but for the
    translation, in frames whose fit mirrors or collapses the face (MIN_AREA_RATIO).
    """
    index = list(rigid)
    start = points(reference)[index].astype(np.float64)
    shift = points(motion)[:, index].astype(np.float64) - start
    centre = start.mean(0)
    # Least squares for the deviation from the identity: the pseudo-inverse leaves unseen directions at zero.
    inverse = np.linalg.pinv(start - centre, rcond=MIN_SPREAD)
    linear = np.eye(2) + np.einsum("tkc,dk->tcd", shift - shift.mean(1, keepdims=True), inverse)
    linear[np.linalg.det(linear) < MIN_AREA_RATIO] = np.eye(2)
    translation = shift.mean(1) + centre - linear @ centre
    return np.concatenate([linear, translation[..., None]], -1)


def split(reference: np.ndarray, motion: np.ndarray, rigid: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Part a motion into the head's and the expression's.

    Returns the head's affine maps A (T, 2, 3) of `fit_head`, and what is left once they are undone, float64:
    offsets e (T, 10, 2) from the reference's coordinates p_0, and Jacobians E (T, 10, 2, 2), so that
    p_t = A_t (p_0 + e_t) and J_t = A_lin E_t.
    """
    head = fit_head(reference, motion, rigid)
    undo = _inverse(head[:, None, :, :2])
    moved = points(motion).astype(np.float64) - head[:, None, :, 2]
    offsets = (undo @ moved[..., None])[..., 0] - points(reference)
    return head, offsets, undo @ jacobians(motion).astype(np.float64)


def _inverse(matrices: np.ndarray) -> np.ndarray:
    """Of (..., 2, 2) that have one. `np.linalg.inv` wakes the threads of numpy's BLAS, which then spin for a while: in
    a live session, which needs it for every frame, they take a third of a core."""
    (a, b), (c, d) = np.moveaxis(matrices, (-2, -1), (0, 1))
    adjugate = np.moveaxis(np.array([[d, -b], [-c, a]]), (0, 1), (-2, -1))
    return adjugate / np.linalg.det(matrices)[..., None, None]


def control(
    reference: np.ndarray,
    motion: np.ndarray,
    rigid: Sequence[int],
    *,
    head: float = 1.0,
    expression: float = 1.0,
) -> np.ndarray:
    """Scale how far the head moves away from the reference pose, and how strongly the face is expressed.

    reference: (10, 6) pose at rest (the portrait's); motion: (T, 10, 6); rigid: see `fit_head`.
    head: 0 keeps the head exactly where it is in the reference; expression: 0 freezes the face; 1 leaves
    either as it is, and both at 1 return the motion. Returns (T, 10, 6).
    """
    affine, offsets, jacobian = split(reference, motion, rigid)
    identity = np.eye(2, 3)
    affine = (identity + head * (affine - identity))[:, None]
    rest = jacobians(reference)
    inside = points(reference) + expression * offsets
    coordinates = (affine[..., :2] @ inside[..., None])[..., 0] + affine[..., 2]
    return join(coordinates, affine[..., :2] @ (rest + expression * (jacobian - rest)))


# Transfer from one person to another

FLAT = 0.4  # ratio of the axes of a Jacobian below which it is not divided by


def relative(motion: np.ndarray, start: np.ndarray, source: np.ndarray) -> np.ndarray:
    """The change of a driving motion since its pose `start`, put on the source's (FOMM's relative mode).

    motion: (T, 10, 6) of the driving face, start: (10, 6) the frame of it that resembles the source,
    source: (10, 6). Coordinates become s_0 + c (d_t - d_0), Jacobians J_t J_0^-1 J_s. The factor c is the
    ratio of the two faces' sizes, the root mean square distance of keypoints from their centre (FOMM's public
    code takes the root of the hull's area, in which single outer keypoints weigh more). A flat J_0, as of an eye that
    is closed in `start`, would tear the face when it opens: there Jacobians become J_s + c (J_t - J_0).
    """
    change = points(motion).astype(np.float64) - points(start)
    factor = _size(source) / max(_size(start), 1e-6)
    coordinates = points(source) + factor * change
    first, now = jacobians(start).astype(np.float64), jacobians(motion).astype(np.float64)
    turned = now @ np.linalg.pinv(first) @ jacobians(source)
    lengths = np.linalg.svd(first, compute_uv=False)
    flat = (lengths[..., 1] < FLAT * lengths[..., 0])[:, None, None]
    return join(coordinates, np.where(flat, jacobians(source) + factor * (now - first), turned))


def best_start(motion: np.ndarray, source: np.ndarray) -> int:
    """Index of the driving frame whose face is nearest to the source's: keypoints less centre, over size."""
    distance = np.square(_normalised(motion) - _normalised(source)).sum((-1, -2))
    return int(distance.argmin())


def _size(pose: np.ndarray) -> float:
    centred = points(pose).astype(np.float64) - points(pose).mean(-2)
    return float(np.sqrt(np.square(centred).sum(-1).mean()))


def _normalised(motion: np.ndarray) -> np.ndarray:
    centred = points(motion) - points(motion).mean(-2, keepdims=True)
    size = np.sqrt(np.square(centred).sum(-1).mean(-1))
    return centred / np.maximum(size, 1e-6)[..., None, None]


# Spaces


def space_name(stored: str) -> str:
    """The name of the space that a file means by `stored`: that itself, but for files of version 0.1."""
    return EARLIER_NAMES.get(stored, stored)


# Files


@dataclass(frozen=True)
class MotionFile:
    """What a motion file holds.

    Attributes:
        motion: (T, 10, 6) float32, or (T, 50) of the space face-1
        space: the name of the motion's space; of a file of version 0.1 the kind of its reenactor
        source_size: height and width in pixels of the picture or video that it was made for or read from
    """

    motion: np.ndarray
    space: str
    source_size: tuple[int, int]


def save_motion(path: PathLike, motion: np.ndarray, *, space: str, source_size: tuple[int, int]) -> None:
    """Write a motion file (``.npz`` with the keys motion, fps, space, source_size).

    Raises InputError when the motion is malformed or the file cannot be written.
    """
    check_motion(motion, str(path), space)
    with written_whole(path, ".npz") as part:
        np.savez_compressed(
            part,
            motion=motion.astype(np.float32),
            fps=np.int64(FPS),
            space=np.str_(space),
            source_size=np.array(source_size, np.int64),
        )


def load_motion(path: PathLike) -> MotionFile:
    """Read a motion file. Raises InputError when it is missing, malformed, or holds numbers of no use."""
    path = input_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE:
                raise InputError(f"{path}: unpacks to more than a motion file can hold")
        with np.load(path, allow_pickle=False) as data:
            motion, fps = data["motion"], int(data["fps"])
            space, size = str(data["space" if "space" in data else "reenactor"]), data["source_size"]
            height, width = (int(value) for value in size)
    except InputError:
        raise
    except Exception as error:  # a damaged archive may raise anything, MemoryError too
        raise InputError(f"{path}: not a motion file; make one with `mssync motion`") from error
    check_motion(motion, str(path), space)
    if fps != FPS:
        raise InputError(f"{path}: {fps} frames a second; motion has {FPS}")
    return MotionFile(motion.astype(np.float32), space_name(space), (height, width))


def check_motion(motion: np.ndarray, name: str, space: str = UNNAMED) -> None:
    """Raise InputError, naming `name`, unless motion is (T, 10, 6), or (T, 50) in the space face-1, T > 0, of finite
    floating-point numbers."""
    wanted = (FACE_NUMBERS,) if space == FACE else (KEYPOINTS, VALUES)
    if motion.shape[1:] != wanted or len(motion) == 0:
        shape = " × ".join(map(str, motion.shape))
        raise InputError(f"{name}: motion is {shape}, not frames × {' × '.join(map(str, wanted))}")
    if not np.issubdtype(motion.dtype, np.floating) or not np.isfinite(motion).all():
        raise InputError(f"{name}: motion holds values that are no finite numbers")
