"""Audio-visual syncers and the multi-scale synchrony loss (section 3.1 of the paper, eq. 2-4, 6, 7).

A syncer scores how well 200 ms of audio and motion fit; one is trained for each level of the pyramid, where
the same number of frames lasts 400, 800 and 1600 ms. `SyncerPyramid` holds the trained four, `MultiScaleSyncLoss`
freezes them. Both stand alone: they take any motion of shape (batch, time, D) that may be smoothed over time:
keypoints, landmarks, blendshape coefficients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, HOP_LENGTH, N_FILTERS, SAMPLE_RATE
from mssync.errors import InputError, PathLike, as_path
from mssync.pyramid import LEVELS, pyramid
from mssync.video import FPS

MOTION_WINDOW = 5  # frames of motion that a syncer sees: 200 ms at level 1
AUDIO_WINDOW = AUDIO_PER_VIDEO * MOTION_WINDOW  # frames of audio over the same time
MAX_OFFSET = 15  # frames of a level to both sides in which an offset is sought (the paper, section 4.3)
LIMIT = 5.0  # standard deviations of what a syncer sees: the log energies of digital silence lie far outside of speech
AUDIO_RATE = SAMPLE_RATE // HOP_LENGTH  # frames of audio a second: 100
STILL = 1e-3  # a coordinate whose deviation is below this fraction of the largest one counts as not moving


class Standardize(nn.Module):
    """(x - mean) / std with fixed statistics in the state dict, so that a trained network takes raw input.

    Before `set_statistics` it returns its input unchanged. The output has the type of the statistics.
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
        return ((x - self.mean) / self.std).clamp(-self.limit, self.limit).to(self.mean.dtype)


class _Frames(nn.Module):
    """A linear layer over `kernel` frames in a row, norm, GELU: (B, T, size) -> (B, (T - kernel) // stride + 1, width).

    Nothing is padded and positions share no statistics, so a long sequence gives what its windows give.
    """

    def __init__(self, size: int, width: int, kernel: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.layers = nn.Sequential(
            nn.Linear(kernel * size, width), nn.LayerNorm(width), nn.GELU(), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.unfold(1, self.kernel, self.stride).flatten(2))


class Syncer(nn.Module):
    """Score of one level: cosine of an audio and a motion embedding (eq. 3).

    Both encoders slide over whole sequences: what overlapping windows share is computed once. Every window keeps
    the order of its frames up to the last layers, because a shift is exactly what has to be told apart.

    Args:
        motion_dim: D, numbers that describe one frame of motion.
        width: of the layers.
        embedding: size of the embeddings (512 in the paper).
        dropout: in training alone.

    Attributes:
        space: the name of the space of the motion that it was trained on; "" where nobody knows
    """

    def __init__(self, motion_dim: int = 60, width: int = 512, embedding: int = 512, dropout: float = 0.0) -> None:
        super().__init__()
        self.motion_dim = motion_dim
        self.space = ""
        self.motion_norm = Standardize(motion_dim, LIMIT)
        self.audio_norm = Standardize(N_FILTERS, LIMIT)
        self.motion_encoder = nn.Sequential(
            _Frames(motion_dim, width, 1, 1, dropout),
            _Frames(width, width, 3, 1, dropout),
            _Frames(width, width, 3, 1, dropout),
            nn.Linear(width, embedding),
        )
        self.audio_encoder = nn.Sequential(
            _Frames(N_FILTERS, width, 4, 2, dropout),
            _Frames(width, width, 3, 1, dropout),
            _Frames(width, width, 3, 2, dropout),
            _Frames(width, width, 3, 1, dropout),
            nn.Linear(width, embedding),
        )

    def embed_motion(self, motion: Tensor) -> Tensor:
        """Motion (B, T, D), unnormalised -> unit vectors (B, T - 4, embedding), e_x of eq. 3.

        Vector n is of frames n … n+4, centred on n+2. Raises InputError: less than one window, another D.
        """
        if motion.shape[-1] != self.motion_dim:
            raise InputError(
                f"this syncer is for motion of {self.motion_dim} numbers a frame, not {motion.shape[-1]}; "
                "train syncers on yours (`mssync train syncer --data`)"
            )
        _check_length(motion.shape[1], MOTION_WINDOW, "motion")
        return F.normalize(self.motion_encoder(self.motion_norm(motion)), dim=-1)

    def embed_audio(self, audio: Tensor) -> Tensor:
        """Audio (B, A, 26), unnormalised -> unit vectors (B, A // 4 - 4, embedding), e_a of eq. 3.

        Vector n is of frames 4n … 4n+19. Raises InputError: less than one window.
        """
        _check_length(audio.shape[1], AUDIO_WINDOW, "audio")
        return F.normalize(self.audio_encoder(self.audio_norm(audio)), dim=-1)

    def forward(self, audio: Tensor, motion: Tensor) -> Tensor:
        """Scores (B, n) in [-1, 1] of audio (B, A, 26) and motion (B, T, D) of the same time, a window each (eq. 3).

        On the higher levels of a pyramid the two lengths may round differently; windows that only one of them has,
        all at the end, are left out. Raises InputError: as the two embeddings.
        """
        return cosines(self.embed_audio(audio), self.embed_motion(motion))


def cosines(sounds: Tensor, moves: Tensor) -> Tensor:
    """Scores (B, n) of unit vectors (B, n, E) each; the longer of the two is cut at its end."""
    count = min(sounds.shape[1], moves.shape[1])
    return (sounds[:, :count] * moves[:, :count]).sum(-1)


def build_syncer(config: dict[str, Any]) -> Syncer:
    """The syncer of a model file, from the arguments stored in it (`weights.load_model`)."""
    sizes = {name: value for name, value in config.items() if name != "motion_space"}
    syncer = Syncer(**sizes)
    syncer.space = config.get("motion_space", "")
    return syncer


def info_nce(positive: Tensor, negatives: Tensor, temperature: float = 1.0) -> Tensor:
    """`-log(e^(p/τ) / (e^(p/τ) + Σ_n e^(n/τ)))`, batch mean: eq. 2 with the log that the paper omits.

    positive: scores (B,); negatives: scores (B, N). τ = 1 is the paper. Returns a scalar >= 0.
    """
    logits = torch.cat([positive[:, None], negatives], dim=1) / temperature
    return (logits.logsumexp(dim=1) - logits[:, 0]).mean()


def _check_length(length: int, needed: int, what: str) -> None:
    if length < needed:
        raise InputError(
            f"a syncer needs at least {needed} frames of {what} at its level of the pyramid, got {length}; "
            "give a longer sequence or use fewer levels"
        )


class SyncerPyramid(nn.Module):
    """Syncers of levels 1, 2, …, and the pyramids of motion and audio that they look at.

    Args:
        syncers: of levels 1, 2, …; one alone is the usual single scale.
        fps: frame rate of the motion that is given. The syncers work at 25 frames a second; other rates are resampled
            linearly to that (`at_video_rate`).

    Raises InputError: no syncers, fps is not above zero.
    """

    def __init__(self, syncers: Sequence[Syncer], fps: float = FPS) -> None:
        super().__init__()
        if not syncers:
            raise InputError("give at least one syncer, that of level 1")
        self.syncers = nn.ModuleList(syncers)
        self.fps = _checked_rate(fps)

    @classmethod
    def load(cls, folder: PathLike | None = None, levels: int = LEVELS, fps: float = FPS) -> SyncerPyramid:
        """The shipped pyramid, or that of a folder with syncer1.safetensors, syncer2.safetensors, …

        levels: take no more than these. Raises InputError when there is none, or a gap.
        """
        from mssync.weights import SHIPPED, load_model

        where = SHIPPED if folder is None else as_path(folder)
        files = {level: where / f"syncer{level}.safetensors" for level in range(1, levels + 1)}
        present = [level for level, file in files.items() if file.is_file()]
        if not present or present != list(range(1, present[-1] + 1)):
            missing = next(level for level in files if level not in present)
            raise InputError(
                f"{where}: no syncer{missing}.safetensors here; train it with `mssync train syncer --run {where}`"
            )
        return cls([cast(Syncer, load_model(files[level], kinds=("syncer",))[0]) for level in present], fps)

    def __len__(self) -> int:
        return len(self.syncers)

    def check_space(self, space: str) -> None:
        """Raise InputError where these syncers were trained on the motion of another space. "": nobody knows."""
        for syncer in cast(list[Syncer], self.syncers):
            if space and syncer.space and syncer.space != space:
                raise InputError(
                    f"the syncers were trained on motion of the space {syncer.space!r}, and this is of {space!r}; "
                    "train syncers on this motion (`mssync train syncer`)"
                )

    def embed_motion(self, motion: Tensor) -> list[Tensor]:
        """Motion (B, T, D) -> per level (B, windows, embedding).

        Raises InputError: another shape, too short for the highest level.
        """
        _check_shape(motion, "motion", "T, D")
        levels = pyramid(at_video_rate(motion, self.fps), len(self))
        return [cast(Syncer, net).embed_motion(x) for net, x in zip(self.syncers, levels, strict=True)]

    def embed_audio(self, audio: Tensor) -> list[Tensor]:
        """Audio (B, A, 26), 100 frames a second -> per level (B, windows, embedding).

        Raises InputError: another shape, too short for the highest level.
        """
        _check_shape(audio, "audio", f"A, {N_FILTERS}")
        if audio.shape[-1] != N_FILTERS:
            raise InputError(
                f"audio has {audio.shape[-1]} numbers a frame; give the {N_FILTERS} of `mssync.audio.features`"
            )
        levels = pyramid(audio, len(self))
        return [cast(Syncer, net).embed_audio(x) for net, x in zip(self.syncers, levels, strict=True)]

    def forward(self, motion: Tensor, audio: Tensor) -> list[Tensor]:
        """Motion and audio of the same time -> per level the scores (B, windows) of eq. 3, in [-1, 1].

        Raises InputError: as the two embeddings, and for another duration or another batch (`check_same_time`).
        """
        return self.compare(motion, self.embed_audio(audio), audio.shape[1])

    def compare(self, motion: Tensor, sounds: Sequence[Tensor], audio_frames: int | None = None) -> list[Tensor]:
        """The same, of audio that was embedded before. audio_frames: A, where it is known to the frame."""
        moves = self.embed_motion(motion)
        if len(sounds) != len(moves):
            raise InputError(f"audio is embedded at {len(sounds)} levels, motion at {len(moves)}; use the same syncers")
        if audio_frames is None:  # of so many windows it is one of four numbers: that which fits best
            least = AUDIO_PER_VIDEO * (sounds[0].shape[1] + MOTION_WINDOW - 1)
            wanted = round(AUDIO_RATE * motion.shape[1] / self.fps)
            audio_frames = min(max(wanted, least), least + AUDIO_PER_VIDEO - 1)
        check_same_time(motion.shape[1], self.fps, audio_frames)
        if len(sounds[0]) != len(motion) and 1 not in (len(sounds[0]), len(motion)):
            raise InputError(
                f"audio has a batch of {len(sounds[0])}, motion one of {len(motion)}; give pairs, or one of them"
            )
        return [cosines(sound, move) for sound, move in zip(sounds, moves, strict=True)]


def check_same_time(motion_frames: int, fps: float, audio_frames: int) -> None:
    """Raise InputError where motion and audio do not last for the same time.

    The natural rounding is let pass: one frame of motion, and not less than 4 frames of audio (40 ms).
    """
    slack = max(AUDIO_PER_VIDEO / AUDIO_RATE, 1 / fps)
    seconds, heard = motion_frames / fps, audio_frames / AUDIO_RATE
    if abs(seconds - heard) > slack * (1 + 1e-6):
        raise InputError(
            f"motion lasts {seconds:.2f} s ({motion_frames} frames at {fps:g} a second) and audio {heard:.2f} s "
            f"({audio_frames} frames at {AUDIO_RATE} a second); cut both to the same time, and give the frame rate of "
            "the motion to SyncerPyramid(fps=...)"
        )


def _check_shape(x: object, what: str, axes: str) -> None:
    if not isinstance(x, Tensor):
        raise InputError(f"{what} must be a tensor (B, {axes}), not {type(x).__name__}")
    if x.ndim != 3:
        raise InputError(f"{what} must have the shape (B, {axes}), not {tuple(x.shape)}")


def _checked_rate(fps: float) -> float:
    if not 0 < fps < float("inf"):
        raise InputError(f"the frame rate of motion must be above zero, got {fps}")
    return fps


def at_video_rate(motion: Tensor, fps: float) -> Tensor:
    """Motion (B, T, D) of `fps` frames a second at 25 a second: linear between frames, frame 0 stays. Differentiable.

    Raises InputError: fps is not above zero.
    """
    if _checked_rate(fps) == FPS:
        return motion
    length = motion.shape[1]
    at = torch.arange(0, length - 1 + 1e-6, fps / FPS, dtype=torch.float64, device=motion.device)
    left = at.long().clamp(max=max(length - 2, 0))
    right = (left + 1).clamp(max=length - 1)
    return torch.lerp(motion[:, left], motion[:, right], (at - left).to(motion)[:, None])


class MultiScaleSyncLoss(nn.Module):
    """Multi-scale audio-visual synchrony loss (eq. 6): the sum of eq. 7 over the levels of the pyramid.

    The syncers are frozen in place and stay in evaluation mode whatever `train()` is called on. Gradients
    reach the motion only. With four levels a sequence needs at least 39 frames (1.56 s). Motion and audio must last
    for the same time, which is checked.

    Args:
        pyramid: the trained syncers; the shipped ones unless given.
        reduction: "sum" over the levels (the paper) or "mean" (ref).
    """

    def __init__(self, pyramid: SyncerPyramid | None = None, reduction: str = "sum") -> None:
        super().__init__()
        if reduction not in ("sum", "mean"):
            raise InputError(f'reduction of the synchrony loss must be "sum" or "mean", not "{reduction}"')
        self.pyramid = SyncerPyramid.load() if pyramid is None else pyramid
        self.reduction = reduction
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> MultiScaleSyncLoss:
        """Keeps evaluation mode: a trainer that calls `train()` on everything must not change the syncers."""
        super().train(False)
        return self

    @torch.no_grad()
    def embed_audio(self, audio: Tensor) -> list[Tensor]:
        """Audio (B, A, 26) -> per level (B, windows, embedding), for `forward` with several motions."""
        return self.pyramid.embed_audio(audio)

    def forward(self, motion: Tensor, audio: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Loss of motion (B, T, D) against audio (B, A, 26) of the same time, or against `embed_audio` of it.

        Returns the scalar of eq. 6 and its terms (eq. 7), each the negative mean score, in [-1, 1].
        Raises InputError: another shape or batch, another D than that of the syncers, too short for the highest level,
        or durations that differ by more than a frame of motion and 4 frames of audio (`check_same_time`).
        """
        if isinstance(audio, Sequence):
            scores = self.pyramid.compare(motion, audio)
        else:
            scores = self.pyramid.compare(motion, self.embed_audio(audio), audio.shape[1])
        terms = [-score.mean() for score in scores]
        total = torch.stack(terms).sum()
        return (total / len(terms) if self.reduction == "mean" else total), terms
