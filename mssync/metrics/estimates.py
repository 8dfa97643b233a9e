"""Means over clips, with how sure they are; correlation within one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000
COVERED = 0.95  # by an interval


@dataclass(frozen=True)
class Estimate:
    """A figure over clips: value, bounds of its 95 % bootstrap interval over clips, and how many clips counted."""

    value: float
    low: float
    high: float
    clips: int


def mean(values: np.ndarray) -> Estimate:
    """Mean of (clips,); nan is left out, and is the mean of nothing."""
    return ratio(values, np.ones(len(values)))


def median(values: np.ndarray) -> Estimate:
    """Median of (clips,); nan is left out, and is the median of nothing."""
    values = values[~np.isnan(values)]
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1 - COVERED) / 2
    low, high = np.quantile(np.median(values[drawn], 1), [tail, 1 - tail])
    return Estimate(float(np.median(values)), float(low), float(high), len(values))


def ratio(values: np.ndarray, over: np.ndarray) -> Estimate:
    """Ratio of the means of two columns (clips,), over the clips where neither is nan."""
    known = ~(np.isnan(values) | np.isnan(over))
    values, over = values[known], over[known]
    if not len(values):
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    tail = (1 - COVERED) / 2
    low, high = np.quantile(values[drawn].mean(1) / over[drawn].mean(1), [tail, 1 - tail])
    return Estimate(float(values.mean() / over.mean()), float(low), float(high), len(values))


def correlation(wanted: np.ndarray, have: np.ndarray) -> float:
    """Pearson's r; nan when `wanted` does not vary, 0 when `have` does not."""
    if np.ptp(wanted) == 0:  # exact, where the deviation of equal numbers may be a rounding error
        return float("nan")
    return float(np.corrcoef(wanted, have)[0, 1]) if np.ptp(have) > 0 else 0.0
