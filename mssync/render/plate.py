"""What is behind the person: inpainted once a portrait, far enough for every pose."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GROWN = 0.012  # of the picture's side: the matte's rim, in which hair may be that the matte lost
LEAST = 0.02  # alpha of what is the person's
TINY = 1e-4  # of colours in [0, 1]
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

    The person over the plate is the picture again, exactly: I = F + (1 - a) B with the least a, not below the matte
    (1, 1, h, w), for which F lies in [0, a]. So what differs from the plate around the matte is the person's: hair that
    the matte lost.
    """
    reach = max(1, round(GROWN * max(picture.shape[-2:])))
    near = _grown((matte > LEAST).float(), 2 * reach)
    hidden = F.avg_pool2d(near, 2 * reach + 1, 1, reach, count_include_pad=False)
    plate = torch.lerp(picture, fill(picture, 1 - near), hidden)
    least = torch.where(picture < plate, 1 - picture / plate, (picture - plate) / (1 - plate).clamp_min(TINY))
    alpha = torch.maximum(matte, least.amax(1, keepdim=True).clamp(0, 1))
    own = torch.minimum((picture - (1 - alpha) * plate).clamp_min(0), alpha)
    return torch.cat([own, alpha], 1), plate


def _grown(mask: Tensor, reach: int) -> Tensor:
    """A mask wider by `reach` pixels on all sides."""
    return F.max_pool2d(F.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0)), (1, 2 * reach + 1), 1, (0, reach))
