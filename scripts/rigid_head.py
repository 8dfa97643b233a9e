"""Does speech move the head, or only the mesh that an open mouth pulls at? `python scripts/rigid_head.py DATA`.

DATA: a prepared folder. Syncers of all four levels learn, as the head of the meter does (`mssync.training.meter`), to
match speech and the rigid pose of the head alone: six numbers of the space face-1, fitted to eye corners, nose and
forehead. Prints how far from zero the offsets of real clips and of clips with another's sound are found, on the splits
`val` and `test`, and the p of the difference; below it the same of lips, by the shipped meter. A minute on a core.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import wilcoxon

from mssync.config import load_config
from mssync.data.clips import Clip, read_clips
from mssync.face1 import POSE, clip_motion
from mssync.meter import MEAN_RADIUS, Comparison, SyncMeter, level_sums, sound_features, without_mean
from mssync.pyramid import LEVELS
from mssync.syncer import Syncer
from mssync.training.common import launched
from mssync.training.meter import Example, Stage, fit_stage

STEPS = 300  # more learn the people by heart
SMALL = ["meter.head_width=64", "meter.embedding=64", "meter_training.average=0.995"]
TAPS, SHORTEST = 3, 70
MIRRORED = np.array([1, -1, -1, -1, 1, 1], np.float32)  # of a pose: yaw, roll and place go to the other side

Compare = Callable[[Clip, NDArray[np.float32]], Comparison]


def main(data: str) -> None:
    syncers, meter = trained([example(clip) for clip in usable(data, "train")]), SyncMeter.load()

    def pose(clip: Clip, sound: NDArray[np.float32]) -> Comparison:
        seen = example(clip, sound)
        sums = level_sums(syncers, seen.motion, seen.sound, np.ones(len(seen), bool))
        return Comparison({"lips": [level for level in sums if level.count.any()]})

    def lips(clip: Clip, sound: NDArray[np.float32]) -> Comparison:
        return meter.compare(clip.landmarks, sound, parts=("lips",))

    for split in ("val", "test"):
        clips = usable(data, split)
        told(f"rigid pose, {split}", clips, pose)
        told(f"lips, {split}", clips, lips)


def usable(data: str, split: str) -> list[Clip]:
    """Clips that are long enough, in which the head moves in the picture."""
    return [clip for clip in read_clips(data, split) if len(clip) >= SHORTEST and not clip.entry.stabilised]


def example(clip: Clip, sound: NDArray[np.float32] | None = None) -> Example:
    motion = without_mean(clip_motion(clip.landmarks, TAPS)[0][:, POSE], MEAN_RADIUS)
    heard = sound_features(clip.waveform if sound is None else sound, len(clip))
    return Example(clip.entry.name, clip.entry.identity, motion, motion * MIRRORED, heard)


def trained(clips: list[Example]) -> list[Syncer]:
    with tempfile.TemporaryDirectory() as run:
        stage = Stage("rigid", "head", clips, [], LEVELS, STEPS)
        return fit_stage(stage, load_config("compact", SMALL), launched(), run, math.inf)


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
