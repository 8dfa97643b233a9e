"""By how much the sound of prepared clips is late, for data whose streams were cut or encoded apart.

The sync meter measures a clip. Where it cannot tell, mouths open when speech gets loud: a rough second measure is the
lag at which the opening of the mouth correlates most with the loudness, of a clip, steadied by the clips of its corpus.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from mssync.audio import AUDIO_PER_VIDEO, features
from mssync.data.clips import Clip
from mssync.errors import written_whole
from mssync.faces import mouth_opening
from mssync.meter import FRAME_MS, SyncMeter
from mssync.video import FPS

OFFSETS = "offsets.json"  # by clip name, by how many video frames its sound is late; clips in time are left out
MAX_LAG = 10  # frames
MIN_PEAK = 0.15  # correlation below which a clip is left as it is
CORPUS_FRAMES = 150  # the corpus' curve counts like so many frames of the clip
MIN_SPREAD = 0.01  # standard deviation of the mouth's opening below which nobody speaks
QUIETEST = -12.0  # log energy: what is less is silence


def estimate(folder: str | Path, clips: list[Clip]) -> dict[str, int]:
    """Measure and write offsets.json. Returns what was written."""
    meter = SyncMeter.load()
    offsets: dict[str, int] = {}
    curves: dict[str, list[tuple[Clip, np.ndarray]]] = {}
    for clip in clips:
        audio = _loudness_features(clip)
        loudness = audio.clip(QUIETEST).mean(1).reshape(-1, AUDIO_PER_VIDEO).mean(1)
        mouth = mouth_opening(clip.landmarks[: len(loudness)])
        if len(mouth) > 2 * FPS and mouth.std() > MIN_SPREAD:
            curves.setdefault(clip.entry.corpus, []).append((clip, lag_curve(mouth, loudness)))
    for members in curves.values():
        corpus = np.average([c for _, c in members], axis=0, weights=[len(clip) for clip, _ in members])
        for clip, curve in members:
            found = meter.offset(clip.landmarks, clip.waveform)
            if found.sure:
                late = -round(found.milliseconds / FRAME_MS)
                offsets |= {clip.entry.name: late} if late else {}
                continue
            steadied = (len(clip) * curve + CORPUS_FRAMES * corpus) / (len(clip) + CORPUS_FRAMES)
            late = int(steadied.argmax()) - MAX_LAG
            if late and steadied.max() > MIN_PEAK:
                offsets[clip.entry.name] = late
    with written_whole(Path(folder) / OFFSETS, ".json") as temporary:
        temporary.write_text(json.dumps(offsets, indent=1, sort_keys=True), encoding="utf-8")
    return offsets


def _loudness_features(clip: Clip) -> np.ndarray:
    """(4T, 26) log energies of a clip's sound, whatever kind of features it was prepared with."""
    return features(torch.from_numpy(clip.waveform), "logfbank", len(clip)).numpy()


def lag_curve(mouth: np.ndarray, loudness: np.ndarray) -> np.ndarray:
    """Correlation of mouth[t] with loudness[t + lag], lag = -MAX_LAG … MAX_LAG; both (T,), slow changes removed."""
    a, b = _quick(mouth), _quick(loudness)
    n = len(a)
    lags = range(-MAX_LAG, MAX_LAG + 1)
    return np.array([(a[max(0, -k) : n - max(0, k)] * b[max(0, k) : n - max(0, -k)]).mean() for k in lags])


def _quick(values: np.ndarray) -> np.ndarray:
    """What changes within a second, standardised."""
    half = FPS // 2
    slow = np.convolve(np.pad(values, half, "edge"), np.ones(2 * half + 1) / (2 * half + 1), "valid")
    quick = values - slow
    return (quick - quick.mean()) / (quick.std() + 1e-6)
