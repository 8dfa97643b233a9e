"""Timing in turns; how many frames a second models draw, beside the exact first-order motion model."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from mssync.data.clips import Clip
from mssync.faces import Box
from mssync.metrics.pictures import to_tensor
from mssync.metrics.reenactment import keypoints, read_frames
from mssync.precision import choose
from mssync.reenact import SIZE

if TYPE_CHECKING:
    from mssync.animate import Pipeline, Portrait

ROUNDS = 5  # after one that does not count


def exact_fomm() -> Pipeline:
    """The first-order motion model with the sizes of vox-256 and random weights: they cost what trained ones do."""
    from mssync.animate import Pipeline
    from mssync.reenact.fomm import FOMM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Pipeline(FOMM().for_rendering(choose(None, torch.device("cpu"))), None, name="fomm")


def in_turns(work: Mapping[str, Callable[[], int]], rounds: int = ROUNDS) -> dict[str, float]:
    """Seconds a unit of each piece of work, which returns how many units it did: medians over rounds, after one more.

    They take turns, so that a machine that is busy, or slows down as it warms up, is so for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(1 + rounds):
        for name, do in work.items():
            start = time.perf_counter()
            count = do()
            seconds[name].append((time.perf_counter() - start) / count)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def frames_per_second(pipelines: Mapping[str, Pipeline], clip: Clip) -> dict[str, float]:
    """Frames a second of each pipeline at 256×256: medians over ROUNDS of two full batches a core.

    Pipelines take turns. What is timed is what `Pipeline.render` does for a prepared portrait, with as many threads as
    PyTorch takes.
    """
    from mssync.animate import BATCH

    count = 2 * BATCH * max(pipeline.cores.count for pipeline in pipelines.values())
    times = np.linspace(0, len(clip) - 1, count).round().astype(int)
    frames, landmarks = read_frames(clip, times.tolist()), clip.landmarks[times]
    prepared = {name: (pipeline, *_prepared(pipeline, frames, landmarks)) for name, pipeline in pipelines.items()}

    def drawing(pipeline: Pipeline, portrait: Portrait, motion: np.ndarray) -> Callable[[], int]:
        return lambda: sum(1 for _ in pipeline.render(portrait, motion, size=SIZE))

    seconds = in_turns({name: drawing(*what) for name, what in prepared.items()})
    return {name: 1 / each for name, each in seconds.items()}


@torch.inference_mode()
def _prepared(pipeline: Pipeline, frames: np.ndarray, landmarks: np.ndarray) -> tuple[Portrait, np.ndarray]:
    """A portrait of the first of frames (B, 256, 256, 3) with landmarks (B, 478, 3), and their motion (B, 10, 6)."""
    from mssync.animate import Portrait

    pictures = to_tensor(frames).to(pipeline.device)
    motion = keypoints(pipeline.reenactor, pictures, landmarks)
    state = pipeline.reenactor.prepare(pictures[:1], motion[:1])
    pose = motion.cpu().numpy()
    whole = Box(0, 0, SIZE)
    return Portrait(picture=frames[0], box=whole, pose=pose[0], state=state, size=(SIZE, SIZE)), pose
