"""Motion and audio of prepared clips, for training syncers and generator; or, for syncers, of a file of your own
(`mssync.data.own`).

`extract` runs a reenactor's keypoint detector over every frame (and over the mirrored frame, for augmentation) and
keeps the result beside the shards, as ``motion/SHARD.tar`` with a ``KEY.motion.npz`` for every clip: motion, mirrored
(T, 10, 6) float32, audio (4T, 26) float32 (log filter-bank energies or MFCC) and made_by, the name of the motion's
space and the kind of audio features. ``preprocess --model`` puts the same file into the shards themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO, features
from mssync.config import AugmentationConfig, GeneratorConfig
from mssync.data import shards
from mssync.data.clips import SPLITS, Clip, read_clips
from mssync.data.offsets import OFFSETS
from mssync.data.offsets import estimate as estimate_offsets
from mssync.data.own import read_recordings
from mssync.errors import InputError, PathLike, written_whole
from mssync.face1 import PLACE, SIZE, SPACE, clip_motion, neutral, read
from mssync.faces import mirrored_landmarks
from mssync.motion import smooth, space_name
from mssync.reenact import N_VALUES, Reenactor
from mssync.speech import FILE_AHEAD, LIVE_AHEAD, SpeechEncoder

Hear = Callable[[NDArray[np.float32], str, int], list[Tensor]]
"""What generators get of a sound (n,) at 16 kHz, a kind of energies and a number of video frames: versions of it, each
with as many rows a video frame."""
MOTION = "motion"  # the folder of what `extract` makes, in the prepared folder
BATCH = 32  # frames
BODY_NUMBERS = slice(-N_VALUES, None)  # of keypoints: the one of neck and shoulders


@dataclass
class FaceMotion:
    """A clip's motion in the space face-1: (T, 50), and the person's face at rest (478, 3); and what is known of a
    portrait that is its first frame: start (50,), start_rest (478, 3)."""

    motion: Tensor
    rest: Tensor
    start: Tensor
    start_rest: Tensor


@dataclass
class Sequence:
    """One clip as the method sees it: motion, mirrored (T, D), audio (4T, 26). D = 60, but for motion of your own.

    space, features: the name of the motion's space and the kind of audio features; "" for motion of your own, of which
    nobody knows what is left and right: it has no `mirrored`.
    heard: what generators get in place of audio, versions (rows T, n) of it: see `listening`.
    faces: the same motion in the space face-1, as it is and mirrored, where that is asked for.
    """

    name: str
    identity: str
    corpus: str
    stabilised: bool
    space: str
    features: str
    motion: Tensor
    mirrored: Tensor | None
    audio: Tensor
    heard: tuple[Tensor, ...] = ()
    faces: tuple[FaceMotion, FaceMotion] | None = None

    def __len__(self) -> int:
        return len(self.motion)


def extract(folder: str | Path, reenactor: Reenactor, audio_kind: str) -> None:
    """Write motion/SHARD.tar for every shard of a prepared folder that has no motion of this detector and audio kind,
    and offsets.json, by how much sounds are late. A stopped run goes on with the shard where it was."""
    from rich.progress import track

    clips = [clip for split in SPLITS for clip in _clips(folder, split)]
    made_by = f"{reenactor.space} {audio_kind}"
    by_shard: dict[str, list[Clip]] = {}
    for clip in clips:
        by_shard.setdefault(clip.entry.shard, []).append(clip)
    (Path(folder) / MOTION).mkdir(exist_ok=True)
    for name, members in by_shard.items():
        if all(_made_by(clip) == made_by.split() for clip in members):
            continue
        with written_whole(_beside(members[0]), ".tar") as temporary, shards.create(temporary) as archive:
            for clip in track(members, f"extracting motion: {name}"):
                audio = features(torch.from_numpy(clip.waveform), audio_kind, len(clip)).numpy()
                arrays = motion_arrays(reenactor, made_by, clip.frame, clip.landmarks, audio)
                shards.add_bytes(archive, _member(clip), shards.npz(**arrays))
    estimate_offsets(folder, clips)


def motion_arrays(
    reenactor: Reenactor,
    made_by: str,
    frame: Callable[[int], np.ndarray],
    landmarks: np.ndarray,
    audio: np.ndarray,
) -> dict[str, np.ndarray]:
    """What KEY.motion.npz holds (see above), of a clip whose pictures `frame(t)` gives, (256, 256, 3) uint8.

    landmarks: (T, 478, 3) in [-1, 1], which the reenactor may use; audio: (4T, 26).
    """
    motion, mirrored = [], []
    for start in range(0, len(landmarks), BATCH):
        times = range(start, min(start + BATCH, len(landmarks)))
        images = torch.from_numpy(np.stack([frame(t) for t in times])).permute(0, 3, 1, 2).float() / 255
        here = landmarks[start : times.stop].astype(np.float32)
        with torch.inference_mode():
            motion.append(reenactor.keypoints(images, torch.from_numpy(here)))
            mirrored.append(reenactor.keypoints(images.flip(3), torch.from_numpy(mirrored_landmarks(here))))
    return {
        "motion": torch.cat(motion).numpy(),
        "mirrored": torch.cat(mirrored).numpy(),
        "audio": audio,
        "made_by": np.array(made_by),
    }


def read_motion(clip: Clip) -> dict[str, np.ndarray]:
    """What KEY.motion.npz of a clip holds: the one that `extract` made, or else the one in its shard.

    Raises InputError when there is neither.
    """
    for path in (_beside(clip), clip.shard):
        if path.is_file() and _member(clip) in shards.members(path):
            return shards.read_npz(path, _member(clip))
    raise InputError(f"{clip.folder}: no motion of {clip.entry.name}; run `mssync extract` on this folder first")


def _beside(clip: Clip) -> Path:
    return clip.folder / MOTION / clip.entry.shard


def _member(clip: Clip) -> str:
    return f"{clip.entry.name}.motion.npz"


def _made_by(clip: Clip) -> list[str] | None:
    """Space and kind of features of a clip's motion; None where it has none."""
    try:
        return _space_and_features(read_motion(clip))
    except InputError:
        return None


def _space_and_features(arrays: dict[str, np.ndarray]) -> list[str]:
    space, kind = str(arrays["made_by"]).split()
    return [space_name(space), kind]


def _clips(folder: str | Path, split: str) -> list[Clip]:
    try:
        return read_clips(folder, split)
    except InputError:
        if split == "train":
            raise
        return []  # a plain folder has no val and no test split


def listening(
    config: GeneratorConfig, ears: PathLike, ahead: tuple[int, ...] = (LIVE_AHEAD, FILE_AHEAD)
) -> Hear | None:
    """What a generator hears in place of the energies that are stored; None: nothing else.

    ears: the speech encoder of one that hears speech; ahead: ms that its features look ahead, a version each.
    """
    if config.hears == "energies":
        return None
    encoder = SpeechEncoder.load(ears)
    return lambda waveform, kind, frames: [encoder.features(waveform, ms, frames) for ms in ahead]


def read_sequences(
    data: str | Path, split: str, min_frames: int, taps: int = 3, hear: Hear | None = None, faces: bool = False
) -> list[Sequence]:
    """Sequences of one split that are at least `min_frames` long.

    data: a prepared folder, whose keypoints are smoothed over `taps` frames (*ref*), and whose sound is moved back
    where the folder has an offsets.json (by clip, by how many video frames its sound is late); or an .npz file of your
    own motion (`mssync.data.own`), taken as it is. hear: makes `Sequence.heard` of the clips' sound; faces: whether
    `Sequence.faces` are made of their meshes.

    Raises InputError when motion has not been extracted yet, or nothing is long enough.
    """
    own = Path(data).is_file()
    found = _own(data, split, min_frames) if own else _prepared(data, split, min_frames, taps, hear, faces)
    if not found:
        raise InputError(f"{data}: no clip of the split {split!r} has {min_frames} frames or more")
    return found


def generator_sequences(
    config: GeneratorConfig, hear: Hear | None, data: str | Path, split: str, min_frames: int
) -> list[Sequence]:
    """`read_sequences` as a generator of that configuration gets them; hear: see `listening`."""
    return read_sequences(data, split, min_frames, hear=hear, faces=config.space == SPACE)


def _own(path: str | Path, split: str, min_frames: int) -> list[Sequence]:
    return [
        Sequence(r.name, r.speaker, "", False, "", "", r.motion, None, r.audio)
        for r in read_recordings(path, split, min_frames)
    ]


def _prepared(
    folder: str | Path, split: str, min_frames: int, taps: int, hear: Hear | None, faces: bool
) -> list[Sequence]:
    found = []
    table = Path(folder) / OFFSETS
    offsets = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    for clip in read_clips(folder, split):
        data = read_motion(clip)
        motion, mirrored = (smooth(data[key], taps).reshape(-1, 60) for key in ("motion", "mirrored"))
        space, kind = _space_and_features(data)
        heard = [] if hear is None else hear(clip.waveform, kind, len(clip))
        sounds = [data["audio"], *(sound.numpy() for sound in heard)]
        late = int(offsets.get(clip.entry.name, 0))
        motion, mirrored, *sounds = _aligned(motion, mirrored, *sounds, late=late)
        kept = slice(max(0, -late), len(clip) - max(0, late))
        if len(motion) >= min_frames:
            tensors = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (motion, mirrored, *sounds))
            entry = clip.entry
            moves, turned, audio, *versions = tensors
            about = (entry.name, entry.identity, entry.corpus, entry.stabilised, space, kind)
            seen = _faces(clip.landmarks[kept], taps) if faces else None
            found.append(Sequence(*about, moves, turned, audio, tuple(versions), seen))
    return found


def _faces(landmarks: NDArray, taps: int) -> tuple[FaceMotion, FaceMotion]:
    found = []
    for meshes in (landmarks, mirrored_landmarks(landmarks)):
        first = neutral(meshes[0])
        arrays = (*clip_motion(meshes, taps), read(meshes[0], first), first)
        found.append(FaceMotion(*map(torch.from_numpy, arrays)))
    return found[0], found[1]


def validation_batches(
    data: str | Path,
    train: list[Sequence],
    frames: int,
    batch: int,
    count: int,
    taps: int,
    before: int | None = None,
    hear: Hear | None = None,
    faces: bool = False,
) -> list[tuple[Tensor, ...]]:
    """Fixed batches of the `val` split; of `train` where there is no other. before: as in `SequenceBatches`."""
    held_out = read_recordings(data, "val", frames) if Path(data).is_file() else _clips(data, "val")
    sequences = read_sequences(data, "val", frames, taps, hear, faces) if held_out else train
    batches = SequenceBatches(sequences, frames, batch, seed=12345, before=before)
    return [batches(n) for n in range(count)]


def _aligned(motion: np.ndarray, mirrored: np.ndarray, *sounds: np.ndarray, late: int) -> tuple[np.ndarray, ...]:
    rows = [len(sound) // len(motion) for sound in sounds]
    if late > 0:
        moved = (sound[n * late :] for n, sound in zip(rows, sounds, strict=True))
        return motion[:-late], mirrored[:-late], *moved
    if late < 0:
        moved = (sound[: n * late] for n, sound in zip(rows, sounds, strict=True))
        return motion[-late:], mirrored[-late:], *moved
    return motion, mirrored, *sounds


class SequenceBatches:
    """Random batches of equally long pieces; batch n is a function of (seed, n) alone (exact resume).

    augmentation: None for the pieces as they are.
    before: frames before a piece that are heard, too, where sequences have something that generators get in
        place of audio: a batch then ends with heard (B, rows (before + frames + after), n), a version of it drawn by
        chance.
    disturb: what is done to the sound (4 frames, 26) of a piece at last, with the random numbers of its batch.
    strangers: every piece moves around the mean of another clip, so that a face cannot be known by its place and shape.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        frames: int,
        batch: int,
        seed: int,
        augmentation: AugmentationConfig | None = None,
        before: int | None = None,
        disturb: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        strangers: bool = False,
    ) -> None:
        self.before, self.disturb = before, disturb
        self.means = [s.motion.mean(0) for s in sequences] if strangers else None
        if before is not None:
            self.average = torch.cat([sound for s in sequences for sound in s.heard]).mean(0)
        self.frames, self.batch, self.seed, self.augmentation = frames, batch, seed, augmentation
        self.identities: dict[str, list[Sequence]] = {}
        for sequence in sequences:
            if len(sequence) >= frames:
                self.identities.setdefault(sequence.identity, []).append(sequence)
        if not self.identities:
            raise InputError(f"no clip is {frames} frames long; use longer clips")
        self.names = sorted(self.identities)
        self.numbers = {s.name: i for i, s in enumerate(sequences)}
        # an identity's weight grows with the root of its footage: variety without repeating a short clip too often
        lengths = np.array([sum(len(s) for s in self.identities[name]) for name in self.names], float)
        self.weights = np.sqrt(lengths) / np.sqrt(lengths).sum()

    def __call__(self, n: int) -> tuple[Tensor, ...]:
        """Batch n: motion (B, frames, D), audio (B, 4 * frames, 26), another frame of each clip (B, D), the clips'
        numbers (B,), and what is heard where `before` is given. Where sequences have `faces`, motion is that of face-1,
        and faces at rest (B, 478, 3) and keypoints of the bodies in the first frame (B, 6) come last."""
        rng = np.random.default_rng((self.seed, n))
        return tuple(map(torch.stack, zip(*(self._piece(rng) for _ in range(self.batch)), strict=True)))

    def _piece(self, rng: np.random.Generator) -> list[Tensor]:
        owned = self.identities[self.names[rng.choice(len(self.names), p=self.weights)]]
        lengths = np.array([len(s) for s in owned], float)
        sequence = owned[rng.choice(len(owned), p=lengths / lengths.sum())]
        start, other = int(rng.integers(len(sequence) - self.frames + 1)), int(rng.integers(len(sequence)))
        settings = self.augmentation
        mirrored = settings is not None and rng.random() < settings.flip
        whole = sequence.mirrored if mirrored and sequence.mirrored is not None else sequence.motion
        if sequence.faces is not None:
            return self._face_piece(sequence, sequence.faces[mirrored], whole[start, BODY_NUMBERS], start, other, rng)
        motion = torch.cat([whole[start : start + self.frames], whole[other : other + 1]])
        if self.means is not None:
            motion = motion - whole.mean(0) + self.means[rng.integers(len(self.means))]
        audio = sequence.audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * (start + self.frames)]
        heard = self._heard(sequence, start, rng)
        if settings is not None:
            motion = augmented(motion, settings, rng, keypoints=sequence.mirrored is not None)
            audio = audio + jitter(float(sequence.audio.max() - sequence.audio.min()), settings, rng)
        if self.disturb is not None:
            audio = torch.from_numpy(self.disturb(audio.numpy(), rng))
        return [motion[:-1], audio, motion[-1], torch.tensor(self.numbers[sequence.name]), *heard]

    def _face_piece(
        self, sequence: Sequence, face: FaceMotion, body: Tensor, start: int, other: int, rng: np.random.Generator
    ) -> list[Tensor]:
        """What `__call__` says, of a sequence that has `faces`."""
        motion = torch.cat([face.motion[start : start + self.frames], face.motion[other : other + 1]])
        audio = sequence.audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * (start + self.frames)]
        if self.augmentation is not None:
            motion, body = moved(motion, body, self.augmentation, rng)
        number = torch.tensor(self.numbers[sequence.name])
        return [motion[:-1], audio, motion[-1], number, *self._heard(sequence, start, rng), face.rest, body]

    def _heard(self, sequence: Sequence, start: int, rng: np.random.Generator) -> list[Tensor]:
        """What is heard of a piece of a clip, in a list; an empty one without `before`."""
        if self.before is None or not sequence.heard:
            return []
        sound = sequence.heard[rng.integers(len(sequence.heard))]
        rows = len(sound) // len(sequence)
        begin, end = rows * (start - self.before), rows * (start + self.frames)
        return [torch.cat([self.average.expand(max(0, -begin), -1), sound[max(0, begin) : end]])]


def moved(
    motion: Tensor, body: Tensor, settings: AugmentationConfig, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """As `augmented`: motion (T, 50) of the space face-1, and the body's keypoint (6,); elsewhere, larger, smaller."""
    factor = float(rng.uniform(1 - settings.scale, 1 + settings.scale))
    shift = torch.from_numpy(rng.uniform(-settings.shift, settings.shift, 2).astype(np.float32))
    motion, body = motion.clone(), body.clone()
    motion[:, PLACE] = factor * motion[:, PLACE] + shift
    motion[:, SIZE] += math.log(factor)
    body[:2] = factor * body[:2] + shift
    return motion, body


def augmented(motion: Tensor, settings: AugmentationConfig, rng: np.random.Generator, keypoints: bool = True) -> Tensor:
    """All numbers of a piece (T, D) times one factor; keypoints' coordinates shifted by one offset an axis (*ref*)."""
    scaled = motion * float(rng.uniform(1 - settings.scale, 1 + settings.scale))
    if not keypoints:
        return scaled
    shift = torch.zeros(10, 6)
    shift[:, :2] = torch.from_numpy(rng.uniform(-settings.shift, settings.shift, 2)).float()
    return scaled + shift.flatten()


def disturbed_sound(sound: np.ndarray, tilt: float, noise: float, mask: float, rng: np.random.Generator) -> np.ndarray:
    """Log energies (n, 26) as of another room: other levels of the bands, noise, a moment and some bands missing.

    tilt: deviation of the level of bands; noise, mask: probabilities.
    """
    count, bands = sound.shape
    knots = rng.normal(0, tilt, 5)
    sound = sound + np.interp(np.linspace(0, 4, bands), np.arange(5), knots).astype(np.float32)
    if rng.random() < noise:
        floor = rng.uniform(-4, 0) + 0.7 * rng.standard_normal((count, bands), np.float32)
        sound = np.logaddexp(sound, floor.astype(np.float32))
    if rng.random() < mask:
        length, start = int(rng.integers(2, 16)), int(rng.integers(count))
        sound[start : start + length] = sound.min()
    if rng.random() < mask:
        low = int(rng.integers(bands))
        missing = sound[:, low : low + int(rng.integers(1, 6))]
        missing[:] = missing.mean(0)
    return sound.astype(np.float32)


def jitter(reach: float, settings: AugmentationConfig, rng: np.random.Generator) -> float:
    """By how much a piece's log energies are moved: within a share of `reach`, the range of their clip (*ref*)."""
    return float(rng.uniform(-settings.energy, settings.energy)) * reach
