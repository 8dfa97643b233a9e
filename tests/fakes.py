"""Small stand-ins for the models, for tests of what lies around them."""

from __future__ import annotations

import math
import zlib

import numpy as np
import torch
from torch import nn

from mssync.audio import SAMPLE_RATE
from mssync.config import GeneratorConfig
from mssync.data.clips import Entry
from mssync.faces import CANONICAL_FILE, CHIN, Box, Face


def golden_rule(name: str, like: torch.Tensor) -> torch.Tensor:
    """The weights that shared/golden/README.md prescribes for a parameter's name and shape."""
    random = np.random.RandomState(zlib.crc32(name.encode()))
    shape = tuple(like.shape)
    if name.endswith("num_batches_tracked"):
        values = np.zeros(shape)
    elif name.endswith("running_mean"):
        values = 0.05 * random.standard_normal(shape)
    elif name.endswith("running_var"):
        values = 1 + 0.1 * random.random_sample(shape)
    elif len(shape) > 1:
        values = random.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
    elif name.endswith("weight"):
        values = 1 + 0.05 * random.standard_normal(shape)
    else:
        values = 0.05 * random.standard_normal(shape)
    return torch.as_tensor(values).to(like.dtype)


def speech(seconds: float) -> np.ndarray:
    return (0.1 * np.random.default_rng(2).standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


class FakeMesh:
    """Finds `count` faces in any picture that is not black, the largest first, in its middle."""

    def __init__(self, count: int = 1) -> None:
        self.count = count

    def __call__(self, image: np.ndarray) -> list[Face]:
        height, width = image.shape[:2]
        if not image.any():
            return []
        flat = np.load(CANONICAL_FILE)
        flat = (flat - (flat.min(0) + flat.max(0)) / 2) / np.ptp(flat, axis=0).max()
        offsets = 0.5 * min(height, width) * np.pad(flat, ((0, 0), (0, 1)))
        centre = [width / 2, height / 2, 0]
        return [Face((offsets / (k + 1) + centre).astype(np.float32)) for k in range(self.count)]

    def confidence(self, image: np.ndarray) -> float:
        return 0.95 if image.any() else 0.0

    def track(self, frames):
        for frame in frames:
            yield next(iter(self(frame)), None)

    def detect(self, image: np.ndarray) -> list[Box]:
        return [Box(0, 0, min(image.shape[:2]))] if image.any() else []

    def follower(self) -> FakeFollower:
        return FakeFollower(self)

    def release(self, follower: FakeFollower) -> None:
        pass


class FakeFollower:
    """Follows the largest face of a `FakeMesh`."""

    def __init__(self, mesh: FakeMesh) -> None:
        self.mesh = mesh

    def start(self, window: Box) -> None:
        pass

    def __call__(self, image: np.ndarray) -> np.ndarray | None:
        return next((face.landmarks for face in self.mesh(image)), None)


class FakeReenactor:
    """Keypoints on a ring around the picture's mean colour; frames are the source."""

    space, precision = "fake", "float32"
    rigid = (0, 1, 2, 3)
    needs_landmarks = False

    def __init__(self) -> None:
        self.batches: list[int] = []

    def keypoints(self, image: torch.Tensor, landmarks: torch.Tensor | None = None) -> torch.Tensor:
        assert image.shape[1:] == (3, 256, 256)
        angle = torch.arange(10.0)
        ring = 0.3 * torch.stack([angle.cos(), angle.sin()], -1)
        ring = ring + (image.mean((1, 2, 3)) - 0.5)[:, None, None]
        return torch.cat([ring, torch.eye(2).flatten().expand(len(image), 10, 4)], -1)

    def prepare(self, source: torch.Tensor, motion: torch.Tensor | None = None) -> torch.Tensor:
        return source

    def render(self, state: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(motion))
        return state.expand(len(motion), -1, -1, -1)


class FakeGenerator(nn.Module):
    """The first pose, each frame a little further to the right."""

    config = GeneratorConfig()

    def stream(self, x0: torch.Tensor, audio: torch.Tensor, seed: int = 0):
        for t in range(len(audio) // 4):
            pose = x0.clone().view(10, 6)
            pose[:, 0] += 0.01 * t
            yield pose.flatten()


class FakeClip:
    """A noisy head that moves before a still background."""

    def __init__(self, name: str = "clip", frames: int = 12) -> None:
        self.entry = Entry(name, "val", name, "made up", frames, False, "", "")
        rng = np.random.default_rng(0)
        face = np.concatenate([rng.uniform(-0.3, 0.3, (478, 2)), np.zeros((478, 1))], 1)
        face[CHIN] = (0, 0.3, 0)
        shift = np.linspace(0, 0.1, frames)[:, None, None] * np.array([1.0, 0.5, 0.0])
        self.landmarks = (face + shift).astype(np.float32)

    def __len__(self) -> int:
        return self.entry.frames

    def marks(self, t: int) -> np.ndarray:
        return self.landmarks[t, :, :2]

    def frame(self, t: int) -> np.ndarray:
        picture = np.full((256, 256, 3), 90, np.uint8)
        noise = np.random.default_rng(t).integers(0, 255, (60, 60, 3), np.uint8)
        x, y = ((self.landmarks[t].mean(0)[:2] + 1) * 128).astype(int)
        picture[y - 30 : y + 30, x - 30 : x + 30] = noise
        return picture
