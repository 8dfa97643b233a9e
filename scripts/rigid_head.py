"""Does speech move the head, or only the mesh that an open mouth pulls at? `python scripts/rigid_head.py DATA`.

DATA: a prepared folder. Syncers of all four levels learn, as the head of the meter does (`mssync.training.meter`), to
match speech and the rigid pose of the head alone: six numbers of the space face-1, fitted to eye corners, nose and
forehead. Prints how far from zero the offsets of real clips and of clips with another's sound are found, on the splits
`val` and `test`, and the p of the difference; below it the same of lips, by the shipped meter. Five minutes on a core.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from scipy.stats import wilcoxon

from mssync.config import MeterTraining
from mssync.data.clips import Clip, read_clips
from mssync.face1 import POSE, clip_motion
from mssync.meter import MEAN_RADIUS, Comparison, SyncMeter, level_sums, sound_features, without_mean
from mssync.pyramid import LEVELS
from mssync.syncer import Syncer
from mssync.training.common import Average, cosine_rate
from mssync.training.meter import WARMUP, Example, Levels, Pieces, set_statistics

SETTINGS = MeterTraining(steps=300)  # more learn the people by heart
WIDTH, EMBEDDING, TAPS, SHORTEST = 64, 64, 3, 70
MIRRORED = np.array([1, -1, -1, -1, 1, 1], np.float32)  # of a pose: yaw, roll and place go to the other side

Compare = Callable[[Clip, NDArray[np.float32]], Comparison]


def main(data: str) -> None:
    clips = [example(clip) for clip in usable(data, "train")]
    syncers = trained(clips)

    def pose(clip: Clip, sound: NDArray[np.float32]) -> Comparison:
        seen = example(clip, sound)
        sums = level_sums(syncers, seen.motion, seen.sound, np.ones(len(seen), bool))
        return Comparison({"lips": [level for level in sums if level.count.any()]})

    meter = SyncMeter.load()

    def lips(clip: Clip, sound: NDArray[np.float32]) -> Comparison:
        return meter.compare(clip.landmarks, sound, parts=("lips",))

    for name, compare in (("rigid pose", pose), ("lips", lips)):
        for split in ("val", "test"):
            told(f"{name}, {split}", usable(data, split), compare)


def usable(data: str, split: str) -> list[Clip]:
    """Clips that are long enough, in which the head moves in the picture."""
    return [clip for clip in read_clips(data, split) if len(clip) >= SHORTEST and not clip.entry.stabilised]


def example(clip: Clip, sound: NDArray[np.float32] | None = None) -> Example:
    motion = without_mean(clip_motion(clip.landmarks, TAPS)[0][:, POSE], MEAN_RADIUS)
    heard = sound_features(clip.waveform if sound is None else sound, len(clip))
    return Example(clip.entry.name, clip.entry.identity, motion, motion * MIRRORED, heard)


def trained(clips: list[Example]) -> list[Syncer]:
    torch.manual_seed(0)
    size = clips[0].motion.shape[1]
    levels = Levels([Syncer(size, WIDTH, EMBEDDING, SETTINGS.dropout) for _ in range(LEVELS)])
    set_statistics(levels, clips)
    batches, average = Pieces(clips, SETTINGS, seed=1), Average(levels, 0.995)
    optimizer = torch.optim.AdamW(levels.parameters(), SETTINGS.lr, weight_decay=SETTINGS.weight_decay)
    for step in track(range(SETTINGS.steps), "training"):
        torch.manual_seed(step)
        optimizer.param_groups[0]["lr"] = SETTINGS.lr * cosine_rate(step, SETTINGS.steps, WARMUP)
        loss, _ = levels(*batches(step), SETTINGS, "head")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(levels, step)
    return list(average.model.eval().syncers)  # type: ignore[arg-type]


def told(title: str, clips: list[Clip], compare: Compare) -> None:
    """Print |offset| by level of clips with their own and with the next clip's sound."""
    own: list[dict[int, int]] = []
    others: list[dict[int, int]] = []
    for clip, other in zip(clips, [*clips[1:], clips[0]], strict=True):
        for found, sound in ((own, clip.waveform), (others, other.waveform)):
            found.append({score.level: abs(score.offset) for score in compare(clip, sound).lips})
    for level in range(1, LEVELS + 1):
        pairs = [(a[level], b[level]) for a, b in zip(own, others, strict=True) if level in a and level in b]
        real, strange = np.array(pairs).T
        p = wilcoxon(real, strange, alternative="less").pvalue
        print(
            f"{title}, {200 * 2 ** (level - 1)} ms: {len(pairs)} clips, |offset| {real.mean():.2f}, "
            f"with another's sound {strange.mean():.2f}, p {p:.4f}"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
