"""Random pairs of frames of a clip, for training the reenactor.

Sample n is a function of (seed, n) alone, so a resumed or distributed training sees the same samples in the
same order as an undisturbed one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mssync.data.clips import Clip
from mssync.data.prepare import SIZE
from mssync.faces import mouth_opening
from mssync.reenact.guidance import FLIPPED, LOWER_LIP, UPPER_LIP, landmark_motion

WEIGHT_SIZE = 64  # side of the loss weight map
FACE_WEIGHT, EYE_WEIGHT, MOUTH_WEIGHT = 2.0, 6.0, 20.0  # of a pixel in the loss; the background has 1
EYES = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
)
CANDIDATES = 6  # driving frames of which one is chosen by its mouth
MAX_ZOOM, MAX_SHIFT = 0.12, 0.05  # augmentation of the crop: both frames alike


class FramePairs(Dataset):
    """Pairs (source, driving) of one clip; identities are drawn evenly, then clips, then frames.

    Items: source, driving (3, 256, 256) uint8; source_motion, driving_motion (10, 6) the guidance;
    weight (1, 64, 64) for the driving frame.
    """

    def __init__(self, clips: list[Clip], samples: int, seed: int) -> None:
        self.samples, self.seed = samples, seed
        self.identities: dict[str, list[Clip]] = {}
        for clip in clips:
            self.identities.setdefault(clip.entry.identity, []).append(clip)
        self.names = sorted(self.identities)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, n: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, n))
        clips = self.identities[self.names[rng.integers(len(self.names))]]
        clip = clips[rng.integers(len(clips))]
        times = self._times(clip, rng)
        change = _Change(rng)
        (source, source_marks), (driving, marks) = (change(clip.frame(t), clip.marks(t)) for t in times)
        return {
            "source": _tensor(source),
            "driving": _tensor(driving),
            "source_motion": torch.from_numpy(change.guidance(source_marks)),
            "driving_motion": torch.from_numpy(change.guidance(marks)),
            "weight": torch.from_numpy(weight_map(change.seen(marks)))[None],
        }

    @staticmethod
    def _times(clip: Clip, rng: np.random.Generator) -> tuple[int, int]:
        """Source and driving frame; every other time the one of several driving frames whose mouth differs most.

        Mouths are closed most of the time: drawn evenly, pairs hardly show what opens one.
        """
        source, *others = (int(t) for t in rng.integers(len(clip), size=1 + CANDIDATES))
        if rng.random() < 0.5:
            return source, others[0]
        gaps = mouth_opening(clip.arrays["landmarks"][[source, *others]].astype(np.float32))
        return source, others[int(np.abs(gaps[1:] - gaps[0]).argmax())]


def _tensor(image: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


class _Change:
    """One random zoom, shift, mirroring and change of colour, the same for both frames of a pair."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.zoom = 1 + rng.uniform(-MAX_ZOOM, MAX_ZOOM)
        self.shift = rng.uniform(-MAX_SHIFT, MAX_SHIFT, 2) * 2
        self.mirror = rng.random() < 0.5
        self.gain = rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
        self.offset = rng.uniform(-20, 20)

    def __call__(self, frame: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import cv2

        half = SIZE / 2
        move = half * (1 - self.zoom) + half * self.shift - 0.5 * (1 - self.zoom)
        matrix = np.array([[self.zoom, 0, move[0]], [0, self.zoom, move[1]]])
        frame = cv2.warpAffine(frame, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
        table = np.clip(np.arange(256)[:, None] * self.gain + self.offset, 0, 255).astype(np.uint8)
        frame = np.stack([table[:, c][frame[..., c]] for c in range(3)], -1)
        return (frame[:, ::-1] if self.mirror else frame), marks[:, :2] * self.zoom + self.shift

    def guidance(self, marks: np.ndarray) -> np.ndarray:
        """Guidance (10, 6) of marks that are not mirrored, for the frame as it is seen."""
        motion = landmark_motion(marks[None])[0]
        return mirrored(motion) if self.mirror else motion

    def seen(self, marks: np.ndarray) -> np.ndarray:
        return marks * np.array([-1, 1], np.float32) if self.mirror else marks


def mirrored(motion: np.ndarray) -> np.ndarray:
    """Guidance motion (..., 10, 6) of the mirrored picture: x and the mixed entries change sign, pairs swap."""
    return motion[..., FLIPPED, :] * np.array([-1, 1, 1, -1, -1, 1], np.float32)


def weight_map(marks: np.ndarray) -> np.ndarray:
    """Loss weights (64, 64) float32 of a frame with landmarks (478, 2) in [-1, 1]."""
    import cv2

    weight = np.ones((WEIGHT_SIZE, WEIGHT_SIZE), np.float32)
    points = (marks + 1) / 2 * WEIGHT_SIZE
    regions = [(points, FACE_WEIGHT)]
    regions += [(_grown(points[list(eye)]), EYE_WEIGHT) for eye in EYES]
    regions.append((_grown(points[[*UPPER_LIP, *LOWER_LIP]]), MOUTH_WEIGHT))
    for region, value in regions:
        hull = cv2.convexHull(np.rint(region).astype(np.int32))
        cv2.fillConvexPoly(weight, hull, (value,))
    return weight


def _grown(points: np.ndarray, factor: float = 1.4) -> np.ndarray:
    return (points - points.mean(0)) * factor + points.mean(0)
