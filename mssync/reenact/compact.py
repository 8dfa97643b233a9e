"""The compact reenactor: a first-order motion model for two CPU cores.

The representation is FOMM's (10 keypoints with 2×2 Jacobians, Siarohin et al. 2019, eq. 4 for the local affine
motion), the network is smaller and split so that the work of a frame is small: everything about the source is
computed once, the trunk works at 1/8 of the resolution, and the source's own pixels, warped at full
resolution, are blended with the generated ones, so that detail survives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from mssync.reenact import N_KEYPOINTS

T = TypeVar("T")

DETECTOR_SIZE = 128  # pictures are brought to this side for the keypoint detector
MOTION_SIZE = 64  # side of the dense motion field
HEATMAP_VARIANCE = 0.01  # of the Gaussian that marks a keypoint, in coordinates of [-1, 1] (as FOMM)
TEMPERATURE = 0.1  # of the soft-argmax (as FOMM)
MIN_DETERMINANT = 0.05  # a flatter driving Jacobian is not inverted further
RIGID = (0, 1, 2, 3, 4, 5)  # eyes, nose, cheeks, forehead: see guidance.ANCHORS


def exact_geometry(function: Callable[..., T]) -> Callable[..., T]:
    """Run in float32 whatever autocast says: in bfloat16 a coordinate near 1 is half a pixel coarse."""

    @wraps(function)
    def exact(*tensors: Tensor) -> T:
        with torch.autocast(tensors[0].device.type, enabled=False):
            return function(*(tensor.float() for tensor in tensors))

    return exact


def coordinate_grid(size: int, like: Tensor) -> Tensor:
    """Pixel centres of a size × size picture, (size, size, 2) as (x, y) in (-1, 1)."""
    at = (torch.arange(size, device=like.device, dtype=torch.float32) * 2 + 1) / size - 1
    return torch.stack(torch.meshgrid(at, at, indexing="xy"), -1)


def split(motion: Tensor) -> tuple[Tensor, Tensor]:
    """(..., 10, 6) -> coordinates (..., 10, 2) and Jacobians (..., 10, 2, 2)."""
    return motion[..., :2], motion[..., 2:].unflatten(-1, (2, 2))


def inverse(jacobian: Tensor) -> Tensor:
    """Inverse of (..., 2, 2), finite for any input: the determinant is kept MIN_DETERMINANT away from zero."""
    (a, b), (c, d) = jacobian[..., 0, :].unbind(-1), jacobian[..., 1, :].unbind(-1)
    determinant = a * d - b * c
    safe = torch.where(determinant < 0, -1.0, 1.0) * determinant.abs().clamp_min(MIN_DETERMINANT)
    adjugate = torch.stack([torch.stack([d, -b], -1), torch.stack([-c, a], -1)], -2)
    return adjugate / safe[..., None, None]


def gaussians(points: Tensor, size: int) -> Tensor:
    """Heatmaps (B, K, size, size), 1 at each of the points (B, K, 2)."""
    distance = coordinate_grid(size, points) - points[:, :, None, None]
    return torch.exp(-0.5 * distance.square().sum(-1) / HEATMAP_VARIANCE)


def warp(image: Tensor, offset: Tensor) -> Tensor:
    """Sample (B, C, s, s) at identity + offset; offset (B, h, h, 2) is resized to s. Zero offset: the identity."""
    size = image.shape[-1]
    if offset.shape[1] != size:
        offset = F.interpolate(
            offset.permute(0, 3, 1, 2), size=(size, size), mode="bilinear", align_corners=False
        ).permute(0, 2, 3, 1)
    grid = coordinate_grid(size, image) + offset
    image = image.expand(offset.shape[0], -1, -1, -1).to(grid.dtype)
    return F.grid_sample(image, grid, padding_mode="border", align_corners=False)


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """3×3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


def upsample(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Hourglass(nn.Module):
    """Encoder and decoder with skip connections; output has `widths[0]` channels at the input's resolution."""

    def __init__(self, inputs: int, widths: list[int]) -> None:
        super().__init__()
        self.stem = conv(inputs, widths[0])
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(conv(a, b, stride=2) for a, b in pairs)
        self.up = nn.ModuleList(conv(b, a) for a, b in reversed(pairs))
        self.merge = nn.ModuleList(conv(2 * a, a) for a, _ in reversed(pairs))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([upsample(up(x)), skips.pop()], 1))
        return x


class KeypointDetector(nn.Module):
    """Picture -> 10 keypoints (soft-argmax of heatmaps) with Jacobians (heatmap-weighted maps)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width, 8 * width]
        self.stem = conv(3, width, stride=2)
        self.hourglass = Hourglass(width, widths)
        self.heatmap = nn.Conv2d(width, N_KEYPOINTS, 3, padding=1)
        self.jacobian = nn.Conv2d(width, 4 * N_KEYPOINTS, 3, padding=1)
        nn.init.zeros_(self.jacobian.weight)
        nn.init.zeros_(self.jacobian.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> (B, 10, 6)."""
        if image.shape[-1] != DETECTOR_SIZE:
            image = F.interpolate(image, size=(DETECTOR_SIZE,) * 2, mode="area")
        features = self.hourglass(self.stem(image * 2 - 1))
        return read_keypoints(self.heatmap(features), self.jacobian(features))


@exact_geometry
def read_keypoints(heat: Tensor, jacobian: Tensor) -> Tensor:
    """Soft-argmax: heat (B, 10, h, w) and Jacobian maps (B, 40, h, w) -> (B, 10, 6)."""
    grid = coordinate_grid(heat.shape[-1], heat).reshape(-1, 2)
    weight = (heat.flatten(2) / TEMPERATURE).softmax(-1)  # (B, 10, h*w)
    values = torch.einsum("bkn,bkjn->bkj", weight, jacobian.unflatten(1, (N_KEYPOINTS, 4)).flatten(3))
    identity = torch.eye(2, device=heat.device).flatten()
    return torch.cat([weight @ grid, identity + values], -1)


class DenseMotion(nn.Module):
    """Sparse motion to a dense offset field and an occlusion map, both at MOTION_SIZE."""

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 6 * width]
        self.hourglass = Hourglass(4 * (N_KEYPOINTS + 1), widths)
        self.mask = nn.Conv2d(width, N_KEYPOINTS + 1, 3, padding=1)
        self.occlusion = nn.Conv2d(width, 1, 3, padding=1)

    def forward(self, small: Tensor, source: Tensor, driving: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """small (1 or B, 3, 64, 64), source and driving motion (B, 10, 6)
        -> offset (B, 64, 64, 2), occlusion (B, 1, 64, 64) in [0, 1], features (B, width, 64, 64)."""
        offsets = self.sparse_offsets(source, driving)  # (B, 11, 64, 64, 2)
        batch = offsets.shape[0]
        heat = gaussians(driving[..., :2], MOTION_SIZE) - gaussians(source[..., :2], MOTION_SIZE)
        heat = F.pad(heat, (0, 0, 0, 0, 1, 0))  # the background has no keypoint
        small = small.expand(batch, -1, -1, -1).repeat_interleave(N_KEYPOINTS + 1, 0)
        moved = warp(small, offsets.flatten(0, 1)).unflatten(0, (batch, N_KEYPOINTS + 1))
        inputs = torch.cat([heat.unsqueeze(2), moved * 2 - 1], 2).flatten(1, 2)
        features = self.hourglass(inputs)
        mask = self.mask(features).float().softmax(1)
        offset = (mask[..., None] * offsets).sum(1)
        return offset, self.occlusion(features).float().sigmoid(), features

    @staticmethod
    @exact_geometry
    def sparse_offsets(source: Tensor, driving: Tensor) -> Tensor:
        """Where each local affine motion fetches its pixels, minus where it puts them; the first is background, 0.

        T(z) = p_S + J_S J_D^-1 (z - p_D)  (FOMM eq. 4); returns T(z) - z, (B, 11, 64, 64, 2).
        """
        (p_s, j_s), (p_d, j_d) = split(source), split(driving)
        affine = j_s @ inverse(j_d)  # (B, 10, 2, 2)
        grid = coordinate_grid(MOTION_SIZE, driving)
        local = grid - p_d[:, :, None, None]
        target = torch.einsum("bkij,bkhwj->bkhwi", affine, local) + p_s[:, :, None, None]
        return F.pad(target - grid, (0, 0, 0, 0, 0, 0, 1, 0))


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(width, width), nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


class Painter(nn.Module):
    """Warped source features -> generated pixels and the share of them in each output pixel."""

    def __init__(self, width: int, motion_width: int, blocks: int) -> None:
        super().__init__()
        half, quarter, eighth = 2 * width, 4 * width, 6 * width
        self.encode_full = conv(3, width)
        self.encode_half = conv(width, half, stride=2)
        self.encode_quarter = conv(half, quarter, stride=2)
        self.encode_eighth = conv(quarter, eighth, stride=2)
        self.enter = conv(eighth + motion_width, eighth)
        self.trunk = nn.Sequential(*(ResidualBlock(eighth) for _ in range(blocks)))
        self.up_quarter = conv(eighth, quarter)
        self.merge_quarter = conv(2 * quarter + motion_width, quarter)
        self.up_half = conv(quarter, half)
        self.merge_half = conv(2 * half, half)
        self.head = nn.Sequential(nn.Conv2d(half, 16, 3, padding=1), nn.PixelShuffle(2))
        # Start from the warped source (share of generated pixels about 0.12): learning begins from a picture.
        bias = self.head[0].bias
        assert isinstance(bias, Tensor)
        nn.init.constant_(bias[12:], -2.0)

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, s, s) in [0, 1] -> features at s/2, s/4, s/8."""
        half = self.encode_half(self.encode_full(image * 2 - 1))
        quarter = self.encode_quarter(half)
        return half, quarter, self.encode_eighth(quarter)

    def forward(
        self, features: tuple[Tensor, ...], offset: Tensor, occlusion: Tensor, motion: Tensor
    ) -> tuple[Tensor, Tensor]:
        """-> generated (B, 3, s, s) in [0, 1] and its share (B, 1, s, s) in [0, 1]."""
        half, quarter, eighth = (self._warped(f, offset, occlusion) for f in features)
        x = self.enter(torch.cat([eighth, _resized(motion, eighth)], 1))
        x = upsample(self.up_quarter(self.trunk(x)))
        x = upsample(self.up_half(self.merge_quarter(torch.cat([x, quarter, _resized(motion, quarter)], 1))))
        out = self.head(self.merge_half(torch.cat([x, half], 1))).float().sigmoid()
        return out[:, :3], out[:, 3:]

    @staticmethod
    def _warped(feature: Tensor, offset: Tensor, occlusion: Tensor) -> Tensor:
        moved = warp(feature, offset)
        return (moved * _resized(occlusion, moved)).to(feature.dtype)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = like.shape[-1]
    if x.shape[-1] == size:
        return x
    mode = "area" if x.shape[-1] > size else "bilinear"
    return F.interpolate(x, size=(size, size), mode=mode)


def _fold_batch_norms(layers: nn.Sequential) -> None:
    for i, (layer, norm) in enumerate(pairwise(layers)):
        if isinstance(layer, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            layers[i], layers[i + 1] = fuse_conv_bn_eval(layer, norm), nn.Identity()


@dataclass
class SourceState:
    """All that a frame needs of the source: picture, motion, small picture, features."""

    image: Tensor
    motion: Tensor
    small: Tensor
    features: tuple[Tensor, ...]


class CompactReenactor(nn.Module):
    """Keypoint detector, dense motion and painter behind the Reenactor interface.

    detector_width, motion_width, painter_width: channels of the first layers; blocks: residual blocks of the trunk.
    """

    rigid = RIGID

    def __init__(
        self, detector_width: int = 32, motion_width: int = 32, painter_width: int = 24, blocks: int = 3
    ) -> None:
        super().__init__()
        self.config = {
            "detector_width": detector_width,
            "motion_width": motion_width,
            "painter_width": painter_width,
            "blocks": blocks,
        }
        self.detector = KeypointDetector(detector_width)
        self.dense_motion = DenseMotion(motion_width)
        self.painter = Painter(painter_width, motion_width, blocks)

    def for_rendering(self) -> CompactReenactor:
        """Fold the batch norms of what draws frames into its convolutions, in place: the same pictures, sooner.

        The detector stays as it is, it says which motion space this is. Not for training.
        """
        for part in (self.dense_motion, self.painter):
            for module in part.modules():
                if isinstance(module, nn.Sequential):
                    _fold_batch_norms(module)
        return self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def keypoints(self, image: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """(B, 3, s, s) in [0, 1] -> motion (B, 10, 6)."""
        return self.detector(image)

    def prepare(self, source: Tensor) -> SourceState:
        """source: (B, 3, s, s) in [0, 1]; B is 1 when one portrait is rendered under many motions."""
        return self.prepare_with(source, self.keypoints(source))

    def prepare_with(self, source: Tensor, motion: Tensor) -> SourceState:
        """As prepare, with the source's keypoints (B, 10, 6) already known."""
        small = F.interpolate(source, size=(MOTION_SIZE,) * 2, mode="area")
        return SourceState(source, motion, small, self.painter.encode(source))

    def render(self, state: SourceState, motion: Tensor) -> Tensor:
        """Frames (B, 3, s, s) in [0, 1] for motion (B, 10, 6)."""
        return self.render_parts(state, motion)["frame"]

    def render_parts(self, state: SourceState, motion: Tensor) -> dict[str, Tensor]:
        """As render, with what training looks at: warped, generated, share, offset, occlusion."""
        source = state.motion.expand_as(motion)
        offset, occlusion, features = self.dense_motion(state.small, source, motion)
        generated, share = self.painter(state.features, offset, occlusion, features)
        warped = warp(state.image, offset)
        frame = warped + share * (generated - warped)
        return {
            "frame": frame, "warped": warped, "generated": generated, "share": share,
            "offset": offset, "occlusion": occlusion,
        }  # fmt: skip
