"""What generated motion is like beside the real one, before a picture is drawn: lips, shape of the face, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mssync.data.sequences import Sequence as Clip
from mssync.face1 import both_eyes
from mssync.metrics.estimates import Estimate, mean
from mssync.metrics.face import CONTACT, SACCADE, SACCADE_FRAMES, SHUT, Face
from mssync.metrics.head import PoseDistance, head_figures, motion_poses
from mssync.metrics.synchrony import BORROWED, REAL, STILL, borrowed, jitter
from mssync.video import FPS

PIXELS = 128  # of 256, in a unit of motion
NO_MOTION = 1e-6
LATEST = 8  # frames that lips may be late, or early
LONGEST = 8  # frames for which lips touch in speech
AT_VIEWER = 0.04  # widths of an eye from where a gaze mostly is, within which it is there


@dataclass(frozen=True)
class MotionFigures:
    """One clip of one system.

    mouth_r: correlation over time of how far the mouth is open with the real motion (nan: it does not move); opening:
    how much that varies, over the real one. width_r: as mouth_r, of its width. lag: frames by which lips are late,
    where mouth_r is the greatest; timely: whether that is at most one. met: share of the real lips' contacts that are
    made within a frame; false: share of contacts made that are nowhere near a real one (nan: there are none). lips,
    shape: mean distance of the points of the lips, and of the whole face but for where it is and how it is turned, from
    the real ones, in pixels of 256. speed, yaw, pitch, roll, place: see `head.HeadFigures`. blinks: a minute. jitter:
    mean absolute acceleration of the keypoints over the real one. gaze, viewer, saccades: see `gaze_figures`.
    """

    mouth_r: float
    opening: float
    width_r: float
    lag: float
    timely: float
    met: float
    false: float
    lips: float
    shape: float
    speed: float
    yaw: float
    pitch: float
    roll: float
    place: float
    blinks: float
    jitter: float
    gaze: float
    viewer: float
    saccades: float


@dataclass(frozen=True)
class System:
    """A system over clips: means with their intervals by the names of `MotionFigures`, and the Fréchet distance of its
    head poses to the real ones (`head.PoseDistance`)."""

    name: str
    figures: dict[str, Estimate]
    pose_distance: float


def figures(face: Face, real: Tensor, made: Tensor, gaze: Tensor | None = None) -> MotionFigures:
    """Motion (T, 60) against the real motion of the same speech (T, 60), of the space compact-1 both; where its eyes
    look, (T, 4) as in the space face-1."""
    openings, widths = ([read(x).numpy() for x in (real, made)] for read in (face.opening, face.width))
    late, met = lag(*openings), closures(*openings)
    head = head_figures(motion_poses(made.numpy()))
    return MotionFigures(
        mouth_r=_correlation(*openings),
        opening=float(openings[1].std() / openings[0].std()),
        width_r=_correlation(*widths),
        lag=late,
        timely=float("nan") if np.isnan(late) else float(abs(late) <= 1),
        met=met[0],
        false=met[1],
        lips=_pixels_apart(face.lips(real), face.lips(made)),
        shape=_pixels_apart(face.shape(real), face.shape(made)),
        speed=head.speed,
        yaw=head.yaw,
        pitch=head.pitch,
        roll=head.roll,
        place=head.place,
        blinks=blinks(face.closed(made)),
        jitter=jitter(made) / jitter(real),
        **gaze_figures(gaze),
    )


def _correlation(a: NDArray, b: NDArray) -> float:
    return float("nan") if min(a.std(), b.std()) < NO_MOTION else float(np.corrcoef(a, b)[0, 1])


def lag(real: NDArray, made: NDArray) -> float:
    """By how many frames openings (T,) are later than real ones, where they correlate most; nan: they do not move."""
    count = len(real) - 2 * LATEST
    if count < LATEST or made.std() < NO_MOTION:
        return float("nan")
    inner = real[LATEST : LATEST + count]
    found = {k: _correlation(inner, made[LATEST + k :][:count]) for k in range(-LATEST, LATEST + 1)}
    known = {k: r for k, r in found.items() if not np.isnan(r)}
    return float(max(known, key=known.__getitem__)) if known else float("nan")


def closures(real: NDArray, made: NDArray) -> tuple[float, float]:
    """Shares of the real contacts that are made, and of those made that are false, of openings (T,) of one person.

    Lips touch where the opening is in the lowest CONTACT of the real one's range. Of what is closed for longer than
    LONGEST frames nobody says that lips met: it is a pause.
    """
    low, high = np.quantile(real, (0.05, 0.95))
    closed = low + CONTACT * (high - low)
    # Who never opens does not meet: lips must be apart somewhere near.
    meets = [
        made[max(0, a - 1) : b + 1].min() < closed <= made[max(0, a - LONGEST) : b + LONGEST].max()
        for a, b in _runs(real < closed)
    ]
    rights = [real[max(0, a - 1) : b + 1].min() < closed for a, b in _runs(made < closed)]
    met, right = (float(np.mean(shares)) if shares else float("nan") for shares in (meets, rights))
    return met, 1 - right


def _runs(closed: NDArray) -> list[tuple[int, int]]:
    """First frames, and the ones after the last, of runs of true that are short and within what is given."""
    edges = np.flatnonzero(np.diff(closed.astype(np.int8))) + 1
    if closed[0]:
        edges = edges[1:]
    pairs = edges[: len(edges) // 2 * 2].reshape(-1, 2)
    return [(a, b) for a, b in pairs.tolist() if b - a <= LONGEST]


def blinks(closed: Tensor) -> float:
    """How often eyes close in a minute, of how far they are closed in each frame, (T,) (see `Face.closed`)."""
    shut = closed > SHUT
    return float((shut[1:] & ~shut[:-1]).sum()) / len(closed) * 60 * FPS


def gaze_figures(gaze: Tensor | None) -> dict[str, float]:
    """Of where eyes look (T, 4), the mean of both: deviation to the side, in % of an eye's width; share of the frames
    in which they are where they mostly are; saccades a minute. nan where nobody knows."""
    if gaze is None:
        return dict.fromkeys(("gaze", "viewer", "saccades"), float("nan"))
    at = both_eyes(gaze)
    away = (at - at.median(0).values).abs().amax(1)
    jumps = (at[SACCADE_FRAMES:] - at[:-SACCADE_FRAMES]).norm(dim=1) > SACCADE
    return {
        "gaze": 100 * float(at[:, 0].std()),
        "viewer": float((away < AT_VIEWER).float().mean()),
        "saccades": float((jumps[1:] & ~jumps[:-1]).sum()) / len(at) * 60 * FPS,
    }


def _pixels_apart(a: Tensor, b: Tensor) -> float:
    return PIXELS * float((a - b).norm(dim=-1).mean())


@torch.no_grad()
def compare(
    clips: Sequence[Clip],
    generated: Mapping[str, Sequence[Tensor]],
    gazes: Mapping[str, Sequence[Tensor]] | None = None,
) -> list[System]:
    """The real motion, a still face, the motion of another clip, and what generators made of each clip, by label.

    gazes: (T, 4) of each clip by label, where they are known.
    """
    systems: dict[str, Sequence[Tensor]] = {
        REAL: [clip.motion for clip in clips],
        STILL: [clip.motion[:1].expand_as(clip.motion) for clip in clips],
        BORROWED: borrowed(clips),
    }
    face, found = Face(), []
    poses = [motion_poses(clip.motion.numpy()) for clip in clips]
    for name, motions in (systems | dict(generated)).items():
        looks: Sequence[Tensor | None] = (gazes or {}).get(name) or [None] * len(clips)
        rows = [
            figures(face, clip.motion, motion, gaze) for clip, motion, gaze in zip(clips, motions, looks, strict=True)
        ]
        means = {f.name: mean(np.array([asdict(row)[f.name] for row in rows])) for f in fields(MotionFigures)}
        distance = PoseDistance()
        for pose, motion in zip(poses, motions, strict=True):
            distance.update(pose, real=True)
            distance.update(motion_poses(motion.numpy()), real=False)
        found.append(System(name, means, float(distance.compute())))
    return found
