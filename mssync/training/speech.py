"""Training of the speech encoder on the labels of `scripts/label_speech.py` and `scripts/label_lips.py`: what a teacher
hears in clean sound, the network is to hear through noise, rooms, microphones and telephones."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.audio import SAMPLE_RATE
from mssync.config import Config, SpeechTraining
from mssync.errors import InputError
from mssync.precision import choose, drawing_precision
from mssync.speech import (
    BANDS,
    COMPONENTS,
    FEATURES,
    FRAME,
    FRAME_MS,
    HIGHEST,
    LIPS,
    LIVE_LOOKAHEAD,
    LOWEST,
    Block,
    Rows,
    SpeechEncoder,
)
from mssync.training.common import Run, fit, launched

INDEX, BASIS = "index.csv", "basis.npz"
SEEN, SEEN_SECONDS = 160, 8.0  # recordings of `val`, and how much of each, that are measured
LEADING = 32  # components that figures are about: those that the lips need (16 tell no more of them than log-mel)
LOOKAHEADS = (0, 160, 640)  # ms, that are measured
ROOM = 0.4  # seconds that a room rings for, at most; kept of its answer
QUIET = 1e-4  # root mean square of a piece below which it is silence


@dataclass(frozen=True)
class Recording:
    """A labelled recording. waveform: (n,) int16 at 16 kHz; labels: (n // 320, 104) float16."""

    name: str
    speaker: str
    language: str
    corpus: str
    waveform: NDArray[np.int16]
    labels: NDArray[np.float16]


def read_recordings(folder: str | Path, split: str) -> list[Recording]:
    """The labelled recordings of a split, in memory: about 150 MB an hour.

    Raises InputError when the folder holds no labels, or none of that split.
    """
    folder = Path(folder)
    if not (folder / INDEX).is_file() or not (folder / BASIS).is_file():
        raise InputError(f"{folder}: no {INDEX} and {BASIS} in it; label speech with scripts/label_speech.py")
    found = []
    with (folder / INDEX).open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["split"] == split:
                with np.load(folder / f"{row['name']}.npz") as arrays:
                    if "lips" not in arrays:
                        raise InputError(f"{folder}: {row['name']} has no lips; run scripts/label_lips.py")
                    waveform, labels = arrays["waveform"], np.concatenate([arrays["labels"], arrays["lips"]], 1)
                found.append(Recording(row["name"], row["speaker"], row["language"], row["corpus"], waveform, labels))
    if not found:
        raise InputError(f"{folder}: no recordings of the split {split!r} in {INDEX}")
    return found


class Pieces:
    """Pieces of recordings with their labels, disturbed; sample n is a function of (seed, n) alone.

    Speakers are drawn by the root of how long they speak: many voices, short ones not too often.

    Args:
        seconds: of a piece; what is shorter is filled up by the same speaker
    """

    def __init__(self, recordings: list[Recording], settings: SpeechTraining) -> None:
        self.settings, self.frames = settings, round(settings.seconds * SAMPLE_RATE / FRAME)
        self.speakers: dict[str, list[Recording]] = {}
        for recording in recordings:
            if len(recording.labels) > 1:
                self.speakers.setdefault(recording.speaker, []).append(recording)
        self.names = sorted(self.speakers)
        weights = np.sqrt([sum(len(r.labels) for r in self.speakers[name]) for name in self.names])
        self.weights = weights / weights.sum()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Sound (B, n) float32 and labels (B, T, 104) of a step."""
        numbers = range(step * self.settings.batch, (step + 1) * self.settings.batch)
        pairs = [self.sample(n) for n in numbers]
        sounds, labels = (torch.from_numpy(np.stack(x)) for x in zip(*pairs, strict=True))
        return sounds, labels

    def sample(self, n: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """A disturbed piece (n,), and its labels (T, 104)."""
        rng = np.random.default_rng((self.settings.seed, n))
        speed = 1 + self.settings.speed * rng.uniform(-1, 1) * (rng.random() < 0.6)
        sound, labels = self._piece(rng, speed)
        other = self._piece(rng, 1.0)[0] if rng.random() < self.settings.voices else None
        return disturbed(sound, other, self.settings, rng), labels

    def _piece(self, rng: np.random.Generator, speed: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Sound (n,) of one speaker, `speed` times as quick, and its labels (T, 104)."""
        owned = self.speakers[self.names[rng.choice(len(self.names), p=self.weights)]]
        lengths = np.array([len(r.labels) for r in owned], float)
        sounds: list[NDArray[np.float32]] = []
        labels: list[NDArray[np.float32]] = []
        missing = self.frames
        while missing > 0:
            recording = owned[rng.choice(len(owned), p=lengths / lengths.sum())]
            count = min(missing, max(1, int((len(recording.labels) - 1) / speed)))
            room = len(recording.labels) - 1 - speed * (count - 1)
            start = int(rng.integers(max(1, int(room) + 1)))
            times = start + speed * np.arange(count)
            labels.append(_at(recording.labels, times))
            moments = FRAME * start + speed * np.arange(FRAME * count)
            sounds.append(_at(recording.waveform, moments) / np.float32(32768))
            missing -= count
        return np.concatenate(sounds), np.concatenate(labels)


def _at(values: NDArray, times: NDArray[np.floating]) -> NDArray[np.float32]:
    """Values (n, …) at fractional indices, linear between them."""
    if (times[-1] - times[0]) == len(times) - 1:
        return values[int(times[0]) : int(times[0]) + len(times)].astype(np.float32)
    low = np.minimum(times.astype(np.int64), len(values) - 2)
    share = (times - low).astype(np.float32).reshape(-1, *[1] * (values.ndim - 1))
    return values[low] * (1 - share) + values[low + 1] * share


# Disturbances


def disturbed(
    sound: NDArray[np.float32], other: NDArray[np.float32] | None, settings: SpeechTraining, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A piece (n,) as another microphone would hear it in another place: room, other voices, noise, colour and band of
    the microphone, level, a telephone's steps, clipping. other: who speaks at the same time."""
    level = float(np.sqrt(np.square(sound).mean()))
    if level < QUIET:
        return sound
    size = len(sound) + int(ROOM * SAMPLE_RATE)
    spectrum = _rfft(sound, size)
    if rng.random() < settings.rooms:
        spectrum = spectrum * _rfft(room(rng), size)
    if other is not None:
        spectrum = spectrum + _rfft(other, size) * _share(level, other, rng.uniform(5, 25))
    hz = np.linspace(0, SAMPLE_RATE / 2, len(spectrum), dtype=np.float32)
    if rng.random() < settings.noise:
        spectrum = spectrum + _noise(hz, level * 10 ** (-rng.uniform(0, 30) / 20), rng)
    sound = _irfft(spectrum * _colour(hz, settings, rng), size)[: len(sound)]
    now = float(np.sqrt(np.square(sound).mean())) + 1e-9
    sound = sound * np.float32(10 ** (rng.uniform(-45, -12) / 20) / now)
    if rng.random() < settings.clipping:
        most = np.float32(np.quantile(np.abs(sound[::16]), rng.uniform(0.95, 0.999)))
        sound = sound.clip(-most, most)
    return sound


def room(rng: np.random.Generator) -> NDArray[np.float32]:
    """The answer of a room to an impulse (n,): the sound itself, then noise that dies away in 0.1 to 0.6 s (60 dB)."""
    times = np.arange(int(ROOM * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    decay = np.float32(-6.9 / rng.uniform(0.1, 0.6))
    answer = rng.standard_normal(len(times), np.float32) * np.exp(decay * times)
    answer *= np.float32(10 ** (rng.uniform(-15, 5) / 20)) / np.sqrt(np.square(answer).sum())
    answer[: int(0.001 * SAMPLE_RATE)] = 0
    answer[0] = 1
    return answer


def _share(level: float, other: NDArray[np.float32], decibels: float) -> np.float32:
    """What `other` is to be multiplied by, to be so many dB below `level`."""
    return np.float32(level * 10 ** (-decibels / 20) / (np.sqrt(np.square(other).mean()) + 1e-6))


def _noise(hz: NDArray[np.float32], level: float, rng: np.random.Generator) -> NDArray[np.complex64]:
    """A spectrum of noise whose energy falls with frequency, by up to 1 / f². level: its root mean square in time."""
    colour = (1 + hz / 100) ** np.float32(-rng.uniform(0, 1))
    parts = rng.standard_normal((2, len(hz)), np.float32) * colour
    spectrum = (parts[0] + 1j * parts[1]).astype(np.complex64)
    size = 2 * (len(hz) - 1)
    return spectrum * np.float32(level * size / np.sqrt(2 * np.square(parts).sum()))  # Parseval


def _colour(hz: NDArray[np.float32], settings: SpeechTraining, rng: np.random.Generator) -> NDArray[np.float32]:
    """Gains of a microphone, a few dB up and down over the octaves, and of a band: a telephone's, or a codec's."""
    octaves = np.log2(1 + hz / 60)
    knots = np.cumsum(rng.normal(0, settings.tilt, 8))
    gains = 10 ** ((np.interp(octaves, np.arange(8), knots)).astype(np.float32) / 20)
    kind = rng.random()
    if kind < settings.bands / 2:
        low, high = rng.uniform(100, 400), rng.uniform(3000, 4000)
        gains = gains / (1 + (low / (hz + 1)) ** 4) / (1 + (hz / high) ** 16)
    elif kind < settings.bands:
        gains = gains / (1 + (hz / rng.uniform(3500, 7500)) ** 24)
    return gains.astype(np.float32)


def _rfft(sound: NDArray[np.float32], size: int) -> NDArray[np.complex64]:
    return torch.fft.rfft(torch.from_numpy(sound), size).numpy()


def _irfft(spectrum: NDArray[np.complex64], size: int) -> NDArray[np.float32]:
    return torch.fft.irfft(torch.from_numpy(spectrum), size).numpy()


def masked(rows: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Rows (B, m, 64) of which some bands, and moments of up to 0.15 s, are missing; each with this probability."""
    rows = rows.clone()
    for sample in rows:
        if rng.random() < probability:
            low = int(rng.integers(sample.shape[1]))
            sample[:, low : low + int(rng.integers(2, 10))] = 0
        if rng.random() < probability:
            start = int(rng.integers(len(sample)))
            sample[start : start + int(rng.integers(2, 16))] = 0
    return rows


def stretched(rows: Tensor, settings: SpeechTraining, rng: np.random.Generator) -> Tensor:
    """Rows (B, m, 64) as of other throats, longer or shorter by up to `settings.throats`: spectra stretched in Hz."""
    low, high = (2595 * np.log10(1 + hz / 700) for hz in (LOWEST, HIGHEST))
    mel = np.linspace(low, high, BANDS + 2)[1:-1]
    factors = 1 + settings.throats * rng.uniform(-1, 1, (len(rows), 1))
    hz = np.minimum(factors * 700 * (10 ** (mel / 2595) - 1), HIGHEST)
    places = np.interp(2595 * np.log10(1 + hz / 700), mel, np.arange(BANDS))
    below = places.astype(np.int64).clip(max=BANDS - 2)
    share = torch.from_numpy((places - below).astype(np.float32))[:, None]
    index = torch.from_numpy(below)[:, None].expand_as(rows)
    return torch.lerp(rows.gather(2, index), rows.gather(2, index + 1), share)


# Training


def train(config: Config, data: str | Path, run_dir: str | Path, max_minutes: float | None = None) -> Path:
    """Train (or go on training) on a folder of `scripts/label_speech.py`; returns the model file."""
    settings = config.speech_training
    run = Run(run_dir, "speech", max_minutes, launched())
    pieces, seen = Pieces(read_recordings(data, "train"), settings), read_recordings(data, "val")
    weights = importance(Path(data), settings)
    torch.manual_seed(settings.seed)
    encoder = SpeechEncoder(**vars(config.speech))
    for block in encoder.blocks:
        assert isinstance(block, Block)
        block.dropout = settings.dropout
    optimizer = torch.optim.AdamW(encoder.parameters(), settings.lr, weight_decay=settings.weight_decay)
    precision = choose(None, torch.device("cpu"))

    def losses(step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((settings.seed + 1, step))
        torch.manual_seed(step)  # what is dropped is the same in a run that was stopped and goes on
        sounds, labels = pieces.batch(step)
        rows = masked(stretched(Rows(len(sounds)).push(sounds), settings, rng), settings.mask, rng)
        with drawing_precision(rows, precision):
            said = encoder(rows, lookahead(rng, encoder.longest))
        return {"error": ((said.float() - labels).square() * weights).mean()}

    about = ("speech", encoder.config)
    return fit(run, encoder, optimizer, settings, losses, lambda network: evaluate(network, seen, weights), about)


def importance(folder: Path, settings: SpeechTraining) -> Tensor:
    """Weights (104,) of errors: components by their deviation, all columns of the lips together by a share of all."""
    with np.load(folder / BASIS) as file:
        components = torch.from_numpy(file["scale"] / file["scale"].sum())
    lips = torch.full((LIPS,), 1 / LIPS, dtype=components.dtype)
    return FEATURES * torch.cat([(1 - settings.lips) * components, settings.lips * lips])


def lookahead(rng: np.random.Generator, longest: int) -> int:
    """The look-ahead of a batch, ms: those that will be used the most, nearly as often the longest, any other."""
    kind = rng.random()
    if kind < 0.25:
        return min(LIVE_LOOKAHEAD, longest)
    return longest if kind < 0.45 else FRAME_MS * int(rng.integers(longest // FRAME_MS + 1))


@torch.inference_mode()
def evaluate(encoder: nn.Module, recordings: list[Recording], weights: Tensor) -> tuple[dict[str, float], Tensor]:
    """Share of the teacher's variance that is explained at several look-aheads, of its leading components and of lips,
    and a sheet: teacher, student."""
    frames = round(SEEN_SECONDS * SAMPLE_RATE / FRAME)
    chosen = [r for r in recordings if len(r.labels) >= frames]
    chosen = chosen[:: max(1, len(chosen) // SEEN)]
    if not chosen:
        raise InputError(f"no recording of `val` lasts for {SEEN_SECONDS:g} s")
    sounds = torch.from_numpy(np.stack([r.waveform[: FRAME * frames] for r in chosen])).float() / 32768
    labels = torch.from_numpy(np.stack([r.labels[:frames] for r in chosen])).float()
    rows = Rows(len(sounds)).push(sounds)
    values, sheet = {}, []
    for ahead in LOOKAHEADS:
        said = torch.cat([encoder(part, ahead) for part in rows.split(16)])
        values[f"explained_{ahead}"] = explained(said, labels)
        values[f"lips_{ahead}"] = explained(said[..., COMPONENTS:], labels[..., COMPONENTS:])
        sheet.append(said[0])
    values["error"] = float(((said - labels).square() * weights).mean())
    shown = torch.cat([labels[0], *sheet], 1).unflatten(1, (-1, FEATURES))[..., :LEADING].flatten(1).T
    picture = (shown / 6 + 0.5).repeat_interleave(6, 0).repeat_interleave(3, 1)
    return values, picture[None].expand(3, -1, -1)


def explained(said: Tensor, labels: Tensor) -> float:
    """R² of the leading components of features (…, n), all of them and their frames together."""
    error = (said - labels)[..., :LEADING].square().sum()
    return 1 - float(error / labels[..., :LEADING].square().sum())
