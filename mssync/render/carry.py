"""Another face's motion on a portrait: meshes to meshes."""

from __future__ import annotations

import numpy as np

from mssync.render.field import RIGID


def carried(portrait: np.ndarray, driving: np.ndarray, start: int) -> np.ndarray:
    """The portrait's mesh (478, 2) moved as a face (T, 478, 2) moves from its frame `start` on -> (T, 478, 2) float32.

    All in [-1, 1] of their crops. Changes are turned and scaled as the two faces differ at that frame.
    """
    rigid = list(RIGID)
    a, b = (mesh[rigid] - mesh[rigid].mean(0) for mesh in (driving[start], portrait))
    square = np.square(a).sum()
    cos, sin = (a * b).sum() / square, (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / square
    turn = np.array([[cos, sin], [-sin, cos]], np.float32)  # of row vectors
    return (portrait + (driving - driving[start]) @ turn).astype(np.float32)
