"""Who draws the pictures that are measured: a model, or a simple rule to compare it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mssync.errors import InputError
from mssync.faces import Box, crop
from mssync.metrics.footage import Clip
from mssync.reenact import SIZE

if TYPE_CHECKING:
    from mssync.animate import Pipeline

COPY = "copy"  # the name of `copying` among models

Drawer = Callable[[Clip], Iterator[np.ndarray]]
"""A clip's portrait under the faces of all its frames: (s, s, 3) uint8 each. Of the other real frames it may see the
motion alone, that is, the landmarks, and where a model reads its keypoints from pictures, these keypoints."""


def copying(clip: Clip) -> Iterator[np.ndarray]:
    """Draws nothing: the portrait, unmoved."""
    return (clip.real[0] for _ in clip.real)


def drawing(pipeline: Pipeline) -> Drawer:
    """Draws with a model, as `Pipeline.reenact(absolute=True)` does with a driving video."""

    def draw(clip: Clip) -> Iterator[np.ndarray]:
        from mssync.animate import Portrait

        size, poses, meshes = clip.size, keypoints(pipeline, clip), in_whole(clip)
        box = Box(0, 0, size)
        state = pipeline.prepared(clip.real[0], box, clip.landmarks[0], poses[:1])
        portrait = Portrait(clip.real[0], box, poses[0], state, (size, size), meshes[0])
        for pose, mesh in zip(poses, meshes, strict=True):
            yield pipeline.draw_here(portrait, pose[None], size, mesh[None, :, :2])[0]

    return draw


def keypoints(pipeline: Pipeline, clip: Clip) -> np.ndarray:
    """Motion (T, 10, 6) of a clip's frames, whose landmarks are known."""
    box = Box(0, 0, clip.size)
    pairs = zip(clip.real, in_whole(clip), strict=True)
    return np.concatenate([pipeline.keypoints(crop(frame, box, SIZE)[None], mesh[None]) for frame, mesh in pairs])


def in_whole(clip: Clip) -> np.ndarray:
    """A clip's landmarks (T, 478, 3) in its frames' [-1, 1]."""
    return clip.landmarks * np.float32(2 / clip.size) - np.array([1, 1, 0], np.float32)


def load_pipelines(models: Sequence[str]) -> dict[str, Pipeline | None]:
    """Models by name, each once; COPY is None. Raises InputError for unknown models, and where none is left."""
    from mssync.animate import load

    if not models:
        raise InputError("no model to measure; give one with --model")
    return {name: None if name == COPY else load(name) for name in models}


def drawer_of(pipeline: Pipeline | None) -> Drawer:
    return copying if pipeline is None else drawing(pipeline)
