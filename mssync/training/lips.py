"""Reading lips from features of speech: a small network, and what several of them say together.

The network sees 0.2 s around a video frame and learns from the clips of `train` in a minute. It is a measure of what
features lay open (`metrics/speech.py`). Several of them, over the features of a teacher, also read recordings that
nobody was filmed for: targets of the speech encoder beside the teacher's own features (`scripts/label_lips.py`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from mssync.data.clips import Clip, read_clips
from mssync.data.offsets import MIN_SPREAD, OFFSETS
from mssync.faces import mouth_opening
from mssync.training.common import cosine_rate
from mssync.video import FPS

WIDTH, TAPS = 128, 5  # of the network: 0.2 M parameters
STEPS, BATCH, FRAMES, RATE = 800, 40, 2 * FPS, 2e-3  # of its training; shorter clips are left out


@dataclass(frozen=True)
class Heard:
    """A clip's features (T, n), and the shape of its lips (T, k), in their own deviations around their own mean."""

    name: str
    identity: str
    features: Tensor
    lips: Tensor


class Reader(nn.Module):
    """Features (B, T, n) -> lips (B, T, k).

    Args:
        average, deviation: of the features, (n,)
        outputs: k
    """

    def __init__(self, average: Tensor, deviation: Tensor, outputs: int) -> None:
        super().__init__()
        self.average, self.deviation = average, deviation
        self.into = nn.Linear(len(average), WIDTH)
        self.around = nn.ModuleList(nn.Conv1d(WIDTH, WIDTH, TAPS, padding=TAPS // 2) for _ in range(2))
        self.out = nn.Linear(WIDTH, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.into((x - self.average) / self.deviation)).transpose(1, 2)
        for layer in self.around:
            x = x + F.gelu(layer(F.dropout(x, 0.2, self.training)))
        return self.out(x.transpose(1, 2))


def heard(
    hear: Callable[[Clip], Tensor], see: Callable[[NDArray[np.float32]], NDArray], data: str | Path, split: str
) -> Iterator[Heard]:
    """The clips of `split` in which a mouth moves, sound and picture brought together by offsets.json where there is
    one.

    Args:
        hear: the features (T, n) of a clip
        see: what is read, (T, k), of landmarks (T, 478, 3)
        data: a prepared folder
    """
    table = Path(data) / OFFSETS
    offsets = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    for clip in read_clips(data, split):
        if len(clip) < FRAMES or mouth_opening(clip.landmarks).std() < MIN_SPREAD:
            continue
        late = int(offsets.get(clip.entry.name, 0))  # frames by which the sound is late
        sound, shown = hear(clip)[max(0, late) :], see(clip.landmarks)[max(0, -late) :]
        count = min(len(sound), len(shown))
        if count >= FRAMES:
            moved = (shown[:count] - shown[:count].mean(0)) / (shown[:count].std(0) + 1e-6)
            yield Heard(clip.entry.name, clip.entry.identity, sound[:count], torch.from_numpy(moved).float())


def fit_reader(clips: list[Heard], seed: int) -> Reader:
    """A reader trained on clips, in eval mode."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    together = torch.cat([clip.features for clip in clips])
    reader = Reader(together.mean(0), together.std(0) + 1e-3, clips[0].lips.shape[1])
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.05)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * cosine_rate(step, STEPS, 50)
        given, wanted = _batch(clips, rng)
        F.mse_loss(reader(given), wanted).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return reader.eval()


def _batch(clips: list[Heard], rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Pieces of clips (B, FRAMES, …), of people drawn by the root of how long they speak."""
    people: dict[str, list[Heard]] = {}
    for clip in clips:
        people.setdefault(clip.identity, []).append(clip)
    lengths = np.sqrt([sum(len(clip.lips) for clip in owned) for owned in people.values()])
    owners = list(people.values())
    given, wanted = [], []
    for person in rng.choice(len(owners), BATCH, p=lengths / lengths.sum()):
        clip = owners[person][rng.integers(len(owners[person]))]
        start = int(rng.integers(len(clip.lips) - FRAMES + 1))
        given.append(clip.features[start : start + FRAMES])
        wanted.append(clip.lips[start : start + FRAMES])
    return torch.stack(given), torch.stack(wanted)
