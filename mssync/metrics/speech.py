"""What features of speech are good for: how well a small network reads the opening of the mouth from them.

The network is the same for all features, sees 0.2 s around a video frame, and learns for a minute from the clips of
`train`. So it says how much of what lips do is laid open, not how much is in the sound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, features
from mssync.data import shards
from mssync.data.clips import Clip, read_clips
from mssync.data.offsets import MIN_SPREAD, OFFSETS
from mssync.errors import InputError
from mssync.faces import mouth_opening
from mssync.metrics.estimates import Estimate, correlation, mean, median, ratio
from mssync.speech import PER_VIDEO, SpeechEncoder, log_mel
from mssync.training.common import cosine_rate
from mssync.training.speech import LEADING, read_recordings
from mssync.video import FPS

WIDTH, TAPS = 128, 5  # of the network: 0.2 M parameters
STEPS, BATCH, FRAMES, RATE = 800, 40, 2 * FPS, 2e-3  # of its training; shorter clips are left out
SEEDS = 2  # trainings whose answers are averaged


@dataclass(frozen=True)
class Heard:
    """A clip's features (T, n), and how far its mouth is open (T,), in its own deviations around its own mean."""

    name: str
    identity: str
    features: Tensor
    opening: Tensor


class Reader(nn.Module):
    """Features (B, T, n) -> opening of the mouth (B, T).

    Args:
        average, deviation: of the features, (n,)
    """

    def __init__(self, average: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.average, self.deviation = average, deviation
        self.into = nn.Linear(len(average), WIDTH)
        self.around = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, TAPS, padding=TAPS // 2) for _ in range(2))
        self.out = nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.into((x - self.average) / self.deviation)).transpose(1, 2)
        for layer in self.around:
            x = x + F.gelu(layer(F.dropout(x, 0.2, self.training)))
        return self.out(x.transpose(1, 2))[..., 0]


def lips(hear: Callable[[Clip], Tensor], data: str | Path, split: str) -> list[tuple[str, float]]:
    """r of the mouth's opening, read from features, with the real one, for each clip of `split`.

    hear: the features (T, n) of a clip; data: a prepared folder, whose offsets.json is respected where it has one.
    """
    train, held_out = (list(_heard(hear, data, name)) for name in ("train", split))
    if not train or not held_out:
        raise InputError(f"{data}: too few clips of {FRAMES / FPS:g} s in which a mouth moves")
    answers = [_read(train, held_out, seed) for seed in range(SEEDS)]
    read = [torch.stack(found).mean(0).numpy() for found in zip(*answers, strict=True)]
    return [(clip.name, correlation(clip.opening.numpy(), said)) for clip, said in zip(held_out, read, strict=True)]


def _heard(hear: Callable[[Clip], Tensor], data: str | Path, split: str) -> Iterator[Heard]:
    table = Path(data) / OFFSETS
    offsets = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    for clip in read_clips(data, split):
        opening = mouth_opening(clip.landmarks)
        if len(clip) < FRAMES or opening.std() < MIN_SPREAD:
            continue
        late = int(offsets.get(clip.entry.name, 0))  # frames by which the sound is late
        sound, shown = hear(clip)[max(0, late) :], opening[max(0, -late) :]
        count = min(len(sound), len(shown))
        if count >= FRAMES:
            moved = (shown[:count] - shown[:count].mean()) / (shown[:count].std() + 1e-6)
            yield Heard(clip.entry.name, clip.entry.identity, sound[:count], torch.from_numpy(moved).float())


def _read(train: list[Heard], held_out: list[Heard], seed: int) -> list[Tensor]:
    """Train a reader and let it read the held-out clips."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    together = torch.cat([clip.features for clip in train])
    reader = Reader(together.mean(0), together.std(0) + 1e-3)
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.05)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * cosine_rate(step, STEPS, 50)
        given, wanted = _batch(train, rng)
        F.mse_loss(reader(given), wanted).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    reader.eval()
    with torch.inference_mode():
        return [reader(clip.features[None])[0] for clip in held_out]


def _batch(clips: list[Heard], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pieces of clips (B, FRAMES, …), of people drawn by the root of how long they speak."""
    people: dict[str, list[Heard]] = {}
    for clip in clips:
        people.setdefault(clip.identity, []).append(clip)
    lengths = np.sqrt([sum(len(clip.opening) for clip in owned) for owned in people.values()])
    owners = list(people.values())
    given, wanted = [], []
    for person in rng.choice(len(owners), BATCH, p=lengths / lengths.sum()):
        clip = owners[person][rng.integers(len(owners[person]))]
        start = int(rng.integers(len(clip.opening) - FRAMES + 1))
        given.append(clip.features[start : start + FRAMES])
        wanted.append(clip.opening[start : start + FRAMES])
    return torch.stack(given), torch.stack(wanted)


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
            waveform = recording.waveform.astype(np.float32) / 32768
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
