"""The sync meter: by how much lips (or the head) and sound of a video are apart, at time scales from 200 to 1600 ms.

A video is seen as face landmarks and sound, and windows of both are compared by small networks that were trained for
nothing else: they see landmarks, not the motion of a reenactor, and never served as anybody's loss.

Signs are those of SyncNet's public code: a **positive** offset means that the sound leads the picture (it comes too
early), a negative one that it is late.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, SAMPLES_PER_VIDEO, features, is_silent, load_audio
from mssync.data.tracks import COMPARABLE, Track, fill_gaps, find_tracks
from mssync.errors import InputError, PathLike
from mssync.face.analyser import FaceMesh
from mssync.faces import EYE_CORNERS, LIPS, N_LANDMARKS, mirror_points
from mssync.pictures import RGB
from mssync.pyramid import LEVELS, pyramid
from mssync.syncer import AUDIO_WINDOW, MAX_OFFSET, MOTION_WINDOW, Syncer
from mssync.video import FPS, VideoReader

# Points of the face mesh
JAW = (152, 148, 377, 176, 400, 149, 378, 150, 379, 199, 200, 175, 205, 425, 207, 427)  # chin and cheeks
MOUTH = LIPS + JAW  # what the lips part sees, once the pose of the head is taken out
HEAD = (  # brows, nose and eyes among the 68 points of face alignment: what the head part sees
    70, 63, 105, 66, 107, 336, 296, 334, 293, 300, 168, 6, 195, 4, 98, 97, 2, 326, 327,
    33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
)  # fmt: skip
SKULL = (168, 6, 197, 195, 5, 4, 33, 133, 362, 263, 10, 9, 8, 151, 109, 338, 67, 297, 127, 356)  # tell its pose
POINTS = tuple(sorted({*MOUTH, *HEAD, *SKULL}))  # all that the meter needs

HEAD_LEVELS = 3
FRAME_MS = 1000 // FPS
WINDOW_MS = MOTION_WINDOW * FRAME_MS  # at level 1
STEP_MS = FRAME_MS // AUDIO_PER_VIDEO  # offsets are tried every 10 ms at level 1, the length of an audio frame
MEAN_RADIUS = 2 * FPS  # frames to both sides over which landmarks lose their mean: cuts and drifts stay local
SOUND_RADIUS = 5 * FPS * AUDIO_PER_VIDEO  # likewise of the sound, in audio frames
QUIETEST = -14.0  # log energy of a peak-normalised sound: what is less is silence
PIECE, MARGIN = 1600, 400  # frames that are compared at once, and steps of what is seen around them: both of 8 and 25
BLOCK = 1024  # windows embedded at once, so that memory does not grow with the video
MINUTE = 60 * FPS  # frames whose faces are looked at together
MIN_SECONDS = 1.0  # of a face: less is no base for anything
RIVAL_MS = 120  # an offset further than this from the best one is a rival
PRIOR_SECONDS = 4  # seconds that the expected deviation of a second counts for
SURE = 0.8  # probability from which on an offset is told, and mended


# Watching


@dataclass
class Watched:
    """A video as the meter sees it.

    path: the file. landmarks: (T, 478, 3) float32 in pixels, 25 a second, gaps filled; only the points asked for,
    where `watch` was told. found: (T,) bool, the frames in which the face is followed. waveform: (n,) float32 at
    16 kHz, starts with the picture and ends with it at the latest.
    """

    path: Path
    landmarks: np.ndarray
    found: np.ndarray
    waveform: np.ndarray

    def __len__(self) -> int:
        return len(self.landmarks)


Fit = Callable[[np.ndarray, np.ndarray], float]


def watch(path: PathLike, points: Sequence[int] | None = None, fit: Fit | None = None) -> Watched:
    """Follow the face of a video and read its sound. Frames are streamed; what is kept are landmarks and sound.

    All 478 points take 143 kB a second. points: keep these alone; the meter's own `POINTS` take 28 kB, the sound 64.
    fit: tells how well landmarks (T, 478, 3) and sound (n,) fit. Where several faces of comparable size are seen
    at once, the one that fits best is followed; without `fit` it is the largest. Either choice gives a warning.

    Raises InputError: no video, no sound, silence, no face, a face for less than a second.
    """
    video = VideoReader(path)
    waveform = load_audio(path)
    if is_silent(waveform):
        raise InputError(f"{path} is silent; there is nothing to compare the face with")
    chosen = np.arange(N_LANDMARKS) if points is None else np.array(points)
    mesh, several = FaceMesh(), False
    kept, found = [], []
    for start, frames in _minutes(iter(video)):
        tracks, count = find_tracks(frames, mesh)
        sound = waveform[start * SAMPLES_PER_VIDEO : (start + count) * SAMPLES_PER_VIDEO]
        several = several or _rivals(tracks) > MIN_SECONDS * FPS
        marks, there = _one_face(_ranked(tracks, sound, fit), count)
        kept.append(marks[:, chosen])
        found.append(there)
    there = np.concatenate(found)
    if not there.any():
        raise InputError(f"{path} shows no face that can be followed; the meter needs a speaker's face")
    if there.sum() < MIN_SECONDS * FPS:
        raise InputError(
            f"{path} shows a face for {there.sum() / FPS:.2f} s only; at least {MIN_SECONDS:g} s are needed"
        )
    if several:
        choice = "the one whose lips fit the sound best" if fit else "the largest one"
        warnings.warn(f"{path}: several faces are seen at once; {choice} is used", stacklevel=2)
    landmarks = np.concatenate(kept)
    if not there.all():
        landmarks = fill_gaps([marks if seen else None for marks, seen in zip(landmarks, there, strict=True)])
    return Watched(Path(path), landmarks, there, waveform[: len(there) * SAMPLES_PER_VIDEO])


def _minutes(frames: Iterator[RGB]) -> Iterator[tuple[int, Iterator[RGB]]]:
    """Frames a minute at a time, each with the number of its first one."""
    for number, first in enumerate(frames):
        yield number * MINUTE, chain([first], islice(frames, MINUTE - 1))


def _rivals(tracks: list[Track]) -> float:
    """Frames in which one face is seen beside another one of comparable size."""
    return sum(track.others * len(track) for track in tracks) / 2


def _ranked(tracks: list[Track], sound: np.ndarray, fit: Fit | None) -> list[Track]:
    """Tracks of a minute, the one to be preferred where several overlap last."""
    by_size = sorted(tracks, key=lambda track: track.face)
    if fit is None or not any(track.others for track in tracks):
        return by_size
    large = [t for t in by_size if t.face >= COMPARABLE * by_size[-1].face and len(t) >= 2 * MIN_SECONDS * FPS]
    pieces = (sound[t.start * SAMPLES_PER_VIDEO : t.stop * SAMPLES_PER_VIDEO] for t in large)
    scores = {id(t): fit(t.landmarks, piece) for t, piece in zip(large, pieces, strict=True) if piece.size}
    return sorted(by_size, key=lambda track: scores.get(id(track), -math.inf))


def _one_face(tracks: list[Track], count: int) -> tuple[np.ndarray, np.ndarray]:
    """Landmarks (count, 478, 3) of one face a frame, and in which frames it is followed (count,).

    The frame in which another face takes over counts as not found: no window reaches across.
    """
    marks, owner = np.zeros((count, N_LANDMARKS, 3), np.float32), np.full(count, -1)
    for number, track in enumerate(tracks):
        marks[track.start : track.stop], owner[track.start : track.stop] = track.landmarks, number
    return marks, (owner >= 0) & ~(np.diff(owner, prepend=owner[:1]) != 0)


# What the networks see


def without_mean(x: np.ndarray, radius: int) -> np.ndarray:
    """(T, D) minus its mean over the `radius` positions to both sides, as many as there are."""
    total = np.concatenate([np.zeros((1, x.shape[1])), np.cumsum(x, axis=0, dtype=np.float64)])
    at = np.arange(len(x))
    low, high = np.maximum(at - radius, 0), np.minimum(at + radius + 1, len(x))
    return (x - (total[high] - total[low]) / (high - low)[:, None]).astype(np.float32)


def frontal(landmarks: np.ndarray, skull: np.ndarray, points: Sequence[int]) -> np.ndarray:
    """Points of a face without the head's pose, place and size: (T, n, 3).

    landmarks: (T, 478, 3), or (T, len(POINTS), 3); skull: (len(SKULL), 3), the mean skull, centred. Every frame is
    rotated, scaled and moved so that its skull fits this one best (Umeyama 1991, without reflections).
    """
    own = _pick(landmarks, SKULL).astype(np.float64)
    centre = own.mean(1, keepdims=True)
    own = own - centre
    u, s, vt = np.linalg.svd(own.transpose(0, 2, 1) @ skull)
    sign = np.ones_like(s)
    sign[:, 2] = np.sign(np.linalg.det(u @ vt))
    scale = (s * sign).sum(1) / np.maximum((own**2).sum((1, 2)), 1e-12)
    turn = (u * sign[:, None]) @ vt * scale[:, None, None]
    return ((_pick(landmarks, points) - centre) @ turn).astype(np.float32)


def mean_skull(landmarks: np.ndarray, rounds: int = 5) -> np.ndarray:
    """The mean of SKULL over faces (T, 478, 3) of any pose: symmetric, frontal, 1 between the outer eye corners."""
    index, mirrored = list(SKULL), np.array(SKULL)[[SKULL.index(int(mirror_points()[p])) for p in SKULL]]
    marks = landmarks.astype(np.float64)
    skull = marks[:, index].mean(0)
    for _ in range(rounds):
        skull = skull - skull.mean(0)
        skull /= np.linalg.norm(skull[index.index(EYE_CORNERS[0])] - skull[index.index(EYE_CORNERS[1])])
        skull = frontal(landmarks, skull, SKULL).astype(np.float64).mean(0)
        skull = (skull + skull[[index.index(int(p)) for p in mirrored]] * [-1, 1, 1]) / 2
    return skull.astype(np.float32)


def mouth_motion(landmarks: np.ndarray, skull: np.ndarray) -> np.ndarray:
    """(T, 3 len(MOUTH)): frontal lips, chin and cheeks, in distances of the eye corners, less their local mean."""
    return without_mean(frontal(landmarks, skull, MOUTH).reshape(len(landmarks), -1), MEAN_RADIUS)


def head_motion(landmarks: np.ndarray) -> np.ndarray:
    """(T, 3 len(HEAD)): eyes, brows and nose as they move with the head, less their local mean.

    In distances of the outer eye corners, of the median frame.
    """
    corners = _pick(landmarks, EYE_CORNERS)
    unit = np.median(np.linalg.norm(corners[:, 0] - corners[:, 1], axis=-1))
    return without_mean(_pick(landmarks, HEAD).reshape(len(landmarks), -1) / max(float(unit), 1e-6), MEAN_RADIUS)


def mirrored_motion(motion: np.ndarray, points: Sequence[int]) -> np.ndarray:
    """Motion (T, 3 len(points)) of the mirrored video."""
    order = [points.index(int(mirror_points()[p])) for p in points]
    return (motion.reshape(len(motion), -1, 3)[:, order] * np.array([-1, 1, 1], np.float32)).reshape(motion.shape)


def sound_features(waveform: np.ndarray, frames: int) -> np.ndarray:
    """(4 frames, 26): log mel energies, silence cut off, less their local mean."""
    rows = features(torch.from_numpy(np.ascontiguousarray(waveform)), "logfbank", frames).numpy()
    return without_mean(rows.clip(QUIETEST), SOUND_RADIUS)


def _pick(landmarks: np.ndarray, points: Sequence[int]) -> np.ndarray:
    index = points if landmarks.shape[1] == N_LANDMARKS else [POINTS.index(p) for p in points]
    return landmarks[:, list(index)]


# Networks


class SyncMeter(nn.Module):
    """Syncers of lips (levels 1-4) and of the rigid head (levels 1-3), and what turns their distances into an offset.

    lips_width, head_width: of the networks; embedding: its size; dropout: in training alone.
    """

    skull: Tensor  # (len(SKULL), 3)
    weights: Tensor  # (4,) of the lips' levels in the combined estimate
    calibration: Tensor  # (3,) slope and base of the probability, expected deviation of a second: see `Comparison`

    def __init__(self, lips_width: int = 160, head_width: int = 64, embedding: int = 96, dropout: float = 0.0) -> None:
        super().__init__()
        lips = (Syncer(3 * len(MOUTH), lips_width, embedding, dropout) for _ in range(LEVELS))
        head = (Syncer(3 * len(HEAD), head_width, embedding, dropout) for _ in range(HEAD_LEVELS))
        self.parts = nn.ModuleDict({"lips": nn.ModuleList(lips), "head": nn.ModuleList(head)})
        self.register_buffer("skull", torch.zeros(len(SKULL), 3))
        self.register_buffer("weights", torch.ones(LEVELS))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0, 1.0]))

    @classmethod
    def load(cls, path: PathLike | None = None) -> SyncMeter:
        """The shipped meter, or that of a model file. Raises InputError when it is no meter's file."""
        from mssync.weights import load_model

        return cast(SyncMeter, load_model(str(path or "meter"), kinds=("meter",))[0])

    def lips(self, landmarks: np.ndarray, waveform: np.ndarray, max_offset: int = MAX_OFFSET) -> list[LevelScore]:
        """Scores of the lips at 200, 400, 800 and 1600 ms, as far as the clip is long enough for a window.

        landmarks: (T, 478, 3) at 25 fps in any unit; waveform: (n,) at 16 kHz, starting with them.
        Raises InputError: less than 5 frames.
        """
        return self.compare(landmarks, waveform, max_offset=max_offset, parts=("lips",)).lips

    def head(self, landmarks: np.ndarray, waveform: np.ndarray, max_offset: int = MAX_OFFSET) -> list[LevelScore]:
        """Scores of eyes and nose at 200, 400 and 800 ms; as `lips`."""
        return self.compare(landmarks, waveform, max_offset=max_offset, parts=("head",)).head

    def offset(self, landmarks: np.ndarray, waveform: np.ndarray, max_offset: int = MAX_OFFSET) -> Reading:
        """The offset of a clip in milliseconds, from all levels of the lips, and how likely it is right."""
        return self.compare(landmarks, waveform, max_offset=max_offset, parts=("lips",)).reading()

    def fit(self, landmarks: np.ndarray, waveform: np.ndarray) -> float:
        """How clearly lips and sound fit, at whatever offset; for `watch`."""
        return self.offset(landmarks, waveform).clearness

    @torch.no_grad()
    def compare(
        self,
        landmarks: np.ndarray,
        waveform: np.ndarray,
        found: np.ndarray | None = None,
        max_offset: int = MAX_OFFSET,
        parts: Sequence[str] = ("lips", "head"),
    ) -> Comparison:
        """Compare every window of motion with the sound around it. found: (T,) bool, which frames count; all unless
        given. Raises InputError: less than 5 frames in a row."""
        there = np.ones(len(landmarks), bool) if found is None else found
        if len(landmarks) < MOTION_WINDOW:
            raise InputError(
                f"{len(landmarks)} frames are too few to compare with sound; give at least {MOTION_WINDOW}"
            )
        pieces = [
            self._piece(landmarks, waveform, there, start, max_offset, parts) for start in range(0, len(there), PIECE)
        ]
        sums = {part: _joined([piece[part] for piece in pieces]) for part in parts}
        if not any(sums.values()):
            raise InputError(
                f"no face is followed for {MOTION_WINDOW} frames in a row; the meter cannot compare anything"
            )
        return Comparison(sums, self.weights.numpy(), self.calibration.numpy())

    def _piece(
        self,
        landmarks: np.ndarray,
        waveform: np.ndarray,
        found: np.ndarray,
        start: int,
        max_offset: int,
        parts: Sequence[str],
    ) -> dict[str, list[LevelSums]]:
        """Distances of the windows in the minute from frame `start` on, by part; so memory stays as it is."""
        margin = MARGIN * -(-(max_offset * 2 ** (LEVELS - 1) + MARGIN // 2) // MARGIN)  # what the outermost windows see
        low, high = max(0, start - margin), min(len(landmarks), start + PIECE + margin)
        heard = waveform[low * SAMPLES_PER_VIDEO : high * SAMPLES_PER_VIDEO]
        sound = sound_features(heard if heard.size else np.zeros(1, np.float32), high - low)
        seconds = slice((start - low) // FPS, -(-(min(start + PIECE, high) - low) // FPS))
        sums = {}
        for part in parts:
            seen = landmarks[low:high]
            motion = head_motion(seen) if part == "head" else mouth_motion(seen, self.skull.numpy())
            levels = level_sums(cast(Sequence[Syncer], self.parts[part]), motion, sound, found[low:high], max_offset)
            sums[part] = [LevelSums(x.level, x.centred[seconds], x.mean[seconds], x.count[seconds]) for x in levels]
        return sums


def build_meter(config: dict[str, Any]) -> SyncMeter:
    """The meter of a model file, from the arguments stored in it (`weights.load_model`)."""
    return SyncMeter(**config)


# Distances


@dataclass
class LevelSums:
    """Distances of one level, added up over each second of a clip.

    centred: (seconds, offsets) distances less the mean of their window, of windows centred in that second; where the
    sound of an offset lies outside of the clip it counts as the mean. mean: (seconds,) sum of these means.
    count: (seconds,) windows. Offsets are audio frames of the level, ascending.
    """

    level: int
    centred: np.ndarray
    mean: np.ndarray
    count: np.ndarray


@torch.no_grad()
def level_sums(
    nets: Sequence[Syncer], motion: np.ndarray, sound: np.ndarray, found: np.ndarray, max_offset: int = MAX_OFFSET
) -> list[LevelSums]:
    """Distances of a clip by the networks of levels 1, 2, …

    motion: (T, D), sound: (4T, 26), found: (T,) which frames count. max_offset: in frames of each level.
    """
    return [_level_sums(net, motion, sound, found, n, max_offset) for n, net in enumerate(nets, start=1)]


def _joined(pieces: list[list[LevelSums]]) -> list[LevelSums]:
    """The levels of pieces of a clip, one after the other; without levels for which it is too short."""
    joined = [
        LevelSums(
            level[0].level,
            *(np.concatenate([getattr(x, name) for x in level]) for name in ("centred", "mean", "count")),
        )
        for level in zip(*pieces, strict=True)
    ]
    return [level for level in joined if level.count.any()]


def _level_sums(
    net: Syncer, motion: np.ndarray, sound: np.ndarray, found: np.ndarray, level: int, max_offset: int
) -> LevelSums:
    """Sums of one level. motion (T, D), sound (4T, 26), found (T,): of level 1."""
    moves, sounds, seen = (
        pyramid(torch.from_numpy(x)[None], level)[-1] for x in (motion, sound, found[:, None].astype(np.float32))
    )
    seconds, reach = -(-len(motion) // FPS), AUDIO_PER_VIDEO * max_offset
    centred = np.zeros((seconds, 2 * reach + 1))
    mean, count = np.zeros(seconds), np.zeros(seconds, int)
    if moves.shape[1] >= MOTION_WINDOW and sounds.shape[1] >= AUDIO_WINDOW:
        heard = _every_position(net, sounds)
        whole = seen[0, :, 0].unfold(0, MOTION_WINDOW, 1).min(1).values > 1 - 1e-3
        offsets = torch.arange(-reach, reach + 1)
        for start in range(0, len(whole), BLOCK):
            embedded = net.embed_motion(moves[:, start : start + BLOCK + MOTION_WINDOW - 1])[0]
            at = torch.arange(start, start + len(embedded))
            kept = whole[at]
            embedded, at = embedded[kept], at[kept]
            where = AUDIO_PER_VIDEO * at[:, None] - offsets
            there = (where >= 0) & (where < len(heard))
            distance = _distances(embedded, heard, where)
            own = (distance * there).sum(1) / there.sum(1).clamp(min=1)
            second = ((at + MOTION_WINDOW // 2) * 2 ** (level - 1) // FPS).clamp(max=seconds - 1).numpy()
            np.add.at(centred, second, ((distance - own[:, None]) * there).double().numpy())
            np.add.at(mean, second, own.double().numpy())
            np.add.at(count, second, 1)
    return LevelSums(level, centred, mean, count)


def _every_position(net: Syncer, sounds: Tensor) -> Tensor:
    """Embeddings of the sound windows that start at every audio frame: (1, A, 26) -> (A - 19 or a little less, E)."""
    blocks = []
    step = AUDIO_PER_VIDEO * BLOCK
    for start in range(0, sounds.shape[1] - AUDIO_WINDOW + 1, step):
        phases = [
            net.embed_audio(sounds[:, start + phase : start + phase + step + AUDIO_WINDOW - AUDIO_PER_VIDEO])[0]
            for phase in range(AUDIO_PER_VIDEO)
            if start + phase + AUDIO_WINDOW <= sounds.shape[1]
        ]
        full = min(len(phase) for phase in phases) if len(phases) == AUDIO_PER_VIDEO else 0
        blocks.append(torch.stack([phase[:full] for phase in phases], 1).flatten(0, 1))
        blocks += [phase[full:] for phase in phases if len(phase) > full]
    return torch.cat(blocks)


def _distances(moves: Tensor, heard: Tensor, where: Tensor) -> Tensor:
    """Distances (n, offsets) of embeddings moves (n, E) from those of the sound at positions where (n, offsets)."""
    out = torch.empty(where.shape)
    for start in range(0, len(moves), 64):
        rows = slice(start, start + 64)
        low, high = int(where[rows].min().clamp(0, len(heard) - 1)), int(where[rows].max().clamp(0, len(heard) - 1))
        table = moves[rows] @ heard[low : high + 1].T
        out[rows] = table.gather(1, (where[rows] - low).clamp(0, high - low))
    return (2 - 2 * out).clamp(min=0).sqrt()


# Scores


@dataclass(frozen=True)
class LevelScore:
    """How lips or head and sound fit at one time scale.

    level: of the pyramid, 1 to 4; milliseconds: length of its windows. offsets: (2m + 1,) tried, in frames of the
    level (40, 80, 160, 320 ms); positive: the sound leads. curve: (2m + 1,) mean distance at each. offset: where it
    is least. confidence: median minus minimum of the curve (SyncNet's).
    """

    level: int
    milliseconds: int
    offsets: np.ndarray
    curve: np.ndarray
    offset: int
    confidence: float

    @property
    def frame_ms(self) -> int:
        """Length of a frame of the level."""
        return FRAME_MS * 2 ** (self.level - 1)

    @property
    def offset_ms(self) -> int:
        return self.offset * self.frame_ms


@dataclass(frozen=True)
class Reading:
    """A clip's offset, from all levels together.

    milliseconds: positive: the sound leads. clearness: see `located`. probability: that this is right within a frame
    (40 ms), as calibrated on the val split; below `SURE` better say nothing. offsets (ms), evidence: the curve whose
    peak it is.
    """

    milliseconds: float
    clearness: float
    probability: float
    offsets: np.ndarray
    evidence: np.ndarray

    @property
    def sure(self) -> bool:
        return self.probability >= SURE


@dataclass
class Comparison:
    """All distances of a clip, by the second; see `SyncMeter.compare`."""

    sums: dict[str, list[LevelSums]]
    weights: np.ndarray = field(default_factory=lambda: np.ones(LEVELS))
    calibration: np.ndarray = field(default_factory=lambda: np.array([1.0, 0.0, 1.0]))

    @property
    def lips(self) -> list[LevelScore]:
        return [_level_score(level) for level in self.sums["lips"]]

    @property
    def head(self) -> list[LevelScore]:
        return [_level_score(level) for level in self.sums["head"]]

    def reading(self, start: int = 0, stop: int | None = None) -> Reading:
        """The offset of seconds start to stop."""
        return self._reading(self._weighed()[start:stop])

    def over_time(self, window: int = 6) -> list[tuple[float, Reading]]:
        """The offset of every `window` seconds, a second apart: (middle in s, reading). A drift shows."""
        evidence = self._weighed()
        starts = range(max(1, len(evidence) - window + 1))
        return [
            (start + min(window, len(evidence)) / 2, self._reading(evidence[start : start + window]))
            for start in starts
        ]

    def evidence(self) -> np.ndarray:
        """What speaks for every offset, by level and second: (levels, seconds, offsets) on the grid of level 1."""
        lips = self.sums["lips"]
        reach = lips[0].centred.shape[1] // 2
        offsets = np.arange(-reach, reach + 1)
        found = np.zeros((LEVELS, len(lips[0].count), len(offsets)))
        for level in lips:
            grid = offsets / 2 ** (level.level - 1) + reach
            left = grid.astype(int).clip(0, 2 * reach - 1)
            right = grid - left
            found[level.level - 1] = -level.centred[:, left] * (1 - right) - level.centred[:, left + 1] * right
        return found

    def _weighed(self) -> np.ndarray:
        return np.tensordot(self.weights, self.evidence(), 1)

    def _reading(self, evidence: np.ndarray) -> Reading:
        slope, base, expected = self.calibration.tolist()
        offset, clearness = located(evidence, expected)
        offsets = (np.arange(evidence.shape[1]) - evidence.shape[1] // 2) * STEP_MS
        edge = abs(offset) >= offsets[-1]  # the true one may lie beyond
        probability = 0.0 if edge else 1 / (1 + math.exp(-slope * clearness - base))
        return Reading(offset, clearness, probability, offsets, evidence.sum(0))


def located(evidence: np.ndarray, expected: float) -> tuple[float, float]:
    """The offset in ms that most speaks for, and how clearly: of seconds (K, offsets) of a clip.

    The clearness is Student's t of the best offset against its strongest rival over the seconds. expected: deviation
    of a second, assumed until there are enough of them to measure it.
    """
    total = evidence.sum(0)
    peak, reach = int(total.argmax()), len(total) // 2
    apart = np.abs(np.arange(len(total)) - peak) * STEP_MS > RIVAL_MS
    lead = evidence[:, peak] - evidence[:, int(np.where(apart, total, -np.inf).argmax())]
    variance = (((lead - lead.mean()) ** 2).sum() + PRIOR_SECONDS * expected**2) / (len(lead) + PRIOR_SECONDS)
    clearness = float(lead.sum() / math.sqrt(len(lead) * variance + 1e-12))
    return (peak - reach + _vertex(total, peak)) * STEP_MS, clearness


def _level_score(level: LevelSums) -> LevelScore:
    windows = int(level.count.sum())
    curve = (level.mean.sum() + level.centred.sum(0)[::AUDIO_PER_VIDEO]) / windows
    reach = len(curve) // 2
    offsets = np.arange(-reach, reach + 1)
    least = int(curve.argmin())
    confidence = float(np.median(curve) - curve[least])
    return LevelScore(level.level, WINDOW_MS * 2 ** (level.level - 1), offsets, curve, int(offsets[least]), confidence)


def _vertex(curve: np.ndarray, peak: int) -> float:
    """Where the parabola through a peak and its two neighbours has its top, in steps from the peak: -1/2 … 1/2."""
    if peak in (0, len(curve) - 1):
        return 0.0
    left, top, right = curve[peak - 1 : peak + 2]
    bend = left - 2 * top + right
    return float(np.clip((left - right) / (2 * bend), -0.5, 0.5)) if bend < 0 else 0.0
