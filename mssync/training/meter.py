"""Training of the sync meter: syncers on landmarks, for lips (levels 1-4) and for the rigid head (levels 1-3).

Lips learn by InfoNCE (eq. 2) and by what they are for: of all offsets of a second of speech, the true one should fit
best. The head learns by a triplet loss. Negatives are misaligned windows of the same sequence; for the lips' level 4
windows of other sequences as well. A plain loop in one process or several (Fabric).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO
from mssync.config import MeterTraining
from mssync.errors import InputError

NEAR = 1  # windows next to the true one are neither right nor wrong


@dataclass
class Example:
    """A clip as the meter sees it: motion, mirrored (T, D), sound (4T, 26)."""

    name: str
    identity: str
    motion: np.ndarray
    mirrored: np.ndarray
    sound: np.ndarray
    late: float = 0.0  # frames by which its sound was measured to be late; what is cut from it makes up for that

    def __len__(self) -> int:
        return len(self.motion)


class Pieces:
    """Random batches of equally long pieces; batch n is a function of (seed, n) alone (exact resume).

    Pieces start between frames and run a little fast or slow. Identities are drawn by the root of their footage.
    """

    def __init__(self, examples: list[Example], settings: MeterTraining, seed: int, augment: bool = True) -> None:
        self.settings, self.seed, self.augment = settings, seed, augment
        self.needed = int(np.ceil(settings.frames * (1 + settings.speed))) + 2
        self.identities: dict[str, list[Example]] = {}
        for example in examples:
            if len(example) >= self.needed:
                self.identities.setdefault(example.identity, []).append(example)
        if not self.identities:
            raise InputError(f"no clip is {self.needed} frames long; use longer clips or lower meter_training.frames")
        self.names = sorted(self.identities)
        lengths = np.array([sum(len(e) for e in self.identities[name]) for name in self.names], float)
        self.weights = np.sqrt(lengths) / np.sqrt(lengths).sum()

    def __call__(self, n: int) -> tuple[Tensor, Tensor]:
        """Batch n: motion (B, frames, D) and sound (B, 4 frames, 26)."""
        rng = np.random.default_rng((self.seed, n))
        motions, sounds = zip(*(self._piece(rng) for _ in range(self.settings.batch)), strict=True)
        return torch.from_numpy(np.stack(motions)), torch.from_numpy(np.stack(sounds))

    def _piece(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        owned = self.identities[self.names[rng.choice(len(self.names), p=self.weights)]]
        lengths = np.array([len(e) for e in owned], float)
        example = owned[rng.choice(len(owned), p=lengths / lengths.sum())]
        settings, count = self.settings, self.settings.frames
        speed = rng.uniform(1 - settings.speed, 1 + settings.speed) if self.augment else 1.0
        start = rng.uniform(0, len(example) - count * speed - 1)
        source = example.mirrored if self.augment and rng.random() < 0.5 else example.motion
        motion = resampled(source, start, speed, count)
        heard = (start + example.late) * AUDIO_PER_VIDEO
        sound = resampled(example.sound, heard, speed, AUDIO_PER_VIDEO * count)
        if self.augment:
            motion, sound = disturbed_motion(motion, settings, rng), disturbed_sound(sound, settings, rng)
        return motion, sound


def resampled(x: np.ndarray, start: float, step: float, count: int) -> np.ndarray:
    """(count, D): rows start, start + step, … of (T, D), linearly interpolated; the end rows go on outside."""
    at = (start + step * np.arange(count)).clip(0, len(x) - 1)
    left = np.minimum(at.astype(int), max(len(x) - 2, 0))
    weight = (at - left)[:, None].astype(np.float32)
    return x[left] * (1 - weight) + x[np.minimum(left + 1, len(x) - 1)] * weight


def disturbed_motion(motion: np.ndarray, settings: MeterTraining, rng: np.random.Generator) -> np.ndarray:
    """Motion as of a livelier or calmer speaker, with the noise of landmarks on a poor picture."""
    size = rng.uniform(1 - settings.liveliness, 1 + settings.liveliness)
    noise = rng.uniform(0, settings.landmark_noise) * rng.standard_normal(motion.shape, np.float32)
    return (size * motion + noise).astype(np.float32)


def disturbed_sound(sound: np.ndarray, settings: MeterTraining, rng: np.random.Generator) -> np.ndarray:
    """Log energies as of another room: other levels of the bands, noise, a moment and some bands missing."""
    count, bands = sound.shape
    knots = rng.normal(0, settings.tilt, 5)
    sound = sound + np.interp(np.linspace(0, 4, bands), np.arange(5), knots).astype(np.float32)
    if rng.random() < settings.noise:
        floor = rng.uniform(-4, 0) + 0.7 * rng.standard_normal((count, bands), np.float32)
        sound = np.logaddexp(sound, floor.astype(np.float32))
    if rng.random() < settings.mask:
        length, start = int(rng.integers(2, 16)), int(rng.integers(count))
        sound[start : start + length] = sound.min()
    if rng.random() < settings.mask:
        low = int(rng.integers(bands))
        sound[:, low : low + int(rng.integers(1, 6))] = 0
    return sound.astype(np.float32)


# Losses


def scores(moves: Tensor, sounds: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Cosines (B, n, 2 reach + 1) of every motion window with the sound windows up to `reach` away, and which of
    them exist (n, 2 reach + 1). Column k: the sound window k - reach later."""
    count = moves.shape[1]
    around = F.pad(sounds, (0, 0, reach, reach)).unfold(1, 2 * reach + 1, 1)
    at = torch.arange(count, device=moves.device)[:, None] + torch.arange(-reach, reach + 1, device=moves.device)
    return torch.einsum("bne,bnek->bnk", moves, around), (at >= 0) & (at < count)


def window_loss(cosines: Tensor, there: Tensor, temperature: Tensor | float) -> Tensor:
    """InfoNCE over the offsets of every window; the offsets next to the true one do not count."""
    reach = cosines.shape[-1] // 2
    apart = (torch.arange(-reach, reach + 1, device=cosines.device)).abs()
    negative = (there & (apart > NEAR)).expand_as(cosines)
    logits = (cosines / temperature).masked_fill(~negative & (apart != 0), -torch.inf)
    return F.cross_entropy(logits.flatten(0, 1), torch.full((logits.shape[0] * logits.shape[1],), reach))


def stretch_loss(cosines: Tensor, there: Tensor, windows: int, sharpness: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the true offset of stretches of so many windows, and the share of them recovered within one.

    The evidence for an offset is the sum of its cosines, those that do not exist counting as the mean.
    """
    known = cosines.masked_fill(~there, 0)
    mean = known.sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    centred = (known - mean).masked_fill(~there, 0)
    parts = max(1, cosines.shape[1] // windows)
    logits = torch.stack([part.sum(1) for part in centred.tensor_split(parts, dim=1)], 1).flatten(0, 1) * sharpness
    reach = logits.shape[-1] // 2
    target = torch.zeros_like(logits)
    target[:, reach], target[:, [reach - 1, reach + 1]] = 0.7, 0.15
    recovered = ((logits.argmax(-1) - reach).abs() <= 1).float().mean()
    return -(target * logits.log_softmax(-1)).sum(-1).mean(), recovered
