"""Sound as a sync meter meets it: under music, under another voice, from a telephone."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from mssync.audio import SAMPLE_RATE

DECIBELS = 10.0  # by which music and other voices are quieter than the speaker
TELEPHONE = 300.0, 3400.0  # Hz: the band of G.712
MU = 255.0  # of a telephone's companding, G.711
CHORDS = (0, 4, 7), (-5, -1, 2), (-3, 0, 4), (-7, -3, 0)  # semitones from the key: I, V, vi, IV
HARMONICS = 6

Sound = NDArray[np.float32]


def under(waveform: Sound, other: Sound, decibels: float = DECIBELS) -> Sound:
    """A recording (n,) with another (any length, repeated) so many dB below it, by root mean square."""
    second = np.resize(other, len(waveform))
    level, own = (float(np.sqrt(np.square(x).mean())) for x in (waveform, second))
    return (waveform + second * (level * 10 ** (-decibels / 20) / max(own, 1e-9))).astype(np.float32)


def telephone(waveform: Sound) -> Sound:
    """A recording (n,) at 16 kHz as an 8 kHz telephone carries it: its band, and steps of 8 bits (µ-law)."""
    spectrum = torch.fft.rfft(torch.from_numpy(np.ascontiguousarray(waveform)))
    hz = torch.linspace(0, SAMPLE_RATE / 2, len(spectrum))
    low, high = TELEPHONE
    band = 1 / (1 + (low / (hz + 1)) ** 8) / (1 + (hz / high) ** 32)
    narrow = torch.fft.irfft(spectrum * band, len(waveform)).numpy()
    loudest = float(np.abs(narrow).max()) + 1e-9
    folded = np.sign(narrow) * np.log1p(MU * np.abs(narrow) / loudest) / np.log1p(MU)
    steps = np.round(folded * 127) / 127
    return (np.sign(steps) * np.expm1(np.abs(steps) * np.log1p(MU)) / MU * loudest).astype(np.float32)


def music(samples: int, rng: np.random.Generator) -> Sound:
    """A song without words (samples,): four chords over and over, a bass, a drum on every beat, a hi-hat between."""
    beat = int(SAMPLE_RATE * 60 / rng.uniform(90, 130))
    key = 220 * 2 ** (rng.integers(-4, 5) / 12)
    song = np.zeros(samples + 4 * beat, np.float32)
    for n, start in enumerate(range(0, samples, beat)):
        chord = CHORDS[n // 4 % len(CHORDS)]
        if n % 4 == 0:
            for note in chord:
                song[start : start + 4 * beat] += 0.25 * _tone(key * 2 ** (note / 12), 4 * beat, 1.5)
        song[start : start + beat] += 0.5 * _tone(key / 2 * 2 ** (chord[0] / 12), beat, 5.0)
        song[start : start + beat] += 0.8 * _drum(beat)
        half = start + beat // 2
        hiss = rng.standard_normal(beat // 4).astype(np.float32) * _fading(beat // 4, 60.0)
        song[half : half + len(hiss)] += 0.2 * hiss
    return song[:samples]


def _tone(hz: float, samples: int, decay: float) -> Sound:
    """A plucked string: harmonics that die away, the higher the sooner. decay: 1 / s."""
    turns = 2 * np.pi * hz * np.arange(samples) / SAMPLE_RATE
    harmonics = (np.sin(k * turns) * _fading(samples, k * decay) / k for k in range(1, HARMONICS + 1))
    return sum(harmonics, np.zeros(samples)).astype(np.float32)


def _drum(samples: int) -> Sound:
    seconds = np.arange(samples) / SAMPLE_RATE
    return (np.sin(2 * np.pi * (50 * seconds + 5 * (1 - np.exp(-20 * seconds)))) * _fading(samples, 12.0)).astype("f4")


def _fading(samples: int, decay: float) -> NDArray[np.float64]:
    return np.exp(-decay * np.arange(samples) / SAMPLE_RATE)
