"""The assets of the motion space `face-1` (`mssync.face1`), from the clips of `train`.

What faces at rest are is known from frames in which lips touch and eyes are open; what else a face does is what its
other frames are beside that. Both are reduced to principal components, lips and lids counting more than cheeks.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mssync.data.clips import read_clips
from mssync.data.sequences import read_motion
from mssync.face1 import EXPRESSIONS, EYES, IRISES, POSE, neutral, read
from mssync.faces import (
    INNER_LIPS,
    LEFT_EYE_LIDS,
    LEFT_LIDS,
    N_LANDMARKS,
    N_SKIN,
    RIGHT_EYE_LIDS,
    RIGHT_LIDS,
    mirror_points,
)
from mssync.metrics.frontal import frontalised
from mssync.motion import smooth
from mssync.reenact.detector import BODY
from mssync.reenact.mesh import LOWER_LIP, UPPER_LIP

EVERY, MOST = 3, 60  # every so many frames of a clip are looked at; of so many at most its expressions are learned
WEIGHT = 4.0  # of lips and lids against other points
CLOSED = 0.02  # outer eye distances: mouths that never come closer than that tell nothing about rest
AWAKE, QUIET = 0.4, 0.1  # quantiles: of a clip's frames eyes are open in those above, lips touch in those below
SHAPES = 40  # components in which faces at rest differ
NOISE = 0.02  # what components leave over, in weighted outer eye distances


def fit_space(data: str | Path) -> dict[str, NDArray]:
    """What `face1.FILE` holds but for `body`, of a prepared folder.

    mean (478, 3): of faces at rest; basis (40, 478, 3): what each number of an expression, 1 being its deviation, does
    to a face; reading (1434, 40): expressions of a face less the same face at rest; single (1434, 40): of a face less
    the mean one, where nothing else is known (see `face1.neutral`).
    """
    faces = {clip: frontalised(clip.landmarks[::EVERY]) for clip in read_clips(data, "train")}
    rests = {clip: rest for clip, face in faces.items() if (rest := _rest(face)) is not None}
    people = defaultdict(list)
    for clip, rest in rests.items():
        people[clip.entry.identity].append(rest)
    at_rest = _both_ways(np.stack([np.mean(found, 0) for found in people.values()]))
    mean, weights = at_rest.mean(0), _weights()
    shapes, spread = _components((at_rest - mean) * weights, SHAPES)
    rng = np.random.default_rng(0)
    moved = [rng.permutation(faces[clip] - rest)[:MOST] for clip, rest in rests.items()]
    said, deviation = _components(_both_ways(np.concatenate(moved)) * weights, EXPRESSIONS)
    both = np.concatenate([shapes * spread, said * deviation], 1)
    single = np.linalg.solve(both.T @ both + NOISE**2 * np.eye(both.shape[1]), both.T)[SHAPES:].T
    flat = weights.repeat(3, 1).ravel()
    basis = (said * deviation).T.reshape(EXPRESSIONS, N_LANDMARKS, 3) / np.maximum(weights, 1)
    for (a, b), iris in zip(EYES, IRISES, strict=True):
        basis[:, iris] = (basis[:, [a]] + basis[:, [b]]) / 2
    half = {"basis": basis, "reading": flat[:, None] * said / deviation, "single": flat[:, None] * single}
    return {"mean": mean.astype(np.float32)} | {name: value.astype(np.float16) for name, value in half.items()}


def fit_body(data: str | Path) -> NDArray[np.float32]:
    """`body` (6, 6): how the keypoint of neck and shoulders moves with the numbers of a pose, by least squares."""
    poses, bodies = [], []
    for clip in read_clips(data, "train"):
        if not clip.entry.stabilised:
            landmarks = clip.landmarks
            pose = smooth(read(landmarks, neutral(landmarks[0]))[:, POSE])
            body = smooth(read_motion(clip)["motion"])[:, BODY]
            poses.append(pose - pose.mean(0))
            bodies.append(body - body.mean(0))
    return np.linalg.lstsq(np.concatenate(poses), np.concatenate(bodies), rcond=None)[0].astype(np.float32)


def _weights() -> NDArray:
    """Of the points of a mesh, (478, 1); irises say nothing about expressions."""
    weights = np.ones((N_LANDMARKS, 1))
    weights[sorted({*UPPER_LIP, *LOWER_LIP, *LEFT_LIDS, *RIGHT_LIDS})] = WEIGHT
    weights[N_SKIN:] = 0
    return weights


def _rest(faces: NDArray) -> NDArray | None:
    """The mean of a clip's faces (T, 478, 3) in which lips touch and eyes are open; None: there are none."""
    opening = _gap(faces, INNER_LIPS)
    eyes = _gap(faces, LEFT_EYE_LIDS) + _gap(faces, RIGHT_EYE_LIDS)
    awake = eyes >= np.quantile(eyes, AWAKE)
    chosen = awake & (opening <= np.quantile(opening[awake], QUIET))
    return faces[chosen].mean(0) if opening[chosen].mean() < CLOSED else None


def _gap(faces: NDArray, pair: tuple[int, int]) -> NDArray:
    return np.linalg.norm(faces[:, pair[0]] - faces[:, pair[1]], axis=-1)


def _both_ways(faces: NDArray) -> NDArray:
    """Faces (n, 478, 3), and as seen in a mirror."""
    return np.concatenate([faces, faces[:, mirror_points()] * [-1, 1, 1]])


def _components(faces: NDArray, count: int) -> tuple[NDArray, NDArray]:
    """Principal components (1434, count) of faces (n, 478, 3) around zero, and their deviations, by size."""
    flat = faces.reshape(len(faces), -1).astype(np.float64)
    values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
    return vectors[:, ::-1][:, :count], np.sqrt(values[::-1][:count])
