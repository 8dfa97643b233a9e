"""How a head moves: range, speed and spectrum of its pose, and the Fréchet distance of its motion to real ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mssync.metrics.frechet import frechet_distance
from mssync.metrics.frontal import Fit, fit, fit_motion
from mssync.video import FPS

ANGLES = 3  # yaw, pitch and roll come first in a pose
POSE = 5  # then the place, across and down
SMOOTHING = 2.0  # frames: the mesh trembles by 0.2 to 0.5 degrees, which as a speed would outweigh the motion
RANGE = (5, 95)  # percentiles
STILL = 1e-6  # degrees²: less power than that is rounding
MIN_FRAMES = 25  # below which a clip has no spectrum to speak of

WINDOW = 25  # frames of a pose sequence: 1 s
STEP = 5  # every how many frames a pose is taken from a window, and a window from a clip
SAMPLES = WINDOW // STEP


def head_poses(landmarks: np.ndarray) -> np.ndarray:
    """Poses (T, 5) along a clip's landmarks (T, 478, 3): yaw, pitch, roll in degrees, place across and down.

    Signs as `faces.head_pose`: yaw grows as the face turns to the picture's right, pitch as it looks down, roll as it
    tilts clockwise in the picture; all are about 0 for a face from the front. The place is that between the eyes
    against its mean over the clip, in outer eye distances.
    """
    return _poses(fit(landmarks))


def motion_poses(motion: np.ndarray) -> np.ndarray:
    """`head_poses` of the faces behind a motion (T, 60) of the space compact-1, before any picture is drawn."""
    return _poses(fit_motion(motion))


def _poses(found: Fit) -> np.ndarray:
    across, down = found.rotation[..., 0], found.rotation[..., 1]
    yaw = np.arctan2(across[:, 2], np.hypot(across[:, 0], across[:, 1]))
    pitch = np.arctan2(down[:, 2], np.hypot(down[:, 0], down[:, 1]))
    roll = np.arctan2(across[:, 1], across[:, 0])
    place = (found.centre - found.centre.mean(0))[:, :2] / found.scale.mean()
    return np.concatenate([np.degrees(np.stack([yaw, pitch, roll], 1)), place], 1)


@dataclass
class HeadFigures:
    """How the head moves in one clip.

    yaw, pitch, roll: range in degrees, from the 5th to the 95th percentile; place: the same of the place, the larger
    of its two directions, in outer eye distances; speed: mean angular speed in degrees a second, of poses smoothed
    by 2 frames; frequency: mean of the spectrum of the angles in Hz (see `spectrum`), nan below 25 frames or for a
    head that does not move.
    """

    yaw: float
    pitch: float
    roll: float
    place: float
    speed: float
    frequency: float


def head_figures(poses: np.ndarray) -> HeadFigures:
    """Figures of a clip's poses (T, 5), T >= 2."""
    from scipy.ndimage import gaussian_filter1d

    low, high = np.percentile(poses, RANGE, axis=0)
    ranges = high - low
    smooth = gaussian_filter1d(poses[:, :ANGLES], SMOOTHING, axis=0)
    speed = float(np.linalg.norm(np.diff(smooth, axis=0), axis=1).mean() * FPS)
    frequencies, power = spectrum(poses)
    total = power.sum()
    moves = len(poses) >= MIN_FRAMES and total > STILL
    frequency = float((frequencies * power).sum() / total) if moves else float("nan")
    yaw, pitch, roll, *place = ranges.tolist()
    return HeadFigures(yaw, pitch, roll, max(place), speed, frequency)


def spectrum(poses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and power in degrees² (both (n,)) of yaw, pitch and roll together.

    A periodogram under a Hann window, without the mean and the straight line through the poses, and without 0 Hz.
    """
    from scipy.signal import detrend

    angles = detrend(poses[:, :ANGLES], axis=0)
    window = np.hanning(len(angles) + 2)[1:-1, None]
    power = np.square(np.abs(np.fft.rfft(angles * window, axis=0))).sum(1) / np.square(window).sum() / len(angles)
    return np.fft.rfftfreq(len(angles), 1 / FPS)[1:], power[1:]


def pose_windows(poses: np.ndarray) -> np.ndarray:
    """Windows of 1 s of a clip's poses (T, 5), against the mean of the clip, as (N, 25): 5 poses each."""
    moved = poses - poses.mean(0)
    starts = range(0, len(poses) - WINDOW + 1, STEP)
    return np.array([moved[start : start + WINDOW : STEP].ravel() for start in starts]).reshape(-1, SAMPLES * POSE)


class PoseDistance(Metric):
    """Fréchet distance between the head motion of generated and real clips, as a `torchmetrics.Metric`.

    Of windows of 1 s (`pose_windows`), in standard deviations of the real poses, so that degrees and places weigh
    alike; 0 for equal distributions. Tells too little or too much motion and a wrong rhythm; does not tell whether
    the motion fits the speech.
    """

    full_state_update = False
    sums: Tensor
    products: Tensor
    windows: Tensor

    def __init__(self) -> None:
        super().__init__()
        size = SAMPLES * POSE
        for name, shape in (("sums", (2, size)), ("products", (2, size, size)), ("windows", (2,))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, poses: np.ndarray, real: bool) -> None:
        """One clip's poses (T, 5); clips of less than 1 s are left out."""
        found = torch.from_numpy(pose_windows(poses)).to(self.sums)
        self.sums[int(real)] += found.sum(0)
        self.products[int(real)] += found.T @ found
        self.windows[int(real)] += len(found)

    def compute(self) -> Tensor:
        """The distance; nan with fewer than two windows of either kind."""
        if self.windows.min() < 2:
            return torch.tensor(float("nan"), dtype=torch.float64)
        means = self.sums / self.windows[:, None]
        outer = means[:, :, None] * means[:, None]
        unbiased = self.windows / (self.windows - 1)
        covs = (self.products / self.windows[:, None, None] - outer) * unbiased[:, None, None]
        # One deviation for the five times of each coordinate.
        variances = covs[1].diagonal().reshape(SAMPLES, POSE).mean(0)
        scale = variances.clamp(min=torch.finfo(torch.float64).tiny).rsqrt().repeat(SAMPLES)
        means, covs = means * scale, covs * scale[:, None] * scale
        return frechet_distance(means[0], covs[0], means[1], covs[1])
