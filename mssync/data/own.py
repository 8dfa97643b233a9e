"""Motion of your own, for training syncers: one .npz file with the motion and the sound of recordings.

================  =====================  =====================================================================
``motion_NAME``   (T, D) numbers         what describes a frame: landmarks, blendshape coefficients, …
``audio_NAME``    (n,), or (A, 26)       the sound of the same time: 16 kHz mono, or `audio.features` of it
``speaker_NAME``  a word, optional       who speaks; without it, each recording is a speaker of its own
``fps``           a number, optional     frames of motion a second, 25 unless given
================  =====================  =====================================================================

A file of one recording may call its arrays ``motion``, ``audio`` and ``speaker``. Motion is taken as it is, but for its
frame rate, which is made 25 (`syncer.at_video_rate`): nothing is smoothed, moved or mirrored.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO, N_FILTERS, features, n_video_frames
from mssync.errors import InputError, PathLike, input_file
from mssync.syncer import at_video_rate
from mssync.video import FPS

MOTION, AUDIO, SPEAKER, RATE = "motion", "audio", "speaker", "fps"
KINDS = (MOTION, AUDIO, SPEAKER)
SLACK = 5  # frames by which motion and sound of a recording may differ in length; more is a mistake
RATES = (1, 1000)  # frames a second that make sense
HELD_OUT = 0.1  # share of the recordings to validate on
PARTS = 2  # a part of a long recording is at least so many times as long as is asked for


@dataclass(frozen=True)
class Recording:
    """motion (T, D) at 25 frames a second and audio (4T, 26) of the same time."""

    name: str
    speaker: str
    motion: Tensor
    audio: Tensor

    def __len__(self) -> int:
        return len(self.motion)


def read_recordings(path: PathLike, split: str, min_frames: int) -> list[Recording]:
    """The recordings of one split, "train" or "val", that are at least `min_frames` long; [] where it has none.

    About a tenth of them is held out for `val`, by a hash of the speaker, who is never in both; nothing where there
    are too few. A long recording comes in parts, each at least `PARTS` times `min_frames` long, so that there are
    other clips to learn from even in a single one.

    Raises InputError: no .npz file, objects in it, arrays that are missing, unknown, of a wrong shape, not finite, or
    of another length than their sound.
    """
    path = input_file(path)
    state = path.stat()
    recordings = _read(path, state.st_size, state.st_mtime_ns)
    recordings = [recording for recording in recordings if len(recording) >= min_frames]
    held_out = _held_out(recordings)
    chosen = [recording for recording in recordings if (recording.speaker in held_out) == (split == "val")]
    return [part for recording in chosen for part in _parts(recording, PARTS * min_frames)]


def _held_out(recordings: list[Recording]) -> set[str]:
    """Speakers to validate on: in the order of their hashes, those who fit into a tenth of the recordings.

    Nobody, where these would have a single one: the coarsest level compares it with others.
    """
    owned: dict[str, int] = {}
    for recording in recordings:
        owned[recording.speaker] = owned.get(recording.speaker, 0) + 1
    left, chosen = round(HELD_OUT * len(recordings)), set()
    for speaker in sorted(owned, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if owned[speaker] <= left:
            left -= owned[speaker]
            chosen.add(speaker)
    return chosen if sum(owned[speaker] for speaker in chosen) > 1 else set()


def _parts(recording: Recording, least: int) -> list[Recording]:
    """A recording cut into as many parts of `least` frames as it has; their names tell which."""
    cuts = np.linspace(0, len(recording), max(1, len(recording) // least) + 1).astype(int).tolist()
    return [
        Recording(
            f"{recording.name}+{number}",
            recording.speaker,
            recording.motion[start:stop],
            recording.audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * stop],
        )
        for number, (start, stop) in enumerate(pairwise(cuts))
    ]


# Reading


@lru_cache(maxsize=1)  # every level of a pyramid asks for the same file, twice
def _read(path: Path, size: int, changed: int) -> list[Recording]:
    arrays = _arrays(path)
    fps = _rate(arrays.pop(RATE, np.array(float(FPS))), path)
    names: dict[str, set[str]] = {}
    for key in arrays:
        kind, _, name = key.partition("_")
        if kind not in KINDS or (key != kind and not name):
            raise InputError(f"{path}: what is {key}? arrays are motion_NAME, audio_NAME, speaker_NAME and fps")
        names.setdefault(name, set()).add(kind)
    if not names:
        raise InputError(f"{path} holds no motion; give it motion_NAME and audio_NAME for every recording")
    recordings = [_recording(path, arrays, name, fps) for name in sorted(names)]
    first = recordings[0]
    for other in recordings:
        if other.motion.shape[1] != first.motion.shape[1]:
            sizes = f"{first.motion.shape[1]} numbers a frame in {first.name}, {other.motion.shape[1]} in {other.name}"
            raise InputError(f"{path}: motion has {sizes}; it must be the same in all recordings")
    return recordings


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as data:
            return {name: data[name] for name in data}
    except Exception as error:  # a damaged archive may raise anything, MemoryError too
        if "Object arrays" in str(error):
            raise InputError(f"{path}: holds Python objects, not numbers; give every array a plain dtype") from error
        raise InputError(f"{path}: damaged, or no .npz file; write it with numpy.savez") from error


def _rate(value: np.ndarray, path: Path) -> float:
    if value.size != 1 or value.dtype.kind not in "fiu" or not RATES[0] <= value.item() <= RATES[1]:
        raise InputError(f"{path}: fps must be one number from {RATES[0]} to {RATES[1]}")
    return float(value.item())


def _recording(path: Path, arrays: dict[str, np.ndarray], name: str, fps: float) -> Recording:
    """One recording, checked, at 25 frames a second, motion and sound equally long."""
    keys = {kind: f"{kind}_{name}" if name else kind for kind in KINDS}
    for kind in (MOTION, AUDIO):
        if keys[kind] not in arrays:
            raise InputError(f"{path}: there is no {keys[kind]}; every recording needs its motion and its sound")
    motion = _numbers(arrays[keys[MOTION]], f"{path}: {keys[MOTION]}")
    sound = _numbers(arrays[keys[AUDIO]], f"{path}: {keys[AUDIO]}")
    if motion.ndim != 2 or 0 in motion.shape:
        raise InputError(f"{path}: {keys[MOTION]} is {_shape(motion)}; it must be frames × numbers a frame")
    if sound.size == 0 or (sound.ndim != 1 and sound.shape[1:] != (N_FILTERS,)):
        must = f"samples of mono sound at 16 kHz, or frames × {N_FILTERS} features"
        raise InputError(f"{path}: {keys[AUDIO]} is {_shape(sound)}; it must be {must}")
    moves = at_video_rate(torch.from_numpy(motion)[None], fps)[0]
    heard = n_video_frames(len(sound)) if sound.ndim == 1 else round(len(sound) / AUDIO_PER_VIDEO)
    if abs(heard - len(motion) * FPS / fps) > SLACK:
        lasts = f"{keys[MOTION]} lasts {len(motion) / fps:.2f} s, {keys[AUDIO]} {heard / FPS:.2f} s"
        raise InputError(f"{path}: {lasts}; both must be of the same time (sound at 16 kHz; {fps:g} frames a second)")
    rows = features(sound) if sound.ndim == 1 else torch.from_numpy(sound)
    count = min(len(moves), len(rows) // AUDIO_PER_VIDEO)
    speaker = str(arrays[keys[SPEAKER]]) if keys[SPEAKER] in arrays else name
    return Recording(name or path.stem, speaker, moves[:count], rows[: AUDIO_PER_VIDEO * count])


def _numbers(array: np.ndarray, name: str) -> np.ndarray:
    """The array as float32. Raises InputError unless it holds real, finite numbers."""
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {array.dtype}, not numbers")
    with np.errstate(over="ignore"):
        numbers = array.astype(np.float32)
    if not np.isfinite(numbers).all():
        raise InputError(f"{name} holds values that are NaN, infinite or too large")
    return numbers


def _shape(array: np.ndarray) -> str:
    return " × ".join(map(str, array.shape)) or "a single number"
