"""What features of speech are good for: how well a small network reads the opening of the mouth from them.

The network (`training/lips.py`) is the same for all features and small. So it says how much of what lips do is laid
open, not how much is in the sound.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mssync.audio import AUDIO_PER_VIDEO, features
from mssync.data import shards
from mssync.data.clips import Clip
from mssync.errors import InputError
from mssync.faces import mouth_opening
from mssync.metrics.estimates import Estimate, correlation, mean, median, ratio
from mssync.speech import PER_VIDEO, SpeechEncoder, log_mel
from mssync.training.lips import FRAMES, Heard, Reader, fit_reader, heard
from mssync.training.speech import LEADING, read_recordings
from mssync.video import FPS

SEEDS = 2  # trainings whose answers are averaged


def lips(hear: Callable[[Clip], Tensor], data: str | Path, split: str) -> list[tuple[str, float]]:
    """r of the mouth's opening, read from features, with the real one, for each clip of `split`.

    hear: the features (T, n) of a clip; data: a prepared folder, whose offsets.json is respected where it has one.
    """
    train, held_out = (list(heard(hear, _opening, data, name)) for name in ("train", split))
    if not train or not held_out:
        raise InputError(f"{data}: too few clips of {FRAMES / FPS:g} s in which a mouth moves")
    readers = [fit_reader(train, seed) for seed in range(SEEDS)]
    return [(clip.name, correlation(clip.lips[:, 0].numpy(), _read(readers, clip))) for clip in held_out]


def _opening(landmarks: NDArray[np.float32]) -> NDArray[np.float32]:
    return mouth_opening(landmarks)[:, None]


@torch.inference_mode()
def _read(readers: list[Reader], clip: Heard) -> NDArray[np.float32]:
    """The opening (T,) as readers say it together."""
    return torch.stack([reader(clip.features[None])[0, :, 0] for reader in readers]).mean(0).numpy()


# Features


def log_energies(clip: Clip) -> Tensor:
    """What generators hear: `audio.features`."""
    return features(clip.waveform, "logfbank", len(clip)).unflatten(0, (-1, AUDIO_PER_VIDEO)).flatten(1)


def mel_energies(clip: Clip) -> Tensor:
    """What the speech encoder is given."""
    return log_mel(clip.waveform, len(clip)).unflatten(0, (-1, AUDIO_PER_VIDEO)).flatten(1)


def student(encoder: SpeechEncoder, lookahead: int) -> Callable[[Clip], Tensor]:
    """What the speech encoder says, `lookahead` ms after the end of each frame."""
    return lambda clip: encoder.features(clip.waveform, lookahead, len(clip)).unflatten(0, (-1, PER_VIDEO)).flatten(1)


def teacher(labels: str | Path) -> Callable[[Clip], Tensor]:
    """The labels of `scripts/label_speech.py` for the clips' videos."""

    def hear(clip: Clip) -> Tensor:
        start, length = shards.locate(clip.shard, f"{clip.entry.name}.json")
        begin = json.loads(shards.read(clip.shard, start, length))["start"]
        path = Path(labels) / f"{Path(clip.entry.source).stem}.npz"
        if not path.is_file():
            raise InputError(f"{labels}: no labels of {path.stem}; label the videos with scripts/label_speech.py")
        with np.load(path) as file:
            found = torch.from_numpy(file["labels"]).float()
        times = round(begin * FPS) * PER_VIDEO + torch.arange(PER_VIDEO * len(clip))
        return found[times.clamp(max=len(found) - 1)].unflatten(0, (-1, PER_VIDEO)).flatten(1)

    return hear


# Tables


def summary(results: dict[str, list[tuple[str, float]]]) -> dict[str, dict[str, Estimate]]:
    """Mean and median r over clips, by what is heard."""
    found = {}
    for name, rows in results.items():
        values = np.array([r for _, r in rows])
        found[name] = {"mean r of mouth opening ↑": mean(values), "median ↑": median(values)}
    return found


def languages(
    encoder: SpeechEncoder, labels: str | Path, split: str, lookaheads: list[int]
) -> dict[str, dict[str, Estimate]]:
    """Share of the teacher's leading components that the encoder explains, by language and look-ahead."""
    rows: dict[str, dict[int, list[tuple[float, float]]]] = {}
    for recording in read_recordings(labels, split):
        wanted = torch.from_numpy(recording.labels).float()[:, :LEADING]
        for lookahead in lookaheads:
            waveform = recording.waveform.astype(np.float32) / np.float32(32768)
            said = encoder.features(waveform, lookahead, len(wanted))[: len(wanted), :LEADING]
            pair = float((said - wanted).square().sum()), float(wanted.square().sum())
            for group in ("all", recording.language or "clips"):
                rows.setdefault(group, {}).setdefault(lookahead, []).append(pair)
    return {
        group: {f"explained at {lookahead} ms ↑": _rest(pairs) for lookahead, pairs in by.items()}
        for group, by in sorted(rows.items())
    }


def _rest(pairs: list[tuple[float, float]]) -> Estimate:
    """One less a ratio of sums."""
    lost = ratio(*np.array(pairs).T)
    return Estimate(1 - lost.value, 1 - lost.high, 1 - lost.low, lost.clips)
