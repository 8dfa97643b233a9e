"""What `mssync score` tells of a video: offsets at every time scale, over time, in words, as rows and as a picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from mssync.data.readers import VIDEOS
from mssync.errors import InputError, PathLike
from mssync.inputs import Media, local_file
from mssync.meter import POINTS, LevelScore, Reading, SyncMeter, watch
from mssync.syncer import MAX_OFFSET
from mssync.video import FPS

IN_SYNC_MS = 20  # half a frame: nearer than this no player shows pictures
MIN_DRIFT_MS = 60  # less change over a video is within the errors of its parts
MAX_PLOTTED = 12  # files: a picture of more is too tall to look at
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7")  # of the levels; told apart by the colour-blind


@dataclass(frozen=True)
class Score:
    """All about one video. lips, head: by time scale. over_time: middle of a stretch in s, and its reading."""

    path: str
    seconds: float
    reading: Reading
    lips: list[LevelScore]
    head: list[LevelScore]
    over_time: list[tuple[float, Reading]]

    @property
    def says(self) -> str:
        """The verdict in words."""
        if self.reading.sure:
            return in_words(self.reading.milliseconds)
        unsure = f"(probability {self.reading.probability:.2f})"
        if self.drift is not None and abs(self.drift) >= MIN_DRIFT_MS:
            return f"no one offset fits {unsure}; {self.drift_in_words}"
        return f"cannot tell {unsure}: lips and sound do not clearly fit anywhere"

    @property
    def drift(self) -> float | None:
        """Change of the offset from the first stretch to the last that can be told, in ms; None without three."""
        sure = [(at, reading.milliseconds) for at, reading in self.over_time if reading.sure]
        if len(sure) < 3:
            return None
        at, offsets = np.array(sure).T
        return float(np.polyfit(at, offsets, 1)[0] * (at[-1] - at[0]))

    @property
    def drift_in_words(self) -> str:
        if self.drift is None:
            return "over time: too few stretches in which the offset can be told"
        if abs(self.drift) < MIN_DRIFT_MS:
            return "over time: steady"
        return f"over time: the offset drifts by {self.drift:+.0f} ms"


def score(video: Media, meter: SyncMeter | None = None, max_offset: int = MAX_OFFSET) -> Score:
    """Watch a video and measure by how much its lips and its sound are apart.

    video: a path, the content of a file (bytes), or a file object.
    meter: the shipped one unless given.
    max_offset: frames of 40 ms to both sides that are tried.
    Raises InputError as `meter.watch`; warns of several faces.
    """
    meter = shipped_meter() if meter is None else meter
    with local_file(video, "the video") as file:
        seen = watch(file.path, POINTS, fit=meter.fit)
    compared = meter.compare(seen.landmarks, seen.waveform, seen.found, max_offset)
    return Score(
        file.name, len(seen) / FPS, compared.reading(), compared.lips, compared.head, compared.over_time()
    )  # fmt: skip


@lru_cache(maxsize=1)
def shipped_meter() -> SyncMeter:
    """The meter that the package ships, loaded once."""
    return SyncMeter.load()


def find_videos(paths: Iterable[Path]) -> list[Path]:
    """The given files, and the videos in given folders, sorted. Raises InputError for a folder without any."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(p for p in path.iterdir() if p.suffix.lower() in VIDEOS and not p.name.startswith("."))
        if not inside:
            raise InputError(f"{path}: no videos in this folder")
        found += inside
    return found


def failure(file: PathLike, error: Exception) -> str:
    """Why a video of many could not be worked on, in one line: not even a fault of ours keeps the others back."""
    return str(error) if isinstance(error, InputError) else f"{file}: {type(error).__name__}: {error}"


def in_words(milliseconds: float) -> str:
    """An offset as one says it: "sound leads by 80 ms", "sound is late by 40 ms"."""
    if abs(milliseconds) <= IN_SYNC_MS:
        return f"in sync (within {IN_SYNC_MS} ms)"
    return f"sound leads by {milliseconds:.0f} ms" if milliseconds > 0 else f"sound is late by {-milliseconds:.0f} ms"


def as_json(score: Score) -> dict[str, Any]:
    """Everything, for machines. Offsets are positive where the sound leads."""

    def level(found: LevelScore) -> dict[str, Any]:
        return {
            "window_ms": found.milliseconds,
            "frame_ms": found.frame_ms,
            "offset_frames": found.offset,
            "offset_ms": found.offset_ms,
            "confidence": round(found.confidence, 4),
            "offsets_frames": found.offsets.tolist(),
            "curve": [round(float(value), 4) for value in found.curve],
        }

    return {
        "file": score.path,
        "seconds": round(score.seconds, 2),
        "offset_ms": round(score.reading.milliseconds, 1),
        "probability": round(score.reading.probability, 4),
        "can_tell": score.reading.sure,
        "says": score.says,
        "drift_ms": None if score.drift is None else round(score.drift, 1),
        "lips": [level(found) for found in score.lips],
        "head": [level(found) for found in score.head],
        "over_time": [
            {"second": at, "offset_ms": round(found.milliseconds, 1), "probability": round(found.probability, 4)}
            for at, found in score.over_time
        ],
    }


def as_row(score: Score) -> dict[str, Any]:
    """One line of a table of files."""
    told = as_json(score)
    row = {"file": score.path, "error": ""}  # of those that could not be scored this is all
    row |= {name: told[name] for name in ("seconds", "offset_ms", "probability", "says", "drift_ms")}
    for part in ("lips", "head"):
        for found in told[part]:
            for name in ("offset_frames", "offset_ms", "confidence"):
                row[f"{part}_{found['window_ms']}ms_{name}"] = found[name]
    return row


def plot(scores: list[Score], path: Path) -> None:
    """A picture with two panels a video: the distance curves, and the offset over time.

    Raises InputError for more videos than one can look at.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if len(scores) > MAX_PLOTTED:
        raise InputError(f"{len(scores)} videos are too many for one picture; plot up to {MAX_PLOTTED}")
    figure = Figure(figsize=(11, 3.4 * len(scores)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(scores), 2, squeeze=False)
    for one, (left, right) in zip(scores, panels, strict=True):
        for part, style in ((one.lips, "-"), (one.head, ":")):
            for found, colour in zip(part, COLOURS, strict=False):
                name = f"{'lips' if part is one.lips else 'head'} {found.milliseconds} ms"
                left.plot(found.offsets * found.frame_ms, found.curve, style, color=colour, label=name)
        left.axvline(one.reading.milliseconds, color="0.5", lw=0.8)
        left.set(xlim=(-1000, 1000), xlabel="offset in ms (right: the sound leads)", ylabel="mean distance")
        left.set_title(f"{Path(one.path).name}: {one.says.split(' (')[0]}", fontsize=9)
        left.legend(fontsize=7, ncols=2)
        for sure, look in ((True, {"color": COLOURS[0]}), (False, {"color": "0.7"})):
            some = [(at, found.milliseconds) for at, found in one.over_time if found.sure == sure]
            if some:
                right.plot(*zip(*some, strict=True), "o", ms=4, label="can be told" if sure else "cannot", **look)
        right.axhline(0, color="0.5", lw=0.8)
        reach = one.reading.offsets[-1]
        right.set(xlabel="time in s", ylabel="offset in ms", ylim=(-reach, reach), title=one.drift_in_words)
        right.title.set_fontsize(9)
        right.legend(fontsize=7)
    figure.savefig(path, dpi=110)
