"""What generated motion is like beside the real one, before a picture is drawn: lips, shape of the face, head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from mssync.data.sequences import Sequence as Clip
from mssync.metrics.estimates import Estimate, mean
from mssync.metrics.face import SHUT, Face
from mssync.metrics.head import PoseDistance, head_figures, motion_poses
from mssync.metrics.synchrony import BORROWED, REAL, STILL, borrowed, jitter
from mssync.video import FPS

PIXELS = 128  # of 256, in a unit of motion


@dataclass(frozen=True)
class MotionFigures:
    """One clip of one system.

    mouth_r: correlation over time of how far the mouth is open with the real motion (nan: it does not move); opening:
    how much that varies, over the real one. lips, shape: mean distance of the points of the lips, and of the whole face
    but for where it is and how it is turned, from the real ones, in pixels of 256. speed, yaw, pitch, roll, place: see
    `head.HeadFigures`. blinks: a minute. jitter: mean absolute acceleration of the keypoints over the real one.
    """

    mouth_r: float
    opening: float
    lips: float
    shape: float
    speed: float
    yaw: float
    pitch: float
    roll: float
    place: float
    blinks: float
    jitter: float


@dataclass(frozen=True)
class System:
    """A system over clips: means with their intervals by the names of `MotionFigures`, and the Fréchet distance of its
    head poses to the real ones (`head.PoseDistance`)."""

    name: str
    figures: dict[str, Estimate]
    pose_distance: float


def figures(face: Face, real: Tensor, made: Tensor) -> MotionFigures:
    """Motion (T, 60) against the real motion of the same speech (T, 60), of the space compact-1 both."""
    openings = [face.opening(x).numpy() for x in (real, made)]
    spreads = [float(x.std()) for x in openings]
    still = spreads[1] < 1e-6
    head = head_figures(motion_poses(made.numpy()))
    return MotionFigures(
        mouth_r=float("nan") if still else float(np.corrcoef(openings)[0, 1]),
        opening=spreads[1] / spreads[0],
        lips=_pixels_apart(face.lips(real), face.lips(made)),
        shape=_pixels_apart(face.shape(real), face.shape(made)),
        speed=head.speed,
        yaw=head.yaw,
        pitch=head.pitch,
        roll=head.roll,
        place=head.place,
        blinks=blinks(face.closed(made)),
        jitter=jitter(made) / jitter(real),
    )


def blinks(closed: Tensor) -> float:
    """How often eyes close in a minute, of how far they are closed in each frame, (T,) (see `Face.closed`)."""
    shut = closed > SHUT
    return float((shut[1:] & ~shut[:-1]).sum()) / len(closed) * 60 * FPS


def _pixels_apart(a: Tensor, b: Tensor) -> float:
    return PIXELS * float((a - b).norm(dim=-1).mean())


@torch.no_grad()
def compare(clips: Sequence[Clip], generated: Mapping[str, Sequence[Tensor]]) -> list[System]:
    """The real motion, a still face, the motion of another clip, and what generators made of each clip, by label."""
    systems: dict[str, Sequence[Tensor]] = {
        REAL: [clip.motion for clip in clips],
        STILL: [clip.motion[:1].expand_as(clip.motion) for clip in clips],
        BORROWED: borrowed(clips),
    }
    face, found = Face(), []
    poses = [motion_poses(clip.motion.numpy()) for clip in clips]
    for name, motions in (systems | dict(generated)).items():
        rows = [figures(face, clip.motion, motion) for clip, motion in zip(clips, motions, strict=True)]
        means = {f.name: mean(np.array([asdict(row)[f.name] for row in rows])) for f in fields(MotionFigures)}
        distance = PoseDistance()
        for pose, motion in zip(poses, motions, strict=True):
            distance.update(pose, real=True)
            distance.update(motion_poses(motion.numpy()), real=False)
        found.append(System(name, means, float(distance.compute())))
    return found
