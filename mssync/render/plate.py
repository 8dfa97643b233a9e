"""What is behind the person: inpainted once a portrait, far enough for every pose.

From coarse to fine, each patch that is not known becomes the known patch that resembles it most (Wexler, Shechtman and
Irani 2007), so that walls, windows and horizons go on behind the head, out of focus.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mssync.render.field import eased

GROWN = 0.012  # of the picture's side: the matte's rim, in which hair may be that the matte lost
LEAST = 0.1  # alpha of what is the person's
NOISE = (0.03, 0.06)  # differences of picture and plate, in [0, 1], that count as none, and in full
AROUND = 0.25  # of the person's extent: what else is looked at
TINY = 1e-4  # of colours in [0, 1]
SMALLEST = 4  # pixels: where the pyramid ends
PATCH = 7  # pixels of a patch's side
LEVELS = ((32, 6), (56, 4), (96, 2))  # pixels of the longer side, and how often patches are sought
NEAR = 0.05  # what a distance of the longer side costs, in squares of colours
UNSURE = 0.3  # weight of pixels of a patch that are not known
FEW = 64  # known patches: with less there is nothing to take


def grown(mask: Tensor, reach: int) -> Tensor:
    """A mask (B, 1, h, w) wider by `reach` pixels on all sides."""
    return F.max_pool2d(F.max_pool2d(mask, (2 * reach + 1, 1), 1, (reach, 0)), (1, 2 * reach + 1), 1, (0, reach))


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


def completed(picture: Tensor, known: Tensor) -> Tensor:
    """As `fill`, with the structure of what is known."""
    found = plain = fill(picture, known)
    full, better = picture.shape[-2:], None
    for side, turns in LEVELS:
        size = [max(PATCH, round(length * side / max(full))) for length in full]
        sure = F.interpolate(known, size=size, mode="area")
        small = F.interpolate(picture * known, size=size, mode="area") / sure.clamp_min(1e-6)
        sure = (sure > 0.999).float()
        start = F.interpolate(found, size=size, mode="bicubic", antialias=True).clamp(0, 1)
        better = _resembling(torch.where(sure > 0, small, start), sure, turns)
        found = found if better is None else better  # the coarsest may have too little that is known
    if better is None:
        return plain
    near = F.interpolate(grown(1 - sure, PATCH // 2), size=full, mode="nearest") * known
    found = F.interpolate(found, size=full, mode="bicubic")
    seam = fill((picture - found) * near, near)  # what is missing at the border of the known, carried inwards
    return torch.lerp((found + seam).clamp(0, 1), picture, known)


def _resembling(picture: Tensor, known: Tensor, turns: int) -> Tensor | None:
    """A small picture (1, 3, h, w) whose patches that are not known are replaced by ones that are; None: too few are.

    Each pixel becomes the mean of the patches that hold it.
    """
    height, width = picture.shape[-2:]
    inner = F.pad(known, (PATCH // 2,) * 4)
    taken = (-F.max_pool2d(-inner, PATCH, 1)).flatten().nonzero()[:, 0]
    wanted = grown(1 - known, PATCH // 2).flatten().nonzero()[:, 0]
    if len(taken) < FEW:
        return None
    places = torch.stack([torch.arange(height * width) // width, torch.arange(height * width) % width], 1)
    away = torch.cdist(places[wanted].float(), places[taken].float()).square_() * (NEAR / max(height, width) ** 2)
    source = _patches(picture)[taken]
    weight = _patches((1 - UNSURE) * known.expand(1, 3, -1, -1) + UNSURE)[wanted]
    total = weight.sum(1, keepdim=True)
    away += weight @ source.square().T / total  # w (t - s)² = w s² - 2 w t s + what does not depend on s
    for _ in range(turns):
        alike = (weight * _patches(picture)[wanted] / total) @ source.T
        nearest = (away - 2 * alike).argmin(1)
        patches, count = torch.zeros(height * width, source.shape[1]), torch.zeros(height * width, source.shape[1])
        patches[wanted], count[wanted] = source[nearest], 1
        summed, times = (_folded(x, height, width) for x in (patches, count))
        picture = torch.where(known > 0, picture, summed / times.clamp_min(1))
    return picture


def _patches(x: Tensor) -> Tensor:
    """Around every pixel of (1, 3, h, w): (h w, 3 PATCH²)."""
    return F.unfold(F.pad(x, (PATCH // 2,) * 4, mode="reflect"), PATCH)[0].T


def _folded(patches: Tensor, height: int, width: int) -> Tensor:
    """The sum of patches where they lie: (1, 3, h, w)."""
    return F.fold(patches.T[None], (height, width), PATCH, padding=PATCH // 2)


def _halved(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)


def parted(picture: Tensor, matte: Tensor, inpaint: Callable[[Tensor, Tensor], Tensor] = fill) -> tuple[Tensor, Tensor]:
    """A picture (1, 3, h, w) in person and plate: premultiplied RGBA (1, 4, h, w) and (1, 3, h, w).

    The person over the plate is the picture again, exactly: I = F + (1 - a) B with the least a, not below the matte
    (1, 1, h, w), for which F lies in [0, a], but for what is as little as noise. So what differs from the plate around
    the matte is the person's: hair that the matte lost. inpaint: `fill`, or `completed`, which takes a hundred times
    as long.
    """
    reach = max(1, round(GROWN * max(picture.shape[-2:])))
    near = grown((matte > LEAST).float(), 2 * reach)
    rows, columns = extent(near, AROUND)
    own, plate = torch.zeros_like(picture[:, :1]).repeat(1, 4, 1, 1), picture.clone()
    at = (..., rows, columns)
    own[at], plate[at] = _parted(picture[at], matte[at], near[at], reach, inpaint)
    return own, plate


def extent(mask: Tensor, around: float) -> tuple[slice, slice]:
    """Rows and columns of a mask (1, 1, h, w) from the first to the last that is not 0, and `around` times as many on
    either side, as far as there are."""
    found = []
    for shown in (mask[0, 0].any(1), mask[0, 0].any(0)):
        at = shown.nonzero().flatten().tolist() or [0]
        more = math.ceil((at[-1] + 1 - at[0]) * around)
        found.append(slice(max(0, at[0] - more), min(len(shown), at[-1] + 1 + more)))
    return found[0], found[1]


def _parted(
    picture: Tensor, matte: Tensor, near: Tensor, reach: int, inpaint: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    hidden = near
    for sides in ((1, 0), (0, 1)):
        window, room = [2 * reach * side + 1 for side in sides], [reach * side for side in sides]
        hidden = F.avg_pool2d(hidden, window, 1, room, count_include_pad=False)
    plate = torch.lerp(picture, inpaint(picture, 1 - near), hidden)
    # What is as little as noise hides nothing: on white it would make a pixel all the person's.
    apart = picture - plate
    clean = plate + torch.maximum(eased(apart.abs().amax(1, keepdim=True), *NOISE), matte) * apart
    least = torch.where(clean < plate, 1 - clean / plate, (clean - plate) / (1 - plate).clamp_min(TINY))
    alpha = torch.maximum(matte, least.amax(1, keepdim=True).clamp(0, 1))
    return torch.cat([picture - (1 - alpha) * plate, alpha], 1), plate
