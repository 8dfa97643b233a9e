"""Motion and audio of prepared clips, for training syncers and generator.

`extract` runs a reenactor's keypoint detector over every frame (and over the mirrored frame, for augmentation)
and keeps the result beside the clip as ``NAME.motion.npz``: motion, mirrored (T, 10, 6) float32 and audio
(4T, 26) float32 log filter-bank energies (or MFCC).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO, features
from mssync.config import AugmentationConfig
from mssync.data.clips import Clip, read_clips
from mssync.data.offsets import OFFSETS
from mssync.data.offsets import estimate as estimate_offsets
from mssync.errors import InputError, written_whole
from mssync.motion import smooth
from mssync.reenact import Reenactor, motion_space
from mssync.reenact.mesh import mirrored as mirrored_marks

SPLITS = ("train", "val", "test")


@dataclass
class Sequence:
    """One clip as the method sees it: motion, mirrored (T, 60), audio (4T, 26).

    made_by: the motion space (see `reenact.motion_space`) and the kind of audio features.
    """

    name: str
    identity: str
    corpus: str
    stabilised: bool
    made_by: str
    motion: Tensor
    mirrored: Tensor
    audio: Tensor

    def __len__(self) -> int:
        return len(self.motion)


def extract(folder: str | Path, reenactor: Reenactor, audio_kind: str, batch: int = 32) -> None:
    """Write NAME.motion.npz for every clip of a prepared folder that has none of this detector and audio kind, and
    offsets.json, by how much sounds are late."""
    from rich.progress import track

    clips = [clip for split in SPLITS for clip in _clips(folder, split)]
    made_by = f"{motion_space(reenactor)} {audio_kind}"
    for clip in track(clips, "extracting motion"):
        target = Path(folder) / f"{clip.entry.name}.motion.npz"
        if target.exists() and _made_by(target) == made_by:
            continue
        motion, mirrored = [], []
        for start in range(0, len(clip), batch):
            times = range(start, min(start + batch, len(clip)))
            frames = np.stack([clip.frame(t) for t in times])
            images = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
            marks = clip.landmarks[times.start : times.stop, :, :2]
            with torch.inference_mode():
                motion.append(reenactor.keypoints(images, torch.from_numpy(marks)))
                mirrored.append(reenactor.keypoints(images.flip(3), torch.from_numpy(mirrored_marks(marks))))
        audio = features(torch.from_numpy(clip.waveform), audio_kind, len(clip))
        arrays = {"motion": torch.cat(motion).numpy(), "mirrored": torch.cat(mirrored).numpy()}
        with written_whole(target, ".npz") as temporary:
            np.savez(temporary, audio=audio.numpy(), made_by=np.array(made_by), **arrays)
    estimate_offsets(folder, clips)


def _made_by(path: Path) -> str:
    with np.load(path) as data:
        return str(data["made_by"])


def _clips(folder: str | Path, split: str) -> list[Clip]:
    try:
        return read_clips(folder, split)
    except InputError:
        if split == "train":
            raise
        return []  # a plain folder has no val and no test split


def read_sequences(folder: str | Path, split: str, min_frames: int, taps: int = 3) -> list[Sequence]:
    """Sequences of one split that are at least `min_frames` long, keypoints smoothed over `taps` frames (*ref*).

    Where the folder has an offsets.json (by clip, by how many video frames its sound is late), the sound is moved
    back by that much. Raises InputError when motion has not been extracted yet, or nothing is long enough.
    """
    found = []
    table = Path(folder) / OFFSETS
    offsets = json.loads(table.read_text()) if table.exists() else {}
    for clip in read_clips(folder, split):
        path = Path(folder) / f"{clip.entry.name}.motion.npz"
        if not path.exists():
            raise InputError(f"{path}: missing; run `mssync extract` on this folder first")
        with np.load(path) as data:
            motion, mirrored = (smooth(data[key], taps).reshape(-1, 60) for key in ("motion", "mirrored"))
            audio, made_by = data["audio"], str(data["made_by"])
        late = int(offsets.get(clip.entry.name, 0))
        motion, mirrored, audio = _aligned(motion, mirrored, audio, late)
        if len(motion) >= min_frames:
            tensors = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (motion, mirrored, audio))
            entry = clip.entry
            found.append(Sequence(entry.name, entry.identity, entry.corpus, entry.stabilised, made_by, *tensors))
    if not found:
        raise InputError(f"{folder}: no clip of the split {split!r} has {min_frames} frames or more")
    return found


def validation_batches(
    folder: str | Path, train: list[Sequence], frames: int, batch: int, count: int, taps: int
) -> list[tuple[Tensor, ...]]:
    """Fixed batches of the `val` split; of `train` where a folder has no other."""
    sequences = read_sequences(folder, "val", frames, taps) if _clips(folder, "val") else train
    batches = SequenceBatches(sequences, frames, batch, seed=12345)
    return [batches(n) for n in range(count)]


def _aligned(motion: np.ndarray, mirrored: np.ndarray, audio: np.ndarray, late: int) -> tuple[np.ndarray, ...]:
    if late > 0:
        return motion[:-late], mirrored[:-late], audio[AUDIO_PER_VIDEO * late :]
    if late < 0:
        return motion[-late:], mirrored[-late:], audio[: AUDIO_PER_VIDEO * late]
    return motion, mirrored, audio


class SequenceBatches:
    """Random batches of equally long pieces; batch n is a function of (seed, n) alone (exact resume).

    augmentation: None for the pieces as they are.
    """

    def __init__(
        self,
        sequences: list[Sequence],
        frames: int,
        batch: int,
        seed: int,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
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

    def __call__(self, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Batch n: motion (B, frames, 60), audio (B, 4 * frames, 26), another frame of each clip (B, 60), and
        the clips' numbers (B,)."""
        rng = np.random.default_rng((self.seed, n))
        motions, audios, others, clips = zip(*(self._piece(rng) for _ in range(self.batch)), strict=True)
        return torch.stack(motions), torch.stack(audios), torch.stack(others), torch.tensor(clips)

    def _piece(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor, int]:
        owned = self.identities[self.names[rng.choice(len(self.names), p=self.weights)]]
        lengths = np.array([len(s) for s in owned], float)
        sequence = owned[rng.choice(len(owned), p=lengths / lengths.sum())]
        start, other = int(rng.integers(len(sequence) - self.frames + 1)), int(rng.integers(len(sequence)))
        settings = self.augmentation
        mirrored = settings is not None and rng.random() < settings.flip
        whole = sequence.mirrored if mirrored else sequence.motion
        motion = torch.cat([whole[start : start + self.frames], whole[other : other + 1]])
        audio = sequence.audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * (start + self.frames)]
        if settings is not None:
            reach = float(sequence.audio.max() - sequence.audio.min())
            motion, audio = augmented(motion, settings, rng), jittered(audio, reach, settings, rng)
        return motion[:-1], audio, motion[-1], self.numbers[sequence.name]


def augmented(motion: Tensor, settings: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """All numbers of a piece (T, 60) times one factor, coordinates shifted by one offset an axis (*ref*)."""
    scaled = motion * float(rng.uniform(1 - settings.scale, 1 + settings.scale))
    shift = torch.zeros(10, 6)
    shift[:, :2] = torch.from_numpy(rng.uniform(-settings.shift, settings.shift, 2)).float()
    return scaled + shift.flatten()


def jittered(audio: Tensor, reach: float, settings: AugmentationConfig, rng: np.random.Generator) -> Tensor:
    """Log energies (4T, 26) moved by one offset within a share of `reach`, the range of their clip (*ref*)."""
    return audio + float(rng.uniform(-settings.energy, settings.energy)) * reach
