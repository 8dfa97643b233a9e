"""The folder of videos that our own model is scored by: every clip's first frame, animated with the clip's sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mssync.audio import SAMPLE_RATE, SAMPLES_PER_VIDEO
from mssync.data.clips import Clip
from mssync.faces import Box
from mssync.metrics.footage import FADED_IN
from mssync.reenact import SIZE
from mssync.spontaneous import own_seed
from mssync.video import write_video

if TYPE_CHECKING:
    from mssync.animate import Pipeline, Portrait

REFERENCE = "reference"  # the folder of the real videos


def write_outputs(
    pipeline: Pipeline, clips: Sequence[Clip], folder: Path, name: str, frames: int | None = None
) -> None:
    """Write FOLDER/NAME/CLIP.mp4, animated, and FOLDER/reference/CLIP.mp4, the clip itself, for every clip.

    frames: how many of each clip at most; all unless given.

    A clip that fades in starts where it has (see `faded_in`). Both videos are 256 × 256 and show the same
    part of the source; the sound is the clip's, unchanged.
    """
    from rich.progress import track

    for part in (REFERENCE, name):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for clip in track(clips, "animating", transient=True):
        start = faded_in(clip)
        stop = len(clip) if frames is None else min(start + frames, len(clip))
        waveform = clip.waveform[start * SAMPLES_PER_VIDEO : stop * SAMPLES_PER_VIDEO]
        real = (clip.frame(t) for t in range(start, stop))
        write_video(folder / REFERENCE / f"{clip.entry.name}.mp4", real, waveform, generated=False)
        portrait, seed = clip_portrait(pipeline, clip, start), own_seed(clip.entry.name)
        talking = pipeline.animate(portrait, waveform, sample_rate=SAMPLE_RATE, seed=seed, size=SIZE)
        talking.save(folder / name / f"{clip.entry.name}.mp4")


def faded_in(clip: Clip) -> int:
    """The first frame that can be a portrait: 0, but for a clip that fades in from white or black."""
    sample = np.linspace(0, len(clip) - 1, 9).round().astype(int)
    enough = FADED_IN * np.median([clip.frame(int(t)).std() for t in sample])
    return next(t for t in range(len(clip)) if clip.frame(t).std() >= enough)


def clip_portrait(pipeline: Pipeline, clip: Clip, t: int) -> Portrait:
    """Frame t of a clip as a portrait, in the clip's own crop and with its stored landmarks."""
    from mssync.animate import Portrait

    frame, mesh, box = clip.frame(t), clip.landmarks[t], Box(0, 0, SIZE)
    motion = pipeline.keypoints(frame[None], mesh[None])
    landmarks = (mesh + np.array([1, 1, 0], np.float32)) * (SIZE / 2)
    state = pipeline.prepared(frame, box, landmarks, motion)
    return Portrait(frame, box, motion[0], state, (SIZE, SIZE), mesh)
