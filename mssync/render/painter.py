"""The painters: what no warp can show, the inside of a mouth that opens, an eye that turns or closes.

A painter sees its organ's window: the warped source, the source as it is, the source moved with the jaw (or the iris),
what is open in either, and coordinates fixed to the skull and to the jaw. So upper teeth of the source lie where they
are wanted, and lower ones, too. It paints what is open anew, from these and a colour of its own, and adds to what is
not.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mssync.render.field import eased
from mssync.render.organs import (
    CHIN_POINTS,
    EYE,
    MOUTH,
    Organ,
    gap_in,
    grid,
    inside,
    iris_disc,
    local_field,
    opened,
    placed,
)
from mssync.render.plate import grown
from mssync.unet import UNet

INPUTS = 16  # channels of a prompt
OUTPUTS = 10  # a colour, what is added to the warped one, shares of: that colour, warped, still, moved along
WIDTHS = (32, 64, 112, 144)
LOW_PASS = 8  # pixels, over which what is added to skin is averaged
MARGIN = 0.12  # width of the window's fading rim, in u
MOST = 0.6  # that is added to a colour
ORGANS = {"mouth": MOUTH, "eye": EYE}


class Prompt(NamedTuple):
    """channels (B, 16, h, w); warped (B, 3, h, w) in [0, 1]; gap (B, 1, h, w): what is open; near (B, 1, h, w): where
    anything sharp may be added; field (B, h, w, 2): offsets of `local_field`."""

    channels: Tensor
    warped: Tensor
    gap: Tensor
    near: Tensor
    field: Tensor


class Asked:
    """What a prompt has of the source alone.

    picture: (B, 3, H, W) in [0, 1], the source at about the window's resolution; frame (B, 3, 2): the window in it;
    points (B, 478, 2): its mesh, both in its pixels; scale: (2,) its width and height.
    """

    def __init__(self, organ: Organ, picture: Tensor, frame: Tensor, points: Tensor, scale: Tensor) -> None:
        self.organ, self.picture, self.frame, self.scale = organ, picture, frame, scale
        self.uv = inside(frame, points)
        at = grid(organ.size).to(points)
        self.still = sampled(picture, frame, at.expand(len(points), -1, -1, -1), scale) * 2 - 1
        gap = opened(organ, self.uv)[:, :1]
        self.marks = [gap, iris_disc(organ, self.uv)] if organ.iris else [gap]

    def prompt(self, target_frame: Tensor, target: Tensor) -> Prompt:
        """For new pictures with the window target_frame (B, 3, 2) and meshes target (B, 478, 2) in their pixels."""
        organ, at = self.organ, grid(self.organ.size).to(target)
        uv = inside(target_frame, target)
        carried = list(organ.iris[:1] or CHIN_POINTS)
        moved = (uv[:, carried] - self.uv[:, carried]).mean(1)  # of jaw or iris, along the skull
        field = local_field(organ, self.uv, uv, at)
        looked = sampled(self.picture, self.frame, torch.cat([at + field, at - moved[:, None, None]]), self.scale)
        warped, along = looked.chunk(2)
        now, then_along = opened(organ, uv), gap_in(organ, self.uv + moved[:, None])
        u, v = at.permute(2, 0, 1)[None].expand(len(uv), -1, -1, -1).split(1, 1)
        still, *marks = (x.expand(len(uv), -1, -1, -1) for x in (self.still, *self.marks))
        if organ.iris:
            marks = [now, marks[0], then_along, iris_disc(organ, uv), marks[1], u, v]
        else:
            marks = [now, marks[0], then_along, u, v, v - moved[:, 1, None, None, None]]
        channels = torch.cat([warped * 2 - 1, still, along * 2 - 1, *marks], 1)
        lips = F.avg_pool2d(grown(now.sum(1, keepdim=True), 4), 5, 1, 2)
        return Prompt(channels, warped, now[:, :1], lips.clamp_(0, 1), field)


def sampled(picture: Tensor, frame: Tensor, places: Tensor, scale: Tensor) -> Tensor:
    """Pixels of a picture (B, 3, H, W) at (u, v) places (k B, h, w, 2) of a window (B, 3, 2) -> (k B, 3, h, w)."""
    times = len(places) // len(frame)
    points = placed(frame.repeat(times, 1, 1), places.flatten(1, 2)).unflatten(1, places.shape[1:3])
    coordinates = (points + 0.5) * (2 / scale) - 1
    if len(picture) != len(places):
        picture = picture.repeat(len(places) // len(picture), 1, 1, 1)
    return F.grid_sample(picture, coordinates, mode="bilinear", padding_mode="border", align_corners=False)


def rim(organ: Organ) -> Tensor:
    """Weights (1, 1, h, w) that fall to 0 at the window's edge."""
    at = grid(organ.size)
    height = organ.size[0] / organ.size[1]
    away = torch.minimum(1 - at[..., 0].abs(), height - at[..., 1].abs())
    return eased(away, 0.0, MARGIN)[None, None]


class Painter(UNet):
    """U-Net from a prompt to a painted window.

    organ: "mouth" or "eye"; widths: channels at 1/2, 1/4, 1/8, 1/16 of the window's resolution.
    """

    rim: Tensor

    def __init__(self, organ: str, widths: tuple[int, ...] = WIDTHS) -> None:
        super().__init__(INPUTS, widths)
        self.organ = organ
        self.style = nn.Sequential(nn.Linear(widths[-1], widths[-1]), nn.SiLU(), nn.Linear(widths[-1], widths[-1]))
        last = nn.Conv2d(widths[0], OUTPUTS * 4, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]
        self.head = nn.Sequential(last, nn.PixelShuffle(2))
        self.register_buffer("rim", rim(ORGANS[organ]), persistent=False)

    def summed_up(self, mean: Tensor) -> Tensor:
        return self.style(mean)

    def forward(self, given: Prompt) -> Tensor:
        """The painted window (B, 3, h, w) in [0, 1]."""
        x = self.features(given.channels.to(next(self.parameters()).dtype))
        new, more, shares = self.head(x).float().split((3, 3, 4), 1)
        shares, more = shares.softmax(1), MOST * torch.tanh(more)
        soft = F.interpolate(F.avg_pool2d(more, LOW_PASS), scale_factor=float(LOW_PASS), mode="bilinear")
        kept = given.warped + self.rim * torch.lerp(soft, more, given.near)
        new = shares[:, :1] * (2 * torch.sigmoid(new - 1) - 1)
        for k in range(3):  # warped, still, moved along, in [-1, 1] as the shares' sum needs it
            new = torch.addcmul(new, shares[:, k + 1 : k + 2], given.channels[:, 3 * k : 3 * k + 3])
        return torch.lerp(kept, (new + 1) / 2, given.gap).clamp(0, 1)
