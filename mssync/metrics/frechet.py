"""Fréchet distance of two normal distributions, and the features of pictures that it is taken of.

With Inception's features it is the FID. `FrechetInceptionDistance` of torchmetrics does the work; what is here are
the two networks that it looks through.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from mssync.training.perceptual import BLOCKS, EfficientNetLite0

EFFICIENTNET_SIDE = 224  # pixels, that EfficientNet-lite0 was trained on
BATCH = 16  # pictures looked at at once


def frechet_distance(mean: Tensor, cov: Tensor, other_mean: Tensor, other_cov: Tensor) -> Tensor:
    """|m - n|² + tr(C + D - 2 (C D)^½) of normal distributions (m, C) and (n, D): means (d,), covariances (d, d)."""
    roots = torch.linalg.eigvals(cov @ other_cov).sqrt().real.sum()
    return (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * roots


class EfficientNetFeatures(EfficientNetLite0):
    """Pooled features of EfficientNet-lite0 before its classifier: pictures (B, 3, h, w) uint8 -> (B, 1280)."""

    num_features = 1280

    def __init__(self) -> None:
        super().__init__(BLOCKS, head=True)

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        side = (EFFICIENTNET_SIDE, EFFICIENTNET_SIDE)
        small = F.interpolate(pictures.float() / 255, side, mode="bilinear", antialias=True)
        return self.pooled(small)


def frechet_metric(features: nn.Module) -> FrechetInceptionDistance:
    """The metric over pictures (B, 3, h, w) uint8: `update(pictures, real=…)`, `compute()`.

    features: `EfficientNetFeatures`, whose distance is "FD-EfficientNet", or `InceptionFeatures`: the FID. Real
    pictures stay counted after `reset`, so that several systems can be compared with them.
    """
    return FrechetInceptionDistance(feature=features, reset_real_features=False)


def add_pictures(metric: FrechetInceptionDistance, pictures: Iterable[np.ndarray], real: bool) -> None:
    """Update a `frechet_metric` with pictures (H, W, 3) uint8 RGB, of one size, some at a time."""
    pictures = iter(pictures)
    while batch := list(islice(pictures, BATCH)):
        metric.update(torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2), real=real)
