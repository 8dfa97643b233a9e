"""Random pairs of frames of a clip, for training the reenactor.

Sample n is a function of (seed, n) alone, so a resumed or distributed training sees the same samples in the
same order as an undisturbed one.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mssync.data.clips import SIZE, Clip
from mssync.faces import eye_opening, mirrored_landmarks, mouth_opening
from mssync.reenact.mesh import LEFT_LIDS, LOWER_LIP, RIGHT_LIDS, UPPER_LIP

WEIGHT_SIZE = 64  # side of the loss weight map
FLOW_SIZE = 128  # side at which optical flow is measured
FLOW_ERROR = 12.0  # grey levels: how far a fetched pixel may be off before its flow is doubted
FACE_WEIGHT, EYE_WEIGHT, MOUTH_WEIGHT = 1.5, 6.0, 12.0  # of a pixel in the loss; the background has 1
CANDIDATES = 6  # driving frames of which one is chosen by its mouth or its eyes
BY_MOUTH, BY_EYES = 0.4, 0.3  # shares of pairs chosen so
WINDOW_CELLS, CELLS = 16, 32  # side of the window that is drawn in the later stages, and of the picture
FACE_WINDOWS = 0.7  # share of windows around the face; the others are anywhere
MAX_ZOOM, MAX_SHIFT = 0.12, 0.05  # augmentation of the crop: both frames alike
PALE = 0.2  # share of pairs with less colour, a third of them with none


class FramePairs(Dataset):
    """Pairs (source, driving) of one clip; identities are drawn evenly, then clips, then frames.

    Items: source, driving (3, 256, 256) uint8; source_marks, driving_marks (478, 2) in [-1, 1]; weight (1, 64, 64) of
    the driving frame's pixels; flow (64, 64, 2) and trust (64, 64): see `optical_flow`; affine (2, 3): a random map
    near the identity, for equivariance; view (3,): the window to draw, see `geometry.warp`.
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
        flow, trust = optical_flow(driving, source)
        return {
            "source": _tensor(source),
            "driving": _tensor(driving),
            "source_marks": torch.from_numpy(source_marks),
            "driving_marks": torch.from_numpy(marks),
            "weight": torch.from_numpy(weight_map(marks))[None],
            "flow": torch.from_numpy(flow),
            "trust": torch.from_numpy(trust),
            "affine": torch.from_numpy(_affine(rng)),
            "view": torch.from_numpy(_view(marks, rng)),
        }

    @staticmethod
    def _times(clip: Clip, rng: np.random.Generator) -> tuple[int, int]:
        """Source and driving frame; often the one of several driving frames whose mouth or eyes differ most.

        Mouths are closed and eyes open most of the time: drawn evenly, pairs hardly show what opens and closes them.
        """
        source, *others = (int(t) for t in rng.integers(len(clip), size=1 + CANDIDATES))
        choice = rng.random()
        if choice > BY_MOUTH + BY_EYES:
            return source, others[0]
        measure = mouth_opening if choice < BY_MOUTH else eye_opening
        gaps = measure(clip.arrays["landmarks"][[source, *others]].astype(np.float32))
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
        # of the colours: old photographs have none, and skin must not be painted into them
        self.saturation = max(0.0, rng.uniform(-0.5, 1)) if rng.random() < PALE else 1.0

    def __call__(self, frame: np.ndarray, marks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Frame (256, 256, 3) uint8 and its landmarks (478, 2) in [-1, 1], both changed."""
        import cv2

        half = SIZE / 2
        move = half * (1 - self.zoom) + half * self.shift - 0.5 * (1 - self.zoom)
        matrix = np.array([[self.zoom, 0, move[0]], [0, self.zoom, move[1]]])
        frame = cv2.warpAffine(frame, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT_101)
        table = np.clip(np.arange(256)[:, None] * self.gain + self.offset, 0, 255).astype(np.uint8)
        frame = np.stack([table[:, c][frame[..., c]] for c in range(3)], -1)
        if self.saturation < 1:
            grey = frame.mean(-1, keepdims=True)
            frame = np.rint(grey + self.saturation * (frame - grey)).astype(np.uint8)
        marks = (marks * self.zoom + self.shift).astype(np.float32)
        return (np.ascontiguousarray(frame[:, ::-1]), mirrored_landmarks(marks)) if self.mirror else (frame, marks)


def _affine(rng: np.random.Generator) -> np.ndarray:
    noise = rng.normal(size=(2, 3)) * (0.08, 0.08, 0.06)
    return (np.eye(2, 3) + noise).astype(np.float32)


def _view(marks: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A window (x, y, scale) float32 on the picture's cells: around the face of landmarks (478, 2), or anywhere."""
    centre = (marks.min(0) + marks.max(0)) / 2
    if rng.random() >= FACE_WINDOWS:
        centre = rng.uniform(-1, 1, 2)
    corner = np.clip(np.rint((centre + 1) / 2 * CELLS - WINDOW_CELLS / 2), 0, CELLS - WINDOW_CELLS)
    x, y = (corner + WINDOW_CELLS / 2) / CELLS * 2 - 1
    return np.array([x, y, WINDOW_CELLS / CELLS], np.float32)


def optical_flow(driving: np.ndarray, source: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of `driving` come from in `source`, both (256, 256, 3) uint8, and how sure that is.

    Returns offsets (64, 64, 2) float32 in the unit of [-1, 1] coordinates, which a dense motion should find, and
    trust (64, 64) in [0, 1]: low where the picture fetched so is not the driving one.
    """
    import cv2

    a, b = (cv2.resize(x, (FLOW_SIZE,) * 2, interpolation=cv2.INTER_AREA) for x in (driving, source))
    estimate = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)  # type: ignore[attr-defined]
    flow = estimate.calc(*(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (a, b)), None)
    at = np.arange(FLOW_SIZE, dtype=np.float32)
    fetched = cv2.remap(
        b, flow[..., 0] + at, flow[..., 1] + at[:, None], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
    )
    error = cv2.blur(np.abs(fetched.astype(np.float32) - a).mean(-1), (5, 5))
    trust = np.exp(-error / FLOW_ERROR)
    small = [cv2.resize(x, (WEIGHT_SIZE,) * 2, interpolation=cv2.INTER_AREA) for x in (flow * (2 / FLOW_SIZE), trust)]
    return small[0].astype(np.float32), small[1].astype(np.float32)


def weight_map(marks: np.ndarray) -> np.ndarray:
    """Loss weights (64, 64) float32 of a frame with landmarks (478, 2) in [-1, 1]."""
    import cv2

    weight = np.ones((WEIGHT_SIZE, WEIGHT_SIZE), np.float32)
    points = (marks + 1) / 2 * WEIGHT_SIZE
    regions = [(points, FACE_WEIGHT)]
    regions += [(_grown(points[list(eye)]), EYE_WEIGHT) for eye in (LEFT_LIDS, RIGHT_LIDS)]
    regions.append((_grown(points[[*UPPER_LIP, *LOWER_LIP]]), MOUTH_WEIGHT))
    for region, value in regions:
        hull = cv2.convexHull(np.rint(region).astype(np.int32))
        cv2.fillConvexPoly(weight, hull, (value,))
    return weight


def _grown(points: np.ndarray, factor: float = 1.4) -> np.ndarray:
    return (points - points.mean(0)) * factor + points.mean(0)
