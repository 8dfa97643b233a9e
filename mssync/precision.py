"""In which numbers frames are drawn: bfloat16 where the processor multiplies in it, float32 elsewhere.

Keypoints, speech and motion are computed in float32 always. Frames in bfloat16 differ from those in float32 by less
than a grey level, on the mean.
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.errors import InputError

PRECISIONS = ("auto", "float32", "bfloat16")
VARIABLE = "MSSYNC_PRECISION"  # the setting where none is given
SUBNORMAL = 1e-39  # has no normal bfloat16


def choose(setting: str | None, device: torch.device) -> str:
    """The precision in which to draw, "float32" or "bfloat16".

    setting: one of PRECISIONS; None for that of the environment variable MSSYNC_PRECISION, "auto" without it.
    Raises InputError for another setting.
    """
    if setting is None:
        setting = os.environ.get(VARIABLE) or "auto"
    if setting not in PRECISIONS:
        raise InputError(f"there is no precision {setting!r}; choose one of {', '.join(PRECISIONS)}")
    if setting == "auto":
        return "bfloat16" if has_bfloat16(device.type) else "float32"
    return setting


@lru_cache(maxsize=4)
def has_bfloat16(device: str) -> bool:
    """Whether a kind of device multiplies bfloat16 by instructions of its own; elsewhere it is emulated, at an eighth
    of the speed."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return device == "cpu" and platform.machine() in ("x86_64", "AMD64") and _takes_subnormals_for_zero()


def _takes_subnormals_for_zero() -> bool:
    """Whether a convolution in bfloat16 does what the instructions for it do.

    VDPBF16PS and TDPBF16PS take subnormal numbers for zero (Intel SDM); emulation, by multiplications in float32, does
    not. So it is seen what is in use, not what the processor has: oneDNN may be kept from it. No clock is asked, so
    the answer is the same each time.
    """
    tiny, large = torch.full((1, 32, 8, 8), SUBNORMAL), torch.full((32, 32, 3, 3), 2.0**40)
    try:
        half, single = (F.conv2d(tiny.to(dtype), large.to(dtype)) for dtype in (torch.bfloat16, torch.float32))
    except RuntimeError:  # no such convolution here
        return False
    # Where this thread flushes subnormals in float32, too, nothing can be told.
    return not half.any() and bool(single.any())


def drawing_precision(like: Tensor, precision: str) -> AbstractContextManager:
    """Autocast to bfloat16, or else what the caller has chosen."""
    return torch.autocast(like.device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
