"""A generator of landmarks, with and without the multi-scale synchrony loss.

    python docs/examples/landmarks.py collect data lips.npz     # lips and jaw of prepared clips
    mssync train syncer --data lips.npz --run runs/lips         # syncers for this kind of motion
    python docs/examples/landmarks.py compare data runs/lips    # the generator twice, and a table

Motion is 56 points of lips, chin and cheeks, 168 numbers a frame, without the head's pose and less their mean: a moving
mouth, whoever's it is. Both generators begin with the same weights and see the same batches. The judge is the sync
meter, with which neither was trained, on people of the `val` split.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.audio import AUDIO_PER_VIDEO, SAMPLES_PER_VIDEO, features
from mssync.data.clips import read_clips
from mssync.data.offsets import OFFSETS
from mssync.meter import MOUTH, POINTS, SKULL, SyncMeter, mouth_motion
from mssync.syncer import MultiScaleSyncLoss, SyncerPyramid

FRAMES, BATCH, RATE = 80, 16, 1e-3
UNIT = 0.02  # distances of the eye corners: about how far a point moves, so that the squared error begins near 1
WEIGHT = 0.25  # of the synchrony loss: both terms then weigh about the same, as they do in the paper
UPPER, LOWER = (3 * MOUTH.index(point) + 1 for point in (13, 14))  # heights of the inner lips


class Talker(nn.Module):
    """Speech (B, 4T, 26) -> motion (B, T, 168): four audio frames a step, a GRU in both directions."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.hear = nn.Sequential(nn.Linear(26 * AUDIO_PER_VIDEO, width), nn.LayerNorm(width), nn.GELU())
        self.think = nn.GRU(width, width, num_layers=2, batch_first=True, bidirectional=True)
        self.move = nn.Linear(2 * width, 3 * len(MOUTH))

    def forward(self, audio: Tensor) -> Tensor:
        heard = self.hear(audio.unflatten(1, (-1, AUDIO_PER_VIDEO)).flatten(2) / 5)
        return UNIT * self.move(self.think(heard)[0])


def read(data: Path, split: str) -> list[tuple[str, str, np.ndarray, np.ndarray]]:
    """Name, speaker, motion (T, 168) and sound (640 T,) of every clip, the sound moved to where it belongs."""
    table = data / OFFSETS
    offsets = json.loads(table.read_text(encoding="utf-8")) if table.exists() else {}
    skull, found = SyncMeter.load().skull.numpy(), []
    for clip in read_clips(data, split):
        late = int(offsets.get(clip.entry.name, 0))
        motion = mouth_motion(clip.landmarks, skull)[max(0, -late) :]
        sound = clip.waveform[SAMPLES_PER_VIDEO * max(0, late) :]
        count = min(len(motion), len(sound) // SAMPLES_PER_VIDEO)
        if count >= FRAMES:
            found.append((clip.entry.name, clip.entry.identity, motion[:count], sound[: SAMPLES_PER_VIDEO * count]))
    return found


def collect(data: Path, output: Path) -> None:
    """Write the file that `mssync train syncer` reads."""
    arrays = {}
    for name, speaker, motion, sound in read(data, "train"):
        arrays |= {f"motion_{name}": motion, f"audio_{name}": sound, f"speaker_{name}": np.array(speaker)}
    np.savez(output, **arrays)


def train(clips: list[tuple[Tensor, Tensor]], loss: MultiScaleSyncLoss | None, steps: int, seed: int) -> Talker:
    """A generator that learned from (motion, audio) of clips by the squared error, and by `loss` where one is given."""
    torch.manual_seed(seed)
    talker, rng = Talker(), np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(talker.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for step in range(steps):
        pieces = []
        for _ in range(BATCH):
            motion, audio = clips[rng.integers(len(clips))]
            start = rng.integers(len(motion) - FRAMES + 1)
            heard = audio[AUDIO_PER_VIDEO * start : AUDIO_PER_VIDEO * (start + FRAMES)]
            pieces.append((motion[start : start + FRAMES], heard))
        real, audio = (torch.stack(x) for x in zip(*pieces, strict=True))
        made = talker(audio)
        total = F.mse_loss(made, real) / UNIT**2
        if loss is not None:
            total = total + WEIGHT * loss(made, audio)[0]  # the one line that your model needs
        optimizer.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(talker.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {float(total.detach()):.3f}", flush=True)
    return talker.eval()


def judge(meter: SyncMeter, motion: np.ndarray, sound: np.ndarray, real: np.ndarray) -> list[float]:
    """By the meter |offset| in frames and confidences at 200 … 1600 ms; and how well the mouth's opening follows."""
    face = np.zeros((len(motion), len(POINTS), 3), np.float32)
    face[:, [POINTS.index(p) for p in SKULL]] = meter.skull.numpy()  # a head that looks straight ahead
    face[:, [POINTS.index(p) for p in MOUTH]] = motion.reshape(len(motion), -1, 3)
    levels = meter.lips(face, sound)
    opening, wanted = (x[:, LOWER] - x[:, UPPER] for x in (motion, real))
    return [abs(levels[0].offset), *(level.confidence for level in levels), float(np.corrcoef(opening, wanted)[0, 1])]


def compare(data: Path, syncers: Path, steps: int, seeds: int) -> None:
    """Train with and without the loss; print what is measured: means over clips, and of the difference its error."""
    clips = [(torch.from_numpy(motion), features(sound)) for _, _, motion, sound in read(data, "train")]
    loss, meter, val = MultiScaleSyncLoss(SyncerPyramid.load(syncers)), SyncMeter.load(), read(data, "val")
    rows = {"real": np.array([judge(meter, motion, sound, motion) for _, _, motion, sound in val])}
    for name, term in {"L2": None, "L2 + MultiScaleSyncLoss": loss}.items():
        found = []
        for seed in range(seeds):
            talker = train(clips, term, steps, seed)
            with torch.inference_mode():
                made = [talker(features(sound)[None])[0].numpy() for _, _, _, sound in val]
            found.append([judge(meter, m, sound, real) for m, (_, _, real, sound) in zip(made, val, strict=True)])
        rows[name] = np.nanmean(found, 0)
    gain = rows["L2 + MultiScaleSyncLoss"] - rows["L2"]
    print("| motion | AV-Off | 200 ms | 400 ms | 800 ms | 1600 ms | opening |\n" + "|---" * 7 + "|")
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:.2f}" for value in np.nanmean(values, 0)) + " |")
    error = np.nanstd(gain, 0, ddof=1) / len(val) ** 0.5
    differences = (f"{value:+.2f} ± {e:.2f}" for value, e in zip(np.nanmean(gain, 0), error, strict=True))
    print("| difference, ± standard error | " + " | ".join(differences) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["collect", "compare"])
    parser.add_argument("data", type=Path, help="folder that `mssync preprocess` made")
    parser.add_argument("file", type=Path, help="collect: the .npz file to write; compare: the folder of the syncers")
    parser.add_argument("--steps", type=int, default=2000, help="of each training of the generator")
    parser.add_argument("--seeds", type=int, default=1, help="train each generator so many times")
    options = parser.parse_args()
    if options.action == "collect":
        collect(options.data, options.file)
    else:
        compare(options.data, options.file, options.steps, options.seeds)


if __name__ == "__main__":
    main()
