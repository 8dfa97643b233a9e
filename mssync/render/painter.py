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
from mssync.render.organs import CHIN_POINTS, EYE, MOUTH, Organ, grid, inside, iris_disc, local_field, opened, placed

INPUTS = 16  # channels of a prompt
OUTPUTS = 10  # a colour, what is added to the warped one, shares of: that colour, warped, still, moved along
WIDTHS = (32, 64, 112, 144)
LOW_PASS = 8  # pixels, over which what is added to skin is averaged
MARGIN = 0.12  # width of the window's fading rim, in u
MOST = 0.6  # that is added to a colour
ORGANS = {"mouth": MOUTH, "eye": EYE}


class Prompt(NamedTuple):
    """channels (B, 16, h, w), the first three of them the warped source in [0, 1]; gap (B, 1, h, w): what is open;
    near (B, 1, h, w): where anything sharp may be added; field (B, h, w, 2): offsets of `local_field`."""

    channels: Tensor
    gap: Tensor
    near: Tensor
    field: Tensor


def prompt(
    organ: Organ, picture: Tensor, frame: Tensor, points: Tensor, target_frame: Tensor, target: Tensor, scale: Tensor
) -> Prompt:
    """What a painter is given.

    picture: (B, 3, H, W) in [0, 1], the source at about the window's resolution; frame (B, 3, 2): the window in it;
    points (B, 478, 2): its mesh; target_frame, target: the same of the new picture. All in pixels of their pictures.
    scale: (2,) pixels of `picture` in x and y.
    """
    at = grid(organ.size).to(points)
    source_uv, target_uv = inside(frame, points), inside(target_frame, target)
    carried = list(CHIN_POINTS if not organ.iris else organ.iris[:1])
    moved = (target_uv[:, carried] - source_uv[:, carried]).mean(1)  # of jaw or iris, along the skull
    field = local_field(organ, source_uv, target_uv, at)
    batch = len(target_uv)
    wanted = [at + field, at.expand(batch, -1, -1, -1), at - moved[:, None, None]]
    looked = sampled(picture, frame, torch.cat(wanted), scale)
    warped, still, along = looked.chunk(3)
    now, then = opened(organ, target_uv), opened(organ, source_uv).expand(batch, -1, -1, -1)
    then_along = opened(organ, source_uv + moved[:, None])[:, :1]
    u, v = at.permute(2, 0, 1)[None].expand(batch, -1, -1, -1).split(1, 1)
    if organ.iris:
        marks = [now, then, then_along, iris_disc(organ, target_uv), iris_disc(organ, source_uv).expand_as(now)]
        places = [u, v]
    else:
        marks = [now, then[:, :1], then_along]
        places = [u, v, v - moved[:, 1, None, None, None]]
    channels = torch.cat([warped, still * 2 - 1, along * 2 - 1, *marks, *places], 1)
    lips = F.avg_pool2d(F.max_pool2d(now.sum(1, keepdim=True), 9, 1, 4), 5, 1, 2)
    return Prompt(channels, now[:, :1], lips.clamp(0, 1), field)


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


def block(inputs: int, outputs: int) -> nn.Sequential:
    """Two 3 × 3 convolutions with batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Encoder and decoder with skip connections, at half the input's resolution and below.

    inputs: channels of what is given; widths: channels at 1/2, 1/4, … of its resolution.
    """

    def __init__(self, inputs: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.widths = tuple(widths)
        self.down = nn.ModuleList(block(i, o) for i, o in zip((4 * inputs, *widths), widths, strict=False))
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.up = nn.ModuleList(block(deep + skip, skip) for deep, skip in pairs)

    def features(self, given: Tensor) -> Tensor:
        """(B, inputs, h, w) -> (B, widths[0], h / 2, w / 2)."""
        x = F.pixel_unshuffle(given, 2).contiguous(memory_format=torch.channels_last)
        skips = []
        for k, layer in enumerate(self.down):
            x = layer(x if k == 0 else F.avg_pool2d(x, 2))
            skips.append(x)
        x = skips.pop()
        x = x + self.summed_up(x.mean((2, 3)))[..., None, None]
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0, mode="nearest"), skips.pop()], 1))
        return x

    def summed_up(self, mean: Tensor) -> Tensor:
        """What is added everywhere where the resolution is lowest, from the mean (B, widths[-1]) there."""
        return mean


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
        warped, gap = given.channels[:, :3], given.gap
        x = self.features(torch.cat([warped * 2 - 1, given.channels[:, 3:]], 1))
        new, more, shares = self.head(x).float().split((3, 3, 4), 1)
        shares, more = shares.softmax(1), MOST * torch.tanh(more)
        still, along = given.channels[:, 3:9].chunk(2, 1)  # in [-1, 1]
        seen = shares[:, 2:3] * (still + 1) / 2 + shares[:, 3:] * (along + 1) / 2
        new = shares[:, :1] * torch.sigmoid(new - 1) + shares[:, 1:2] * warped + seen
        soft = F.interpolate(F.avg_pool2d(more, LOW_PASS), scale_factor=float(LOW_PASS), mode="bilinear")
        kept = warped + self.rim * (soft + given.near * (more - soft))
        return (kept + gap * (new - kept)).clamp(0, 1)
