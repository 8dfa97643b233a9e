"""Pixels: pictures are made smaller, moved and turned, coded as JPEG; shapes are filled and drawn into them.

Pictures are arrays (H, W, 3), or (H, W). A pixel's centre is a whole number; beyond the border it is repeated.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Samples = TypeVar("Samples", bound=np.generic)  # np.uint8, np.uint16 or np.float32
Taps = tuple[NDArray[np.int64], NDArray[np.float64]]  # (n, k) each: what every line is the sum of, and the weights

SHARPNESS = -0.75  # slope of the cubic kernel at a distance of one pixel
REACH = 2  # pixels that it reaches to either side
STRIP = 256  # lines that are worked on at once, so that large pictures need little memory and small ones stay in caches


class Places(NamedTuple):
    """Where in a picture the pixels of a line are looked for: start, start + step, ..., `number` of them."""

    start: float
    step: float
    number: int


# Sizes and places


def shrunk(image: NDArray[Samples], width: int, height: int) -> NDArray[Samples]:
    """A picture (H, W) or (H, W, c) at another size (height, width): means over the areas that its pixels cover."""
    return _summed(image, _covered(image.shape[0], height), _covered(image.shape[1], width))


def resampled(image: NDArray[Samples], across: Places, down: Places, cubic: bool = False) -> NDArray[Samples]:
    """A picture (H, W) or (H, W, c) at the places of a grid, linear between pixels or cubic: (down, across) of them."""
    return _summed(image, _between(image.shape[0], down, cubic), _between(image.shape[1], across, cubic))


def _covered(given: int, wanted: int) -> Taps:
    """Shares that each of `wanted` cells of one size has in `given` lines."""
    step = given / wanted
    start = np.arange(wanted)[:, None] * given / wanted
    lines = np.floor(start).astype(np.int64) + np.arange(math.ceil(step) + 1)
    shares = np.minimum(lines + 1, start + step) - np.maximum(lines, start)
    return lines.clip(max=given - 1), shares.clip(min=0) / step


def _between(given: int, places: Places, cubic: bool) -> Taps:
    """Weights that each of these places gives to the two or four of `given` lines around it."""
    at = places.start + places.step * np.arange(places.number)[:, None]
    lines = np.floor(at).astype(np.int64) + (np.arange(1 - REACH, 1 + REACH) if cubic else np.arange(2))
    away = np.abs(at - lines)
    return lines.clip(0, given - 1), _cubic(away) if cubic else 1 - away


def _cubic(away: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weight of a pixel at a distance of 0 to 2 (Keys 1981)."""
    near = ((SHARPNESS + 2) * away - (SHARPNESS + 3)) * away**2 + 1
    far = SHARPNESS * (((away - 5) * away + 8) * away - 4)
    return np.where(away <= 1, near, far)


def _summed(image: np.ndarray, rows: Taps, columns: Taps) -> np.ndarray:
    """A picture whose lines are weighted sums of a picture's, down and across."""
    import torch  # here, so that what looks into files need not wait for it
    from torch.nn.functional import embedding_bag

    across, across_weights = (torch.from_numpy(taps) for taps in (columns[0], columns[1].astype(np.float32)))
    planes = image.reshape(*image.shape[:2], -1)
    out = np.empty((len(rows[0]), len(across), planes.shape[2]), image.dtype)
    many = max(1, STRIP // rows[0].shape[1])
    for start in range(0, len(out), many):
        lines, weights = (taps[start : start + many] for taps in rows)
        first = int(lines.min())
        strip = torch.from_numpy(planes[first : lines.max() + 1].astype(np.float32)).flatten(1)
        down, down_weights = torch.from_numpy(lines - first), torch.from_numpy(weights.astype(np.float32))
        tall = embedding_bag(down, strip, per_sample_weights=down_weights, mode="sum")
        turned = tall.unflatten(1, planes.shape[1:]).transpose(0, 1).flatten(1)  # columns are lines now
        wide = embedding_bag(across, turned, per_sample_weights=across_weights, mode="sum")
        if np.issubdtype(image.dtype, np.integer):
            wide.round_().clamp_(0, np.iinfo(image.dtype).max)
        out[start : start + many] = wide.unflatten(1, (len(lines), -1)).transpose(0, 1).contiguous().numpy()
    return out.reshape(*out.shape[:2], *image.shape[2:])


def warped(
    image: NDArray[np.uint8], matrix: np.ndarray, width: int, height: int, cubic: bool = False
) -> NDArray[np.uint8]:
    """A picture (H, W) or (H, W, c) as (height, width), moved and turned; linear between pixels, or cubic.

    matrix: (2, 3), of the places (x, y) in the picture that pixels of the result show. What moves without turning is
    faster by `resampled`.
    """
    import torch
    from torch.nn.functional import grid_sample

    corners = np.array([[0, width - 1, 0, width - 1], [0, 0, height - 1, height - 1]])
    there = matrix[:, :2] @ corners + matrix[:, 2:]
    size = np.array(image.shape[1::-1])
    low = (np.floor(there.min(1)).astype(int) - REACH).clip(0, size - 1)
    high = (np.floor(there.max(1)).astype(int) + REACH + 1).clip(low + 1, size)
    part = image[low[1] : high[1], low[0] : high[0]]
    planes = torch.from_numpy(part.reshape(*part.shape[:2], -1).astype(np.float32)).permute(2, 0, 1)
    # To coordinates in which the part's edges are -1 and 1.
    scaled = matrix * (2 / (high - low))[:, None]
    scaled[:, 2] += (1 - 2 * low) / (high - low) - 1
    x, y = (np.arange(length, dtype=np.float32) for length in (width, height))
    grid = np.empty((height, width, 2), np.float32)
    for axis, (along_x, along_y, shift) in enumerate(scaled.astype(np.float32)):
        grid[..., axis] = along_x * x + (along_y * y + shift)[:, None]
    found = grid_sample(
        planes[None], torch.from_numpy(grid)[None], "bicubic" if cubic else "bilinear", "border", align_corners=False
    )
    out = found[0].round_().clamp_(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
    return out.reshape(height, width, *image.shape[2:])


def laplacian(image: np.ndarray) -> NDArray[np.float64]:
    """Of a grey picture (H, W): the four neighbours of each pixel less four times itself; the border mirrors them."""
    padded = np.pad(image.astype(np.float64), 1, mode="reflect")
    rows, columns = padded[:, 1:-1], padded[1:-1]
    return rows[:-2] + rows[2:] + columns[:, :-2] + columns[:, 2:] - 4 * padded[1:-1, 1:-1]


# Shapes


def filled(outline: np.ndarray, width: int, height: int) -> NDArray[np.bool_]:
    """The inside of an outline (n, 2) of whole numbers, with its edges: a mask (height, width)."""
    mask = Image.new("1", (width, height))
    corners = [(int(x), int(y)) for x, y in [*outline, outline[0]]]
    draw = ImageDraw.Draw(mask)
    draw.polygon(corners, fill=1)
    draw.line(corners, fill=1)  # of edges the polygon has those to one side
    return np.array(mask)


def hull(points: np.ndarray) -> np.ndarray:
    """The corners (m, 2) of the convex outline around points (n, 2), in order (Andrew 1979)."""
    ordered = np.unique(points, axis=0).tolist()
    if len(ordered) < 3:
        return np.array(ordered)
    return np.array(_chain(ordered)[:-1] + _chain(ordered[::-1])[:-1])


def _chain(ordered: list[list[float]]) -> list[list[float]]:
    """Half of the outline around points that are ordered: those at which it turns to one side."""
    kept: list[list[float]] = []
    for x, y in ordered:
        while len(kept) > 1:
            (ax, ay), (bx, by) = kept[-2:]
            if (bx - ax) * (y - ay) > (by - ay) * (x - ax):
                break
            kept.pop()
        kept.append([x, y])
    return kept


def stroke(
    picture: NDArray[np.uint8],
    start: Sequence[float] | np.ndarray,
    end: Sequence[float] | np.ndarray,
    width: float,
    colour: Sequence[int],
) -> None:
    """Draw a line with smooth edges and round ends, a dot where these are one, into a picture (H, W, 3).

    start, end: (x, y) in pixels, which may lie outside.
    """
    one, two = np.array(start, float), np.array(end, float)
    reach = width / 2 + 1
    x0, y0 = np.floor(np.minimum(one, two) - reach).astype(int).clip(min=0)
    x1, y1 = np.ceil(np.maximum(one, two) + reach).astype(int).clip(min=0)
    part = picture[y0:y1, x0:x1]
    y, x = np.mgrid[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]]
    from_start, along = np.stack([x, y], -1) - one, two - one
    share = (from_start @ along / max(along @ along, np.finfo(float).tiny)).clip(0, 1)
    distance = np.linalg.norm(from_start - share[..., None] * along, axis=-1)
    cover = (width / 2 + 0.5 - distance).clip(0, 1)[..., None]
    part[...] = np.rint(part + cover * (np.array(colour) - part))


# JPEG


def encode_jpeg(picture: NDArray[np.uint8], quality: int, subsampling: str = "4:2:0") -> bytes:
    """The JPEG of a picture (H, W, 3) RGB. quality: 1 to 95; subsampling: of its colours, "4:4:4" for none."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return file.getvalue()


def decode_jpeg(blob: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of a JPEG."""
    with Image.open(io.BytesIO(blob), formats=["JPEG"]) as image:
        return np.array(image.convert("RGB"))
