"""Pictures as tensors, and how far one is from another."""

from __future__ import annotations

import numpy as np
from torch import Tensor

PSNR_LIMIT = 100.0  # dB, of equal pictures, so that a mean over pictures stays finite


def psnr(picture: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], at most PSNR_LIMIT."""
    squared = float((picture - wanted).square().mean())
    return float(min(-10 * np.log10(max(squared, 1e-30)), PSNR_LIMIT))
