"""Landmark distance (LMD) of frontalised faces: how far a mouth is from the real one, whatever the head does."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from mssync.faces import mouth_opening
from mssync.metrics.frontal import fit

# The 20 points of the usual 68-point scheme: outer lips, then inner, clockwise from the picture's left corner.
MOUTH = (61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87)
SIDE = 256  # pixels: the picture's side that LMD in pixels is stated for


def mouth_distances(landmarks: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Mean distance (T,) of the frontalised mouths of two videos, in outer eye distances of the mean face.

    landmarks, reference: (T, 478, 3), each in any unit. Distances are those seen from the front (x and y): the
    mesh's depth is a guess, and is used for turning only.
    """
    mouths = [fit(faces).frontal(faces)[:, MOUTH, :2] for faces in (landmarks, reference)]
    return np.linalg.norm(mouths[0] - mouths[1], axis=-1).mean(-1)


def opening_correlation(landmarks: np.ndarray, reference: np.ndarray) -> float:
    """Correlation over time of how far two mouths are open (`faces.mouth_opening`), (T, 478, 3) each.

    nan where one of them does not move at all.
    """
    openings = np.stack([mouth_opening(faces) for faces in (landmarks, reference)])
    if np.ptp(openings, axis=1).min() == 0:
        return float("nan")
    return float(np.corrcoef(openings)[0, 1])


def unit_in_pixels(reference: np.ndarray, side: float) -> float:
    """Pixels of one unit of `mouth_distances` in a picture of 256: mean over faces (T, 478, 3) in pixels of `side`."""
    return float(fit(reference).scale.mean()) * SIDE / side


class LandmarkDistance(Metric):
    """Mean LMD over clips, as a `torchmetrics.Metric`: relative to the eyes, and in pixels of a 256-pixel picture."""

    full_state_update = False
    total: Tensor
    clips: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("clips", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, landmarks: np.ndarray, reference: np.ndarray, side: float) -> None:
        """One clip: landmarks (T, 478, 3), and those of the real video in pixels of a picture of height `side`."""
        distance = float(mouth_distances(landmarks, reference).mean())
        pixels = distance * unit_in_pixels(reference, side)
        self.total += torch.tensor([distance, pixels], dtype=torch.float64, device=self.device)
        self.clips += 1

    def compute(self) -> dict[str, Tensor]:
        relative, pixels = self.total / self.clips
        return {"lmd": relative, "lmd_pixels": pixels}
