"""Audio-visual syncers and the multi-scale synchrony loss (section 3.1 of the paper, eq. 2-4, 6, 7).

A syncer scores how well 200 ms of audio and motion fit; one is trained for each level of the pyramid, where
the same number of frames lasts 400, 800 and 1600 ms. `SynchronyLoss` holds the trained four and stands alone:
it takes any motion of shape (batch, time, D) that may be smoothed over time: keypoints, landmarks, blendshape
coefficients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, N_FILTERS
from mssync.errors import InputError
from mssync.pyramid import pyramid

MOTION_WINDOW = 5  # frames of motion that a syncer sees: 200 ms at level 1
AUDIO_WINDOW = AUDIO_PER_VIDEO * MOTION_WINDOW  # frames of audio over the same time
EXPANSION = 4  # of the point-wise layers of a block (ref)
AUDIO_LIMIT = 4.0  # standard deviations: the log energies of digital silence lie far outside of speech
STILL = 1e-3  # a coordinate whose deviation is below this fraction of the largest one counts as not moving


class Standardize(nn.Module):
    """(x - mean) / std with fixed statistics in the state dict, so that a trained network takes raw input.

    Before `set_statistics` it returns its input unchanged.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, limit: float = float("inf")) -> None:
        super().__init__()
        self.limit = limit
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("std", torch.ones(size))

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Store mean and deviation (size,) of the training data. Still coordinates are only centred."""
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > STILL * std.max(), std, torch.ones_like(std)))

    def forward(self, x: Tensor) -> Tensor:
        return ((x - self.mean) / self.std).clamp(-self.limit, self.limit)


class ResidualBlock(nn.Module):
    """x + pointwise(GELU(pointwise(norm(depthwise(x))))), with 4x expansion between the point-wise two (ref).

    `dims` is 1 for (n, width, time) and 2 for (n, width, time, band). The norm is over channels and positions
    of one sample, so no window of a batch influences another.
    """

    def __init__(self, width: int, dims: int, kernel: int = 3) -> None:
        super().__init__()
        conv = nn.Conv1d if dims == 1 else nn.Conv2d
        self.layers = nn.Sequential(
            conv(width, width, kernel, padding=kernel // 2, groups=width),
            nn.GroupNorm(1, width),
            conv(width, EXPANSION * width, 1),
            nn.GELU(),
            conv(EXPANSION * width, width, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Syncer(nn.Module):
    """Score of one level: cosine of an audio and a motion embedding (eq. 3).

    The motion encoder convolves over time; the audio encoder treats the spectrogram as a 20x26 image. Both
    keep the order of their positions up to the last linear layer, because a shift is exactly what has to be
    told apart.

    Args:
        motion_dim: D, numbers that describe one frame of motion.
        width: channels of the blocks.
        depth: residual blocks of each encoder.
        embedding: size of the embeddings (512 in the paper).
    """

    def __init__(self, motion_dim: int = 60, width: int = 256, depth: int = 4, embedding: int = 512) -> None:
        super().__init__()
        self.motion_dim = motion_dim
        self.motion_norm = Standardize(motion_dim)
        self.audio_norm = Standardize(N_FILTERS, AUDIO_LIMIT)
        self.motion_encoder = nn.Sequential(
            nn.Conv1d(motion_dim, width, 3, padding=1),
            *(ResidualBlock(width, dims=1) for _ in range(depth)),
            nn.Flatten(),
            nn.Linear(width * MOTION_WINDOW, embedding),
        )
        # Two strided layers bring the 20x26 image to 5x7 before the blocks, one row per frame of motion.
        self.audio_encoder = nn.Sequential(
            nn.Conv2d(1, width // 2, 5, stride=2, padding=2),
            nn.GroupNorm(1, width // 2),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
            *(ResidualBlock(width, dims=2) for _ in range(depth)),
            nn.Flatten(),
            nn.Linear(width * 5 * 7, embedding),
        )
        # The layout in memory, not the shape: 1.5 times faster on CPUs.
        self.audio_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio windows (..., 20, 26), unnormalised -> unit vectors (..., embedding), e_a of eq. 3."""
        batch = audio.shape[:-2]
        images = self.audio_norm(audio).reshape(-1, 1, AUDIO_WINDOW, N_FILTERS)
        return F.normalize(self.audio_encoder(images), dim=-1).reshape(*batch, -1)

    def embed_motion(self, motion: Tensor) -> Tensor:
        """Motion windows (..., 5, D), unnormalised -> unit vectors (..., embedding), e_x of eq. 3."""
        batch = motion.shape[:-2]
        frames = self.motion_norm(motion).reshape(-1, MOTION_WINDOW, self.motion_dim)
        return F.normalize(self.motion_encoder(frames.transpose(1, 2)), dim=-1).reshape(*batch, -1)

    def forward(self, audio: Tensor, motion: Tensor) -> Tensor:
        """Audio (B, 20, 26) and motion (B, 5, D) of the same time -> score (B,) in [-1, 1] (eq. 3)."""
        return (self.embed_audio(audio) * self.embed_motion(motion)).sum(-1)


def build_syncer(config: dict[str, Any]) -> Syncer:
    """The syncer of a model file, from the arguments stored in it (`weights.load_model`)."""
    return Syncer(**config)


def info_nce(positive: Tensor, negatives: Tensor, temperature: float = 1.0) -> Tensor:
    """`-log(e^(p/τ) / (e^(p/τ) + Σ_n e^(n/τ)))`, batch mean: eq. 2 with the log that the paper omits.

    positive: scores (B,); negatives: scores (B, N). τ = 1 is the paper. Returns a scalar >= 0.
    """
    logits = torch.cat([positive[:, None], negatives], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def audio_windows(audio: Tensor) -> Tensor:
    """All audio windows: (B, A, 26) -> (B, A // 4 - 4, 20, 26), a view. Window n is frames 4n … 4n+19.

    Raises InputError: less than one window.
    """
    _check_length(audio.shape[1], AUDIO_WINDOW, "audio")
    return audio.unfold(1, AUDIO_WINDOW, AUDIO_PER_VIDEO).transpose(2, 3)


def motion_windows(motion: Tensor) -> Tensor:
    """All motion windows: (B, T, D) -> (B, T - 4, 5, D), a view. Window n is frames n … n+4, centred on n+2.

    Raises InputError: less than one window.
    """
    _check_length(motion.shape[1], MOTION_WINDOW, "motion")
    return motion.unfold(1, MOTION_WINDOW, 1).transpose(2, 3)


def windows(audio: Tensor, motion: Tensor) -> tuple[Tensor, Tensor]:
    """Every pair of windows that cover the same time.

    Audio (B, 4T, 26) and motion (B, T, D) give (B, T-4, 20, 26) and (B, T-4, 5, D), views without copies. On
    the higher levels of a pyramid the two lengths may round differently; windows that only one of them has,
    all at the end, are left out.

    Raises InputError: less than one window.
    """
    sounds, moves = audio_windows(audio), motion_windows(motion)
    count = min(sounds.shape[1], moves.shape[1])
    return sounds[:, :count], moves[:, :count]


def _check_length(length: int, needed: int, what: str) -> None:
    if length < needed:
        raise InputError(
            f"a syncer needs at least {needed} frames of {what} at its level of the pyramid, got {length}; "
            "give a longer sequence or use fewer levels"
        )


class SynchronyLoss(nn.Module):
    """Multi-scale audio-visual synchrony loss (eq. 6): the sum of eq. 7 over the levels of the pyramid.

    The syncers are frozen in place and stay in evaluation mode whatever `train()` is called on. Gradients
    reach the motion only. With four levels a sequence needs at least 39 frames (1.56 s).

    Args:
        syncers: trained syncers of levels 1, 2, …; one alone is the usual single-scale loss.
        reduction: "sum" over the levels (the paper) or "mean" (ref).
    """

    def __init__(self, syncers: Sequence[Syncer], reduction: str = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise InputError(f'reduction of the synchrony loss must be "sum" or "mean", not "{reduction}"')
        self.syncers = nn.ModuleList(syncers)
        self.reduction = reduction
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> SynchronyLoss:
        """Keeps evaluation mode: a trainer that calls `train()` on everything must not change the syncers."""
        super().train(False)
        return self

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> list[Tensor]:
        """Audio (B, 4T, 26) -> per level (B, windows, embedding), for `forward` with several motions."""
        return [syncer.embed_audio(audio_windows(level)) for syncer, level in self._levels(audio)]

    def forward(self, motion: Tensor, audio: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss of motion (B, T, D) against audio (B, 4T, 26), or against `embed_audio` of it.

        Returns the scalar of eq. 6 and its terms (eq. 7), each the negative mean score, in [-1, 1].
        Raises InputError: too short for the highest level.
        """
        embedded = self.embed_audio(audio) if isinstance(audio, Tensor) else audio
        terms = []
        for (syncer, level), sound in zip(self._levels(motion), embedded, strict=True):
            moves = syncer.embed_motion(motion_windows(level))
            count = min(moves.shape[1], sound.shape[1])
            terms.append(-(moves[:, :count] * sound[:, :count]).sum(-1).mean())
        total = torch.stack(terms).sum()
        return (total / len(terms) if self.reduction == "mean" else total), terms

    def _levels(self, x: Tensor) -> Iterator[tuple[Syncer, Tensor]]:
        """Each syncer with its level of the pyramid of x."""
        return zip(cast(Sequence[Syncer], self.syncers), pyramid(x, len(self.syncers)), strict=True)
