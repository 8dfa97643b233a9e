"""Frame and sequence discriminators and their hinge losses (section 3.3 of the paper, eq. 11-13)."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from mssync.config import DiscriminatorConfig
from mssync.errors import InputError
from mssync.syncer import Standardize

SLOPE = 0.2  # of the leaky rectifiers


def _dense(inputs: int, outputs: int) -> nn.Module:
    """Linear layer of spectral norm 1: keeps the hinge game from running away."""
    return spectral_norm(nn.Linear(inputs, outputs))


class FrameDiscriminator(nn.Module):
    """D_f: realism of each frame alone, a multi-layer perceptron."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.motion_norm = Standardize(config.motion_dim)
        sizes = [config.motion_dim] + [config.frame_hidden] * config.frame_layers
        hidden = [(_dense(a, b), nn.LeakyReLU(SLOPE)) for a, b in pairwise(sizes)]
        self.layers = nn.Sequential(*(layer for pair in hidden for layer in pair), _dense(sizes[-1], 1))

    def forward(self, x: Tensor) -> Tensor:
        """Raw motion (B, T, D) -> score of every frame (B, T), unbounded, higher is more real."""
        return self.layers(self.motion_norm(x)).squeeze(-1)


class SequenceDiscriminator(nn.Module):
    """D_s: realism of the dynamics, from windows of several lengths (ref: 5, 10, 20 and 40 frames).

    Windows of length l start at 0, l // 2, 2 (l // 2), … as long as they fit; lengths beyond the sequence are
    skipped. Every frame is embedded, one LSTM reads each window, and its last state φ is scored as

        s(window) = w·φ + b + d^(-1/β) · (V e_0)·φ,     d = max(1, first frame of the window - first frame)

    with e_0 the embedding of x_0: a projection discriminator whose condition, the initial state, counts the
    less the further the window is from it. Scores are averaged over the windows of a length, then over the
    lengths.
    """

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.lengths, self.beta = tuple(config.lengths), config.beta
        hidden = config.sequence_hidden
        self.motion_norm = Standardize(config.motion_dim)
        self.embedding = nn.Sequential(_dense(config.motion_dim, hidden), nn.LeakyReLU(SLOPE))
        self.lstm = nn.LSTM(hidden, hidden, batch_first=True)
        self.feature = nn.Sequential(_dense(hidden, hidden), nn.LeakyReLU(SLOPE))
        self.score = _dense(hidden, 1)
        self.condition = _dense(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Raw motion (B, T, D) -> score of every sequence (B,), unbounded, higher is more real.

        Raises InputError: T is shorter than the shortest window.
        """
        lengths = [length for length in self.lengths if length <= x.shape[1]]
        if not lengths:
            raise InputError(f"D_s needs {min(self.lengths)} frames of motion or more, got {x.shape[1]}")
        embedded = self.embedding(self.motion_norm(x))
        condition = self.condition(embedded[:, 0])
        return torch.stack([self._windows(embedded, condition, length) for length in lengths]).mean(0)

    def _windows(self, embedded: Tensor, condition: Tensor, length: int) -> Tensor:
        """Mean score (B,) of the windows of one length."""
        stride = length // 2
        chunks = embedded.unfold(1, length, stride).transpose(2, 3)  # (B, n, length, hidden)
        last = self.lstm(chunks.flatten(0, 1))[1][0][0].unflatten(0, chunks.shape[:2])
        features = self.feature(last)
        distance = (stride * torch.arange(chunks.shape[1], device=embedded.device)).clamp_min(1)
        projection = (features * condition[:, None]).sum(-1)
        return (self.score(features).squeeze(-1) + distance ** (-1 / self.beta) * projection).mean(1)


def generator_loss(scores: Tensor) -> Tensor:
    """`-E[D(x)]` of generated motion: eq. 11 with D_f of frames t >= 1 (x_0 is given), eq. 12 with D_s."""
    return -scores.mean()


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Hinge loss, `E[max(0, 1 + D(generated))] + E[max(0, 1 - D(real))]` (eq. 13), for D_f or D_s."""
    return F.relu(1 + generated).mean() + F.relu(1 - real).mean()
