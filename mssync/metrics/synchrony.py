"""How well motion and speech fit at every time scale, by the pyramid of syncers: offsets and confidences, a level each.

What SyncNet does with lips in a picture, done with any motion and at four scales: the distance of motion windows from
the sound around them, as a curve over the offset. Where it is least is the offset; how far it dips is the confidence.
Signs are SyncNet's: positive when the sound leads.

The generator was trained on the scores of such syncers, so on generated motion they flatter; that holds for all
systems that are trained with them alike, and is why `mssync score` has syncers of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO
from mssync.data.sequences import BODY_NUMBERS
from mssync.data.sequences import Sequence as Clip
from mssync.face1 import NUMBERS, SPACE, FaceSpace
from mssync.metrics.estimates import Estimate, mean
from mssync.metrics.head import HeadFigures, head_figures, motion_poses
from mssync.pyramid import pyramid
from mssync.spontaneous import own_seed
from mssync.syncer import MAX_OFFSET, MOTION_WINDOW, Syncer, SyncerPyramid
from mssync.video import FPS

MIN_WINDOWS = 4  # of a clip at a level: fewer make no curve
SHIFTS = (-4, -2, 2, 4)  # frames of the level by which real sound is moved, as far as a clip allows
REAL, OTHER, SILENCE, STILL, BORROWED = "real", "other sound", "silence", "still", "motion of another clip"


@dataclass(frozen=True)
class Score:
    """One clip under one condition at one level.

    offset: frames of the level, positive when the sound leads. confidence: median minus minimum of the distance
    curve. similarity: mean cosine in sync (eq. 3), what the loss of eq. 7 raises. moved: by how much the sound was
    moved on purpose; reach: of the curve, at most MAX_OFFSET, less in short clips.
    """

    system: str
    clip: str
    level: int
    offset: int
    confidence: float
    similarity: float
    moved: int
    reach: int


@torch.no_grad()
def score(syncers: SyncerPyramid, motion: Tensor, audio: Tensor, system: str, clip: str) -> list[Score]:
    """Scores of a clip, motion (T, D) and audio (4T, 26), at every level that it is long enough for."""
    found = []
    for level, similarity in _similarities(syncers, motion, audio):
        found.append(_score(similarity, system, clip, level, 0))
    return found


@torch.no_grad()
def score_moved(syncers: SyncerPyramid, motion: Tensor, audio: Tensor, system: str, clip: str) -> list[Score]:
    """Scores of a clip whose sound is moved by SHIFTS frames of each level, where the clip reaches twice as far."""
    found = []
    for level, similarity in _similarities(syncers, motion, audio):
        for shift in SHIFTS:
            # sound that leads by n frames: motion at t meets what belongs to t + n
            part = similarity[: len(similarity) - shift, shift:] if shift > 0 else similarity[-shift:, :shift]
            if _reach(len(part)) > abs(shift):
                found.append(_score(part, system, clip, level, shift))
    return found


def _similarities(syncers: SyncerPyramid, motion: Tensor, audio: Tensor) -> list[tuple[int, Tensor]]:
    """(level, cosines (n, n)): row t motion, column t sound, windows in order."""
    found = []
    levels = zip(syncers.syncers, pyramid(motion[None], len(syncers)), pyramid(audio[None], len(syncers)), strict=True)
    for level, (syncer, moves, sound) in enumerate(levels, start=1):
        count = min(moves.shape[1], sound.shape[1] // AUDIO_PER_VIDEO) - MOTION_WINDOW + 1
        if count < MIN_WINDOWS:  # too short for this level, and so for the coarser ones
            break
        net = cast(Syncer, syncer)
        found.append((level, net.embed_motion(moves)[0, :count] @ net.embed_audio(sound)[0, :count].T))
    return found


def _reach(count: int) -> int:
    """Offsets that so many windows bear: at each, half of them still have sound."""
    return min(MAX_OFFSET, count // 2)


def _score(similarity: Tensor, system: str, clip: str, level: int, moved: int) -> Score:
    curve = offset_curve(similarity.numpy())
    reach, least = len(curve) // 2, int(curve.argmin())
    return Score(
        system, clip, level, least - reach, float(np.median(curve) - curve[least]),
        float(similarity.diagonal().mean()), moved, reach,
    )  # fmt: skip


def offset_curve(similarity: np.ndarray) -> np.ndarray:
    """Mean distance at each offset, (2 reach + 1,), of cosines (n, n): motion t against sound t - offset.

    Distances of unit vectors, sqrt(2 - 2 cos), less their window's mean: the windows at a clip's end, which have sound
    on one side only, would bend the curve by being easy or hard.
    """
    distance = np.sqrt(np.maximum(2 - 2 * similarity.astype(np.float64), 0))
    centred = distance - distance.mean(1, keepdims=True)
    reach = _reach(len(distance))
    # numpy's diagonal k pairs row t with column t + k
    return np.array([np.diagonal(centred, -k).mean() for k in range(-reach, reach + 1)]) + distance.mean()


# Systems


def conditions(syncers: SyncerPyramid, clips: Sequence[Clip]) -> list[Score]:
    """Real clips: with their sound, with that moved, with another clip's sound, and with silence."""
    found = []
    for clip, other in zip(clips, _others(clips), strict=True):
        found += score(syncers, clip.motion, clip.audio, REAL, clip.name)
        found += score_moved(syncers, clip.motion, clip.audio, REAL, clip.name)
        found += score(syncers, clip.motion, _as_long(other.audio, len(clip.audio)), OTHER, clip.name)
        found += score(syncers, clip.motion, clip.audio.amin(0).expand_as(clip.audio), SILENCE, clip.name)
    return found


def baselines(syncers: SyncerPyramid, clips: Sequence[Clip]) -> list[Score]:
    """Speech with a face that stays still, and with the real motion of another clip, begun where this one begins."""
    found = []
    for clip, motion in zip(clips, borrowed(clips), strict=True):
        found += score(syncers, clip.motion[:1].expand_as(clip.motion), clip.audio, STILL, clip.name)
        found += score(syncers, motion, clip.audio, BORROWED, clip.name)
    return found


def borrowed(clips: Sequence[Clip]) -> list[Tensor]:
    """For each clip the real motion of another one, begun where this one begins, there and back as long as it lasts."""
    others = [_as_long(other.motion, len(clip.motion)) for clip, other in zip(clips, _others(clips), strict=True)]
    return [clip.motion[0] + motion - motion[0] for clip, motion in zip(clips, others, strict=True)]


def generated(syncers: SyncerPyramid, generator: Any, clips: Sequence[Clip], system: str) -> list[Score]:
    """The motion that a generator makes of each clip's first frame and speech."""
    found = []
    for clip in clips:
        found += score(syncers, roll_out(generator, clip), clip.audio, system, clip.name)
    return found


def roll_out(generator: Any, clip: Clip) -> Tensor:
    """Generated motion (T, D) of a clip's first frame and speech; the head turns in each clip in its own way.

    Motion of the space face-1 comes as the keypoints of the space compact-1 that it shows.
    """
    return seen(clip, rolled_out(generator, clip))


@torch.no_grad()
def rolled_out(generator: Any, clip: Clip) -> Tensor:
    """The same in the generator's own space."""
    heard = clip.heard[0] if clip.heard else clip.audio
    start = clip.faces[0].start if clip.faces and generator.config.space == SPACE else clip.motion[0]
    return torch.stack(list(generator.stream(start, heard, own_seed(clip.name))))[: len(clip)]


def seen(clip: Clip, made: Tensor) -> Tensor:
    """What a clip's generated motion shows, (T, 60) of the space compact-1."""
    if clip.faces is None or made.shape[1] != NUMBERS:
        return made
    face = clip.faces[0]
    return FaceSpace().keypoints(made, face.start_rest, face.start, clip.motion[0, BODY_NUMBERS])


def _others(clips: Sequence[Clip]) -> list[Clip]:
    """For each clip one of another identity: the next in order that is."""
    found = []
    for n, clip in enumerate(clips):
        rest = [*clips[n + 1 :], *clips[:n]]
        found.append(next((other for other in rest if other.identity != clip.identity), clip))
    return found


def _as_long(x: Tensor, length: int) -> Tensor:
    """(n, D) repeated, there and back, to (length, D)."""
    period = torch.cat([x, x.flip(0)])
    return period.repeat(math.ceil(length / len(period)), 1)[:length]


# Tables


@dataclass(frozen=True)
class Line:
    """A system at a level, over clips. recovered: share of clips (of their moved sounds) found within one frame."""

    system: str
    level: int
    milliseconds: int
    offset: Estimate
    confidence: Estimate
    similarity: Estimate
    recovered: Estimate
    p_offset: float
    p_confidence: float


def lines(scores: Sequence[Score], reference: str = OTHER) -> list[Line]:
    """One line for each system and level, in the order of the systems.

    p_…: of the Wilcoxon test, paired over clips, that the system does no better than `reference`; nan for itself.
    """
    found = []
    for system in dict.fromkeys(s.system for s in scores):
        own = [s for s in scores if s.system == system]
        for level in sorted({s.level for s in own}):
            plain = {s.clip: s for s in own if s.level == level and s.moved == 0}
            against = {s.clip: s for s in scores if (s.system, s.level, s.moved) == (reference, level, 0)}
            moved = [s for s in own if s.level == level and s.moved]
            both = [c for c in plain if c in against] if system != reference else []
            found.append(
                Line(
                    system, level, 200 * 2 ** (level - 1),
                    mean(np.array([abs(s.offset) for s in plain.values()], float)),
                    mean(np.array([s.confidence for s in plain.values()])),
                    mean(np.array([s.similarity for s in plain.values()])),
                    mean(_recovered(moved)),
                    _p([abs(against[c].offset) - abs(plain[c].offset) for c in both]),
                    _p([plain[c].confidence - against[c].confidence for c in both]),
                )
            )  # fmt: skip
    return found


def _recovered(moved: Sequence[Score]) -> np.ndarray:
    """For each clip the share of its moved sounds that are found within one frame of the level."""
    clips: dict[str, list[bool]] = {}
    for s in moved:
        clips.setdefault(s.clip, []).append(abs(s.offset - s.moved) <= 1)
    return np.array([np.mean(hits) for hits in clips.values()], float)


def _p(gains: Sequence[float]) -> float:
    """p-value of the one-sided Wilcoxon test that gains are not above zero; nan for too few."""
    from scipy.stats import wilcoxon

    if sum(gain != 0 for gain in gains) < 5:
        return float("nan")
    return float(wilcoxon(gains, alternative="greater").pvalue)


# Long speech


@dataclass(frozen=True)
class Minute:
    """What a minute of generated motion is like: spread of the keypoints (mean standard deviation), mean distance from
    the start, mean absolute acceleration (jitter), confidence at each level, and the head (None: no mesh tells it)."""

    minute: int
    spread: float
    distance: float
    jitter: float
    largest_step: float
    confidences: list[float]
    head: HeadFigures | None


def minutes(syncers: SyncerPyramid, motion: Tensor, audio: Tensor, mesh: bool = True) -> list[Minute]:
    """Generated motion (T, 60) and its audio (4T, 26), minute by minute; what is left of less than half one is cut.

    mesh: the keypoints are read from a face mesh, and tell how the head is turned.
    """
    size, found = 60 * FPS, []
    for start in range(0, len(motion) - size // 2 + 1, size):
        part = motion[start : start + size]
        sound = audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * (start + size)]
        found.append(
            Minute(
                start // size,
                float(part.std(0).mean()),
                float((part - motion[0]).abs().mean()),
                jitter(part),
                float(part.diff(dim=0).abs().mean(1).max()),
                [s.confidence for s in score(syncers, part, sound, "", "")],
                head_figures(motion_poses(part.numpy())) if mesh else None,
            )
        )
    return found


def jitter(motion: Tensor) -> float:
    """Mean absolute second difference of motion (T, D), per frame squared."""
    return float(motion.diff(n=2, dim=0).abs().mean())
