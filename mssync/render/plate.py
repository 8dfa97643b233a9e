"""What is behind the person: inpainted once a portrait, far enough for every pose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROWN = 0.012  # of the picture's side: the matte's rim, in which hair may be that the matte lost
RIM_CONTRAST = 0.06  # difference from the plate, of colours in [0, 1], from which a pixel of the rim goes with the person
SMALLEST = 4  # pixels: where the pyramid ends


def fill(picture: Tensor, known: Tensor) -> Tensor:
    """Push-pull (Gortler et al. 1996): what is not known from around it.

    picture (1, 3, h, w); known (1, 1, h, w) in [0, 1]. Returns (1, 3, h, w), the picture where known is 1.
    """
    if min(picture.shape[-2:]) <= SMALLEST:
        mean = (picture * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1e-6)
        return known * picture + (1 - known) * mean
    weight = _halved(known)
    small = _halved(picture * known) / weight.clamp_min(1e-6)
    filled = fill(small, (weight * 4).clamp(0, 1))
    up = F.interpolate(filled, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    return known * picture + (1 - known) * up


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def parted(picture: Tensor, matte: Tensor) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, h, w) in person and plate: premultiplied RGBA (1, 4, h, w) and (1, 3, h, w).

    The person over the plate is the picture again, exactly. What differs from the plate in a rim around the matte
    (1, 1, h, w) is the person's: hair that the matte lost.
    """
    reach = max(1, round(GROWN * max(picture.shape[-2:])))
    grown = F.max_pool2d(matte, 2 * reach + 1, 1, reach)
    rim = F.avg_pool2d(F.max_pool2d(matte, 4 * reach + 1, 1, 2 * reach), 2 * reach + 1, 1, reach)
    hidden = F.max_pool2d((rim > 0.02).float(), 3, 1, 1)
    plate = fill(picture, 1 - hidden)
    differs = ((picture - plate).abs().amax(1, keepdim=True) / RIM_CONTRAST).clamp(0, 1)
    alpha = torch.maximum(matte, torch.minimum(rim, grown.maximum(rim)) * differs)
    own = torch.minimum((picture - (1 - alpha) * plate).clamp_min(0), alpha)
    # what clipping took away goes to the plate, so that the sum is right
    plate = torch.where(alpha < 1, ((picture - own) / (1 - alpha).clamp_min(1e-3)).clamp(0, 1), plate)
    return torch.cat([own, alpha], 1), plate
