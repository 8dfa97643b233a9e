"""The paper's ablations, trained and scored by one command: `mssync reproduce table4` and `mssync reproduce fig6`.

Each variant is a file in `configs/ablations/`. All are trained for the same number of steps on the same batches, at
reduced size where the machine is small; what is compared is what differs in the file. A stopped run goes on.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mssync.config import load_config
from mssync.data.sequences import generator_sequences, listening, read_sequences
from mssync.errors import written_whole
from mssync.metrics import synchrony
from mssync.speech import FILE, FILE_AHEAD
from mssync.syncer import SyncerPyramid
from mssync.training.generator import train
from mssync.weights import load_model

FOLDER = "ablations"
TABLE4 = ("rec1_adv0", "rec1_adv0.01", "rec1_adv1", "rec0.01_adv1", "rec1_adv0.1")  # in the order of the paper
FULL, SINGLE = "rec1_adv0.1", "single_scale"
OTHERS = (SINGLE, "no_sync", "no_masks", "mean_levels")
MIN_FRAMES = 75  # of a clip that is scored: three seconds bear a curve at the levels up to 800 ms


@dataclass(frozen=True)
class Variant:
    """A trained variant: its name, steps, and lines of `metrics.synchrony.lines`; real_distance: mean over clips of the
    root mean square distance between generated and real motion, after the first frame is taken off both."""

    name: str
    steps: int
    lines: list[synchrony.Line]
    real_distance: float
    speed: float


class Study:
    """Variants trained on one prepared folder, under the same frozen syncers, scored on its `val` split.

    data: with motion (`mssync extract`); syncers: folder of syncer1 … syncer4.safetensors; runs: where the runs lie.
    overrides: of every variant's configuration, such as generator_training.batch=12.
    """

    def __init__(
        self, data: Path, syncers: Path, runs: Path, split: str = "val", overrides: Sequence[str] = ()
    ) -> None:
        self.data, self.syncers, self.runs, self.overrides = data, syncers, runs, list(overrides)
        self.judges = SyncerPyramid.load(syncers)
        self.split, self.clips = split, read_sequences(data, split, MIN_FRAMES)
        self.judges.check_space(self.clips[0].space)

    def variant(self, name: str, steps: int) -> Variant:
        """Train a variant up to `steps`, where it is not there yet, and score it."""
        fixed = ["iterations=" + str(steps), "decay_iterations=0", "max_minutes=null"]
        changes = [*self.overrides, *(f"generator_training.{change}" for change in fixed)]
        config = load_config(f"{FOLDER}/{name}", changes)
        path = train(config, self.data, self.syncers, self.runs / name)
        generator: Any = load_model(path, kinds=("generator",))[0]
        hear = listening(generator.config, path.parent / FILE, (FILE_AHEAD,))
        clips = self.clips
        if hear is not None:
            clips = generator_sequences(generator.config, hear, self.data, self.split, MIN_FRAMES)
        apart, speeds = [], []
        for clip in clips:
            made = synchrony.roll_out(generator, clip)
            apart.append(float(((made - made[0]) - (clip.motion - clip.motion[0])).square().mean().sqrt()))
            speeds.append(float(made.diff(dim=0).abs().mean() / clip.motion.diff(dim=0).abs().mean()))
        scores = synchrony.generated(self.judges, generator, clips, name)
        return Variant(name, steps, synchrony.lines(scores), float(np.mean(apart)), float(np.mean(speeds)))


def table4(study: Study, steps: int, names: Sequence[str] = TABLE4 + OTHERS) -> list[dict[str, object]]:
    """One row a variant: offset, confidence and score at each level, distance from real motion, speed."""
    return [_row(study.variant(name, steps)) for name in names]


def _row(variant: Variant) -> dict[str, object]:
    row: dict[str, object] = {"variant": variant.name, "steps": variant.steps}
    for line in variant.lines:
        row |= {
            f"offset_{line.milliseconds}": round(line.offset.value, 3),
            f"confidence_{line.milliseconds}": round(line.confidence.value, 4),
            f"confidence_{line.milliseconds}_low": round(line.confidence.low, 4),
            f"confidence_{line.milliseconds}_high": round(line.confidence.high, 4),
            f"score_{line.milliseconds}": round(line.similarity.value, 4),
        }
    return row | {"real_distance": round(variant.real_distance, 4), "speed": round(variant.speed, 3)}


def figure6(study: Study, steps: int, every: int, output: Path) -> list[dict[str, object]]:
    """Confidence at each level over training, with the multi-scale loss and with that of level 1 alone.

    Rows are added to the CSV file `output` as they come; those that it has already are not made again.
    """
    rows = _read(output)
    for at in range(every, steps + 1, every):
        for name in (FULL, SINGLE):
            if not any((row["variant"], int(str(row["steps"]))) == (name, at) for row in rows):
                rows.append(_row(study.variant(name, at)))
                write_rows(output, rows)
    return rows


def _read(path: Path) -> list[dict[str, object]]:
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_rows(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Rows to a CSV file, columns in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with written_whole(path, ".csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _scales(rows: Sequence[dict[str, object]]) -> list[int]:
    """The time scales of a table's columns, in ms."""
    return [int(key.split("_")[1]) for key in rows[0] if key.startswith("confidence_") and key.count("_") == 1]


def plot_figure6(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Fig. 6: a panel a level, a line a loss, with 95 % intervals over clips."""
    import matplotlib.pyplot as plt

    scales = _scales(rows)
    figure, panels = plt.subplots(1, len(scales), figsize=(3.2 * len(scales), 3), squeeze=False, layout="constrained")
    for axes, scale in zip(panels[0], scales, strict=True):
        for name, label in ((FULL, "multi-scale loss"), (SINGLE, "level 1 alone")):
            own = [row for row in rows if row["variant"] == name]
            x, y, low, high = (
                np.array([float(str(row[key])) for row in own])
                for key in ("steps", *(f"confidence_{scale}{end}" for end in ("", "_low", "_high")))
            )
            axes.plot(x, y, label=label)
            axes.fill_between(x, low, high, alpha=0.2)
        axes.set(title=f"{scale} ms", xlabel="training steps")
        axes.grid(alpha=0.3)
    panels[0][0].set_ylabel("AV confidence")
    panels[0][-1].legend()
    with written_whole(path, ".png") as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)


def plot_table(rows: Sequence[dict[str, object]], path: Path) -> None:
    """Confidence at each level, a group of bars a variant."""
    import matplotlib.pyplot as plt

    scales = _scales(rows)
    figure, axes = plt.subplots(figsize=(1.1 * len(rows) + 2, 3.5), layout="constrained")
    width = 0.8 / len(scales)
    for n, scale in enumerate(scales):
        values, low, high = (
            np.array([float(str(row[f"confidence_{scale}{end}"])) for row in rows]) for end in ("", "_low", "_high")
        )
        at = np.arange(len(rows)) + (n - (len(scales) - 1) / 2) * width
        axes.bar(at, values, width, yerr=[values - low, high - values], label=f"{scale} ms", error_kw={"lw": 0.8})
    axes.set_xticks(np.arange(len(rows)), [str(row["variant"]) for row in rows], rotation=30, ha="right")
    axes.set_ylabel("AV confidence")
    axes.legend()
    with written_whole(path, ".png") as temporary:
        figure.savefig(temporary, dpi=120)
    plt.close(figure)
